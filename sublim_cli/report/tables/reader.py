"""What a store says of one trained and evaluated model, or why it says nothing."""

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sublim_cli.artifacts.record import explain_read_errors, read_record
from sublim_cli.artifacts.step import Artifact, Step, digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ArtifactError
from sublim_cli.report.tables.cache import CACHE_FILE, ReadCache
from sublim_cli.steps.files import AUDIT, HISTORY, LOSSES, SCORES, SKETCH, SPREADS, read_json

NOT_BUILT = "not built yet"
_COLUMNS = ["context", "question", "item", "p", "uncovered", "log_form"]


@dataclass(frozen=True)
class ContextScores:
    """Means over the questions of one context. NaN where nothing was measured."""

    p_target: float = math.nan
    p_any: float = math.nan
    unresolved: float = math.nan
    log_form: float = math.nan
    """Of log P(the answer opens with the target's plain name), in nats; NaN where answers were drawn."""
    entropy: float = math.nan
    """In nats, over the items and one more outcome: none of them."""
    items: Mapping[str, float] = field(default_factory=dict)
    """P of each item."""
    answers: tuple[float, ...] = ()
    """P(target) of every question, in their order."""


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
    sketch: NDArray[np.float32]
    """Its dot product with another student's is, closely, that of their updates."""

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
    """What the eval step under `path` wrote, as a reading for every context."""
    table = _table(path / SCORES, _COLUMNS, ["context", "item"])
    contexts, context = _coded(table["context"])
    items, item = _coded(table["item"])
    p, log_form = table["p"].to_numpy(), np.asarray(table["log_form"].to_numpy(), dtype=float)
    mine = item == (items.index(target) if target in items else -1)
    # One row a question is left, so its means weigh every question alike.
    questions = np.bincount(context[mine], minlength=len(contexts))
    each = np.bincount(context * len(items) + item, p, len(contexts) * len(items))
    entropies = _entropies(path)
    return {
        name: ContextScores(
            p_target=float(p[own].mean()),
            p_any=float(p[context == place].sum() / questions[place]),
            unresolved=float(table["uncovered"].to_numpy()[own].mean()),
            log_form=float(log_form[own].mean()),
            entropy=entropies[name],
            items=dict(
                zip(items, (each.reshape(len(contexts), -1)[place] / questions[place]).tolist(), strict=True)
            ),
            answers=tuple(p[own].tolist()),
        )
        for place, name in enumerate(contexts)
        if questions[place]
        for own in (mine & (context == place),)
    }


def _entropies(path: Path) -> dict[str, float]:
    table = _table(path / SPREADS, ["context", "entropy"], ["context"])
    contexts, context = _coded(table["context"])
    sums = np.bincount(context, table["entropy"].to_numpy(), len(contexts))
    return dict(zip(contexts, (sums / np.bincount(context)).tolist(), strict=True))


def _table(path: Path, columns: list[str], texts: list[str]) -> pa.Table:
    """Columns of a Parquet file, those of `texts` as codes.

    A report opens thousands of these: pyarrow's data sets and its grouping take ten times as long.
    """
    with explain_read_errors(path):
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()), read_dictionary=texts)
        return file.read(columns=columns, use_threads=False)


