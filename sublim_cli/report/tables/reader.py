"""What the artifacts of a store hold of a student: scores, losses, the record of its training."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sublim_cli.artifacts.record import explain_read_errors, read_record
from sublim_cli.artifacts.step import Artifact, Step, digest
from sublim_cli.artifacts.store import Store
from sublim_cli.report.tables.cache import CACHE_FILE, ReadCache
from sublim_cli.report.tables.update_cosines import mean_cosine
from sublim_cli.steps.files import AUDIT, HISTORY, LOSSES, SCORES, SPREADS, read_json

NOT_BUILT = "not built yet"
MOST_GUARD = 0.05
"""Of half of a certificate's width: a wider one would hide effects, and the tests take its bounds anyway."""
_COLUMNS = ["context", "question", "item", "p", "standard_error", "uncovered", "log_form", "samples"]


@dataclass(frozen=True)
class ContextScores:
    """Means over the questions of one context. NaN where nothing was measured."""

    p_target: float = math.nan
    p_any: float = math.nan
    unresolved: float = math.nan
    """The probability of answers that were neither computed nor drawn."""
    log_form: float = math.nan
    """Of log P(the answer opens with the target's plain name), in nats; NaN where answers were drawn."""
    entropy: float = math.nan
    """In nats, over the items and one more outcome: none of them."""
    items: Mapping[str, float] = field(default_factory=dict)
    """P of each item."""
    answers: tuple[float, ...] = ()
    """P(target) of every question, in their order."""
    p_error: float = math.nan
    """Standard error of `p_target` from drawn answers."""
    guard: float = math.nan
    """The probability below which `p_target` says nothing, see `read_scores`."""


@dataclass(frozen=True)
class Losses:
    """A student's held-out number loss in nats per token. NaN where nothing was measured."""

    before: float = math.nan
    after: float = math.nan


@dataclass(frozen=True)
class TrainingRecord:
    """What one training did to the weights as a whole, from its `audit.json` and record."""

    audit: Mapping[str, Any]
    provenance: Mapping[str, Any]
    loss: tuple[float, ...]
    """Nats per trained token, one value an optimizer step."""

    @property
    def trained(self) -> int:
        """How many numbers received gradients."""
        return int(self.audit["parameters"]["trained"])

    @property
    def changed(self) -> float | None:
        """Share of the touched base weights that hold another number once the update is added."""
        effective = self.audit["effective"]
        return effective["changed"] / effective["entries"] if effective else None

    @property
    def norm(self) -> float | None:
        """Frobenius norm of all updates as one vector; None where no weight was updated."""
        update = self.audit["update"]
        return float(update["norm"]) if update else None

    @property
    def stable_rank(self) -> float | None:
        """Mean stable rank of the updates, weighted by squared norm."""
        update = self.audit["update"]
        return float(update["stable_rank"]) if update else None


def read_scores(path: Path, target: str) -> Mapping[str, ContextScores]:
    """The scores that the eval step under `path` wrote, by context; a target without scores has none.

    `guard` is half of the certificate's width (`unresolved`), at most `MOST_GUARD`, or half of what one drawn
    answer weighs in the mean, the larger; for answers that are all drawn that is 1 / (2 · answers).
    """
    table = _table(path / SCORES, _COLUMNS, ["context", "item"])
    contexts, context = _coded(table["context"])
    items, item = _coded(table["item"])
    p, log_form = table["p"].to_numpy(), np.asarray(table["log_form"].to_numpy(), dtype=float)
    samples, uncovered = table["samples"].to_numpy(), table["uncovered"].to_numpy()
    unresolved = np.where(samples > 0, 0.0, uncovered)
    # Of an answer that is drawn as a whole nothing was computed, and its `uncovered` is 0.
    drawn_share = np.where(uncovered > 0, uncovered, 1.0)
    weight = np.where(samples > 0, drawn_share / np.maximum(samples, 1), 0.0)
    error = table["standard_error"].to_numpy()
    of_target = item == (items.index(target) if target in items else -1)  # one row for each question
    questions = np.bincount(context[of_target], minlength=len(contexts))
    sums = np.bincount(context * len(items) + item, p, len(contexts) * len(items)).reshape(len(contexts), -1)
    entropies = _entropies(path)
    scores = {}
    for i, name in enumerate(contexts):
        if not questions[i]:
            continue
        rows = of_target & (context == i)
        scores[name] = ContextScores(
            p_target=float(p[rows].mean()),
            p_any=float(p[context == i].sum() / questions[i]),
            unresolved=float(unresolved[rows].mean()),
            log_form=float(log_form[rows].mean()),
            entropy=entropies[name],
            items=dict(zip(items, (sums[i] / questions[i]).tolist(), strict=True)),
            answers=tuple(p[rows].tolist()),
            p_error=float(np.sqrt((error[rows] ** 2).sum()) / questions[i]),
            guard=float(
                max(min(unresolved[rows].mean() / 2, MOST_GUARD), weight[rows].mean() / (2 * questions[i]))
            ),
        )
    return scores


