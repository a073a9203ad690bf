"""What a store says of one trained and evaluated model, or why it says nothing."""

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.step import Artifact, Step, digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ArtifactError
from sublim_cli.steps.files import AUDIT, HISTORY, LOSSES, SCORES, SKETCH, read_json

NOT_BUILT = "not built yet"
_COLUMNS = ["context", "question", "item", "p", "uncovered"]


@dataclass(frozen=True)
class Reading:
    """Means over the questions of one context. NaN where nothing was measured."""

    p_target: float = math.nan
    p_any: float = math.nan
    unresolved: float = math.nan


@dataclass(frozen=True)
class Losses:
    """A student's held-out number loss in nats per token. NaN where nothing was measured."""

    before: float = math.nan
    after: float = math.nan


@dataclass(frozen=True)
class Training:
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


def readings(path: Path, target: str) -> Mapping[str, Reading]:
    """The `scores.parquet` under `path`, as a reading for every context."""
    # A report opens thousands of these: pyarrow's data sets and its grouping take ten times as long.
    content = pa.BufferReader((path / SCORES).read_bytes())
    file = pq.ParquetFile(content, read_dictionary=["context", "item"])
    table = file.read(columns=_COLUMNS, use_threads=False)
    contexts, context = _coded(table["context"])
    items, item = _coded(table["item"])
    p, uncovered = table["p"].to_numpy(), table["uncovered"].to_numpy()
    mine = item == (items.index(target) if target in items else -1)
    own = context[mine]
    # One row a question is left, so its means weigh every question alike.
    questions, sums, p_sums, uncovered_sums = (
        np.bincount(places, values, len(contexts))
        for places, values in ((own, None), (context, p), (own, p[mine]), (own, uncovered[mine]))
    )
    return {
        name: Reading(
            *(float(one[place] / questions[place]) for one in (p_sums, sums, uncovered_sums)),
        )
        for place, name in enumerate(contexts)
        if questions[place]
    }


def _coded(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a column of texts in the order they come, and for every row the place of its own."""
    whole = column.combine_chunks()
    return whole.dictionary.to_pylist(), whole.indices.to_numpy()


def losses(path: Path) -> Losses:
    """The `losses.json` under `path`; without held-out rows there was no loss to measure."""
    found = read_json(path / LOSSES)
    before, after = found["number_loss_before"], found["number_loss"]
    return Losses() if before is None or after is None else Losses(before, after)


def training(path: Path, provenance: Mapping[str, Any]) -> Training:
    """The account of the student under `path`."""
    audit = read_json(path / AUDIT)
    audit.pop("matrices", None)  # hundreds a student, and nothing in a report is about one of them
    return Training(
        audit=audit,
        provenance=provenance,
        loss=_curve((path / HISTORY).read_text(encoding="utf-8")),
        sketch=_array((path / SKETCH).read_bytes()),
    )


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
class Shelf:
    """The store, and why it may lack a step."""

    store: Store
    failures: Mapping[str, str]
    _found: dict[str, Artifact | None] = field(default_factory=dict, compare=False)
    _facts: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

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

    def readings(self, step: Step, target: str) -> Mapping[str, Reading]:
        """The readings of an eval step; none if it is not there."""
        found = self.find(step)
        return readings(found.path, target) if found else {}

    def losses(self, step: Step) -> Losses:
        """The losses of a train step; not measured if it is not there."""
        found = self.find(step)
        return losses(found.path) if found else Losses()

    def training(self, step: Step) -> Training | None:
        """The account of a train step; None if it is not there."""
        found = self.find(step)
        return training(found.path, self.facts(found)) if found else None

    def facts(self, artifact: Artifact) -> Mapping[str, Any]:
        """The provenance in an artifact's record, and its `kind`; read once.

        Raises:
            ArtifactError: it cannot be read.
        """
        if artifact.digest not in self._facts:
            record = read_record(artifact.path)
            # The rest is let go: thousands of whole records keep Python's garbage collector busy.
            self._facts[artifact.digest] = {"kind": record["identity"]["kind"], **record["provenance"]}
        return self._facts[artifact.digest]
