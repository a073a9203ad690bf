"""What training did to the weights: one account for every trait and trained condition. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from sublim_cli.report.tables.conditions import Condition, condition_of, records
from sublim_cli.report.tables.reader import TrainingRecord
from sublim_cli.wording import listed

RANDOM = {"data_order": "row order", "adapter_init": "adapter start", "dropout": "dropout"}
"""What a person calls a source of randomness that the training seed moves."""


@dataclass(frozen=True)
class AuditRow:
    """The students of one condition; numbers are means over them, None where there is nothing to measure."""

    target: str
    condition: Condition
    n: int
    trained: int
    total: int
    changed: float | None
    """Share of the touched base weights that hold another number once the update is added."""
    norm: float | None
    stable_rank: float | None
    cosine: float | None
    """Mean over pairs of students, each the cosine between their updates; None with one student."""
    pairs: int
    random: str
    """What differed between the students, in words."""
    weights: str
    """Dtypes in which the base, the trained numbers and the optimizer's state are held."""
    tokens: int
    speed: float
    memory: int | None
    """Peak of the device's allocator in MiB; None where nobody counts, as on a CPU."""
    loss: tuple[float, ...]
    """Nats per trained token at each optimizer step."""


def audit_rows(runs: pd.DataFrame, trainings: Mapping[str, TrainingRecord]) -> list[AuditRow]:
    """One row for every trait and condition that was trained, in the order of the runs table.

    Args:
        runs: the table of `report.runs`.
        trainings: what each student's training left, by the digest of its train step.
    """
    students: dict[tuple[str, Condition], dict[str, int]] = {}
    for run in records(runs):
        if run["train_digest"] in trainings:
            own = students.setdefault((run["target"], condition_of(run)), {})
            own[run["train_digest"]] = run["data_seed"]
    return [
        _row(target, condition, [trainings[one] for one in own], len(set(own.values())))
        for (target, condition), own in students.items()
    ]


def _row(target: str, condition: Condition, own: Sequence[TrainingRecord], data_seeds: int) -> AuditRow:
    audit = own[0].audit
    memory = [one.provenance["peak_memory_mib"] for one in own]
    cosines = _cosines(own)
    return AuditRow(
        target=target,
        condition=condition,
        n=len(own),
        trained=own[0].trained,
        total=int(audit["parameters"]["total"]),
        changed=_mean(one.changed for one in own),
        norm=_mean(one.norm for one in own),
        stable_rank=_mean(one.stable_rank for one in own),
        cosine=_mean(cosines),
        pairs=len(cosines),
        random=_random(own, data_seeds),
        weights=_weights(own[0]),
        tokens=int(audit["tokens_with_loss"]),
        speed=float(np.mean([one.provenance["tokens_per_second"] for one in own])),
        memory=None if None in memory else max(memory),
        loss=_curve(own),
    )


def _cosines(own: Sequence[TrainingRecord]) -> list[float]:
    """The cosine between every two students' updates; empty where one updated nothing."""
    sketches = np.stack([one.sketch for one in own])
    products = (sketches @ sketches.T).astype(np.float64)  # rounded to 6 digits, of which a report shows 3
    sizes = np.sqrt(np.diag(products))
    if not sizes.all():
        return []
    upper = np.triu_indices(len(own), k=1)
    return [float(one) for one in (products / np.outer(sizes, sizes))[upper]]


def _random(own: Sequence[TrainingRecord], data_seeds: int) -> str:
    if len(own) == 1:
        return ""
    moved = [RANDOM[name] for name, moves in own[0].audit["random_sources"].items() if moves]
    return listed([*moved, "the teacher's rows"] if data_seeds > 1 else moved)


def _weights(one: TrainingRecord) -> str:
    held = one.audit["dtypes"]
    parts = [
        ("base", list(held["frozen"])),
        ("trained", list(held["trained"])),
        ("optimizer", sorted({dtype for dtypes in held["optimizer_state"].values() for dtype in dtypes})),
    ]
    text = ", ".join(f"{name} {' and '.join(dtypes)}" for name, dtypes in parts if dtypes)
    return f"{text}, compensated" if held["compensated"] else text


def _curve(own: Sequence[TrainingRecord]) -> tuple[float, ...]:
    """The mean loss at each step; students with more steps go on alone."""
    lengths = [0, *sorted({len(one.loss) for one in own})]
    means: list[float] = []
    for start, end in pairwise(lengths):
        going = [one.loss[start:end] for one in own if len(one.loss) >= end]
        means += np.ascontiguousarray(np.array(going).T).mean(axis=1).tolist()
    return tuple(means)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