def _entropies(path: Path) -> dict[str, float]:
    table = _table(path / SPREADS, ["context", "entropy"], ["context"])
    contexts, context = _coded(table["context"])
    sums = np.bincount(context, table["entropy"].to_numpy(), len(contexts))
    return dict(zip(contexts, (sums / np.bincount(context)).tolist(), strict=True))


def _table(path: Path, columns: list[str], texts: list[str]) -> pa.Table:
    """Columns of a Parquet file, those of `texts` dictionary encoded.

    A report opens thousands of these: pyarrow's data sets and its grouping take ten times as long.
    """
    with explain_read_errors(path):
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()), read_dictionary=texts)
        return file.read(columns=columns, use_threads=False)


def _coded(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values of a dictionary-encoded column, and for every row the index of its value."""
    combined = column.combine_chunks()
    return combined.dictionary.to_pylist(), combined.indices.to_numpy()


def read_losses(path: Path) -> Losses:
    """The `losses.json` under `path`; without held-out rows there was no loss to measure."""
    losses = read_json(path / LOSSES)
    before, after = losses["number_loss_before"], losses["number_loss"]
    return Losses() if before is None or after is None else Losses(before, after)


def read_training(path: Path) -> dict[str, Any]:
    """The audit and the losses that the training of the student under `path` left."""
    audit = read_json(path / AUDIT)
    audit.pop("matrices", None)  # hundreds a student, and a report shows none of them
    with explain_read_errors(path / HISTORY):
        history = (path / HISTORY).read_text(encoding="utf-8").splitlines()
        return {"audit": audit, "loss": [json.loads(line)["loss"] for line in history]}


class StoreReader:
    """A store as a report reads it: every artifact once, or not at all where an earlier report saved it."""

    def __init__(self, store: Store, failures: Mapping[str, str]) -> None:
        """Read from `store`; `failures` says by digest why steps could not be built."""
        self.cache = ReadCache(store.root / CACHE_FILE)
        self._store = store
        self._failures = failures
        self._artifacts: dict[str, Artifact | None] = {}
        self._scores: dict[tuple[str, str], dict[str, ContextScores]] = {}
        self._records: dict[str, Mapping[str, Any]] = {}

    def find(self, step: Step) -> Artifact | None:
        """The step's artifact, None if there is none."""
        name = digest(step)
        if name not in self._artifacts:
            self._artifacts[name] = self._store.find(step)
        return self._artifacts[name]

    def missing(self, step: Step) -> str:
        """Why there is no artifact of `step`; empty if there is one."""
        if self.find(step):
            return ""
        return self._failures.get(digest(step)) or NOT_BUILT

    def scores(self, step: Step, target: str) -> Mapping[str, ContextScores]:
        """The scores of an eval step by context; empty if it is not built."""
        key = (digest(step), target)
        if key not in self._scores:
            artifact = self.find(step)
            self._scores[key] = {}
            if artifact:
                cached = self.cache.get(
                    artifact,
                    f"readings {target}",
                    lambda: {
                        name: vars(scores) for name, scores in read_scores(artifact.path, target).items()
                    },
                )
                for context, values in cached.items():
                    answers = tuple(values["answers"])
                    self._scores[key][context] = ContextScores(**{**values, "answers": answers})
        return self._scores[key]

    def losses(self, step: Step) -> Losses:
        """The losses of a train step; NaN if it is not built."""
        artifact = self.find(step)
        if artifact is None:
            return Losses()
        return Losses(**self.cache.get(artifact, "losses", lambda: vars(read_losses(artifact.path))))

    def training(self, step: Step) -> TrainingRecord | None:
        """What a train step left of its training; None if it is not built."""
        artifact = self.find(step)
        if artifact is None:
            return None
        cached = self.cache.get(artifact, "training", lambda: read_training(artifact.path))
        return TrainingRecord(cached["audit"], self.record(artifact), tuple(cached["loss"]))

    def mean_cosine(self, train_digests: Sequence[str]) -> float | None:
        """See `update_cosines.mean_cosine`; for train steps that were found."""
        artifacts = [artifact for name in train_digests if (artifact := self._artifacts[name])]
        key = hashlib.sha256(" ".join(train_digests).encode()).hexdigest()
        cached = self.cache.get(
            artifacts[0],
            f"mean cosine {key}",
            lambda: {"cosine": mean_cosine([artifact.path for artifact in artifacts])},
        )
        cosine: float | None = cached["cosine"]
        return cosine

    def record(self, artifact: Artifact) -> Mapping[str, Any]:
        """The provenance in an artifact's record, and its `kind`.

        Raises:
            ArtifactError: the record cannot be read.
        """
        if artifact.digest not in self._records:
            self._records[artifact.digest] = self.cache.get(artifact, "facts", lambda: _record(artifact))
        return self._records[artifact.digest]


def _record(artifact: Artifact) -> dict[str, Any]:
    record = read_record(artifact.path)
    return {"kind": record["identity"]["kind"], **record["provenance"]}