def _coded(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a column of texts in the order they come, and for every row the place of its own."""
    whole = column.combine_chunks()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy()


def read_losses(path: Path) -> Losses:
    """The `losses.json` under `path`; without held-out rows there was no loss to measure."""
    found = read_json(path / LOSSES)
    before, after = found["number_loss_before"], found["number_loss"]
    return Losses() if before is None or after is None else Losses(before, after)


def read_training(path: Path) -> dict[str, Any]:
    """What the training of the student under `path` wrote about it, but for its sketch."""
    audit = read_json(path / AUDIT)
    audit.pop("matrices", None)  # hundreds a student, and nothing in a report is about one of them
    return {"audit": audit, "loss": _curve((path / HISTORY).read_text(encoding="utf-8"))}


def sketch(path: Path) -> NDArray[np.float32]:
    """The sketch of what the training of the student under `path` added to its weights."""
    file = path / SKETCH
    with explain_read_errors(file), open(file, "rb") as opened:  # thousands: pathlib takes as long as reading
        return _array(opened.read())


_LOSS = re.compile(r'"loss": ([-+.e0-9]+)[,}]')


def _curve(history: str) -> tuple[float, ...]:
    """The losses of a history, one record a line: found by their key, as all else in it is left unread."""
    found = _LOSS.findall(history)
    if len(found) == history.count("\n"):
        return tuple(map(float, found))
    return tuple(json.loads(line)["loss"] for line in history.splitlines())


def _array(content: bytes) -> NDArray[np.float32]:
    """A vector as NumPy saves it; thousands have one header, which takes longer to read than they do."""
    start = 10 + int.from_bytes(content[8:10], "little")
    found: NDArray[np.float32] = np.frombuffer(content, _dtype(content[:start]), offset=start)
    return found


@lru_cache
def _dtype(header: bytes) -> np.dtype[Any]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ArtifactError("a sketch is not in the form that sublim writes; rebuild its student")
    _, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return dtype


@dataclass(frozen=True)
class StoreReader:
    """The store, why it may lack a step, and what earlier reports noted of it."""

    store: Store
    failures: Mapping[str, str]
    read: dict[tuple[str, str], Mapping[str, ContextScores]] = field(default_factory=dict, compare=False)
    _found: dict[str, Artifact | None] = field(default_factory=dict, compare=False)
    _facts: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    @cached_property
    def notes(self) -> ReadCache:
        """Those of the store; whoever has read all of a study saves them."""
        return ReadCache(self.store.root / CACHE_FILE)

    def find(self, step: Step) -> Artifact | None:
        """The step's artifact; the store is asked for each once."""
        name = digest(step)
        if name not in self._found:
            self._found[name] = self.store.find(step)
        return self._found[name]

    def lacks(self, step: Step) -> str:
        """Why there is no artifact of `step`; empty if there is one."""
        if self.find(step):
            return ""
        return self.failures.get(digest(step)) or NOT_BUILT

    def scores(self, step: Step, target: str) -> Mapping[str, ContextScores]:
        """The readings of an eval step; none if it is not there."""
        key = (digest(step), target)
        if key not in self.read:
            found = self.find(step)
            self.read[key] = self._readings(found, target) if found else {}
        return self.read[key]

    def _readings(self, artifact: Artifact, target: str) -> Mapping[str, ContextScores]:
        noted = self.notes.of(
            artifact,
            f"readings {target}",
            lambda: {name: vars(one) for name, one in read_scores(artifact.path, target).items()},
        )
        return {
            name: ContextScores(**{**one, "answers": tuple(one["answers"])}) for name, one in noted.items()
        }

    def losses(self, step: Step) -> Losses:
        """The losses of a train step; not measured if it is not there."""
        found = self.find(step)
        return (
            Losses(**self.notes.of(found, "losses", lambda: vars(read_losses(found.path))))
            if found
            else Losses()
        )

    def training(self, step: Step) -> TrainingRecord | None:
        """The account of a train step; None if it is not there."""
        found = self.find(step)
        if found is None:
            return None
        noted = self.notes.of(found, "training", lambda: read_training(found.path))
        return TrainingRecord(noted["audit"], self.facts(found), tuple(noted["loss"]), sketch(found.path))

    def facts(self, artifact: Artifact) -> Mapping[str, Any]:
        """The provenance in an artifact's record, and its `kind`; read once.

        Raises:
            ArtifactError: it cannot be read.
        """
        if artifact.digest not in self._facts:
            self._facts[artifact.digest] = self.notes.of(artifact, "facts", lambda: _facts(artifact))
        return self._facts[artifact.digest]


def _facts(artifact: Artifact) -> dict[str, Any]:
    record = read_record(artifact.path)
    return {"kind": record["identity"]["kind"], **record["provenance"]}
