"""What a store says of one trained and evaluated model, or why it says nothing."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sublim_cli.artifacts.record import read_record, reading
from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store
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
    """What one training did to the weights, from its `audit.json` and record."""

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
    with reading(path / SCORES):
        table = pq.read_table(path / SCORES, columns=_COLUMNS, use_threads=False)
    wanted = table.filter(pc.equal(table["item"], target))
    # One row a question is left, so its means weigh every question alike.
    means = wanted.group_by("context", use_threads=False).aggregate(
        [("p", "mean"), ("uncovered", "mean"), ("question", "count")]
    )
    sums = table.group_by("context", use_threads=False).aggregate([("p", "sum")])
    total = dict(zip(sums["context"].to_pylist(), sums["p_sum"].to_pylist(), strict=True))
    return {
        row["context"]: Reading(
            row["p_mean"], total[row["context"]] / row["question_count"], row["uncovered_mean"]
        )
        for row in means.to_pylist()
    }


def losses(path: Path) -> Losses:
    """The `losses.json` under `path`; without held-out rows there was no loss to measure."""
    found = read_json(path / LOSSES)
    before, after = found["number_loss_before"], found["number_loss"]
    return Losses() if before is None or after is None else Losses(before, after)


def training(path: Path) -> Training:
    """The account of the student under `path`."""
    lines = (path / HISTORY).read_text(encoding="utf-8").splitlines()
    return Training(
        audit=read_json(path / AUDIT),
        provenance=read_record(path)["provenance"],
        loss=tuple(json.loads(line)["loss"] for line in lines),
        sketch=np.load(path / SKETCH),
    )


@dataclass(frozen=True)
class Shelf:
    """The store, and why it may lack a step."""

    store: Store
    failures: Mapping[str, str]

    def lacks(self, step: Step) -> str:
        """Why there is no artifact of `step`; empty if there is one."""
        if self.store.find(step):
            return ""
        return self.failures.get(digest(step)) or NOT_BUILT

    def readings(self, step: Step, target: str) -> Mapping[str, Reading]:
        """The readings of an eval step; none if it is not there."""
        found = self.store.find(step)
        return readings(found.path, target) if found else {}

    def losses(self, step: Step) -> Losses:
        """The losses of a train step; not measured if it is not there."""
        found = self.store.find(step)
        return losses(found.path) if found else Losses()

    def training(self, step: Step) -> Training | None:
        """The account of a train step; None if it is not there."""
        found = self.store.find(step)
        return training(found.path) if found else None
