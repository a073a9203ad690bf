"""What a store says of one trained and evaluated model, or why it says nothing."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sublim_cli.artifacts.record import read_record, reading
from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store
from sublim_cli.steps.files import AUDIT, HISTORY, LOSSES, SCORES, SKETCH, SPREADS, read_json

NOT_BUILT = "not built yet"
_COLUMNS = ["context", "question", "item", "p", "uncovered", "log_form"]


@dataclass(frozen=True)
class Reading:
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
    """What the eval step under `path` wrote, as a reading for every context."""
    table = _table(path / SCORES, _COLUMNS)
    wanted = table.filter(pc.equal(table["item"], target))
    # One row a question is left, so its means weigh every question alike.
    means = _by_context(wanted, [("p", "mean"), ("uncovered", "mean"), ("log_form", "mean"), ("p", "list")])
    items: dict[str, dict[str, float]] = {}
    every = table.group_by(["context", "item"], use_threads=False).aggregate([("p", "mean")])
    for row in every.to_pylist():
        items.setdefault(row["context"], {})[row["item"]] = row["p_mean"]
    spreads = _table(path / SPREADS, ["context", "entropy"])
    entropies = _by_context(spreads, [("entropy", "mean")])
    return {
        context: Reading(
            p_target=row["p_mean"],
            p_any=math.fsum(items[context].values()),
            unresolved=row["uncovered_mean"],
            log_form=math.nan if row["log_form_mean"] is None else row["log_form_mean"],
            entropy=entropies[context]["entropy_mean"],
            items=items[context],
            answers=tuple(row["p_list"]),
        )
        for context, row in means.items()
    }


def _table(path: Path, columns: list[str]) -> pa.Table:
    with reading(path):
        return pq.read_table(path, columns=columns, use_threads=False)


def _by_context(table: pa.Table, wanted: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    found = table.group_by("context", use_threads=False).aggregate(wanted)
    return {row["context"]: row for row in found.to_pylist()}


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
    read: dict[tuple[str, str], Mapping[str, Reading]] = field(default_factory=dict)
    """The readings so far, by eval step and target."""

    def lacks(self, step: Step) -> str:
        """Why there is no artifact of `step`; empty if there is one."""
        if self.store.find(step):
            return ""
        return self.failures.get(digest(step)) or NOT_BUILT

    def readings(self, step: Step, target: str) -> Mapping[str, Reading]:
        """The readings of an eval step; none if it is not there."""
        key = (digest(step), target)
        if key not in self.read:
            found = self.store.find(step)
            self.read[key] = readings(found.path, target) if found else {}
        return self.read[key]

    def losses(self, step: Step) -> Losses:
        """The losses of a train step; not measured if it is not there."""
        found = self.store.find(step)
        return losses(found.path) if found else Losses()

    def training(self, step: Step) -> Training | None:
        """The account of a train step; None if it is not there."""
        found = self.store.find(step)
        return training(found.path) if found else None
