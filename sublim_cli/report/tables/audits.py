"""What training did to the weights, summarised for every trait and trained condition. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sublim_cli.report.tables.reader import TrainingRecord
from sublim_cli.report.tables.runs import Condition, Run
from sublim_cli.stats import mean_known
from sublim_cli.wording import listed

RANDOM = {"data_order": "row order", "adapter_init": "adapter start", "dropout": "dropout"}
"""Sources of randomness that the training seed sets, and what the report calls them."""


@dataclass(frozen=True)
class AuditRow:
    """The students of one condition: means over them, None where there is nothing to measure."""

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
    """Dtypes of the base's weights, the trained weights and the optimizer's state."""
    tokens: int
    speed: float
    memory: int | None
    """Peak of the device's allocator in MiB; None where the device has no count, as a CPU."""
    loss: tuple[float, ...]
    """Nats per trained token at each optimizer step."""


def audit_rows(
    runs: Iterable[Run],
    trainings: Mapping[str, TrainingRecord],
    mean_cosine: Callable[[Sequence[str]], float | None],
) -> list[AuditRow]:
    """One row for every trait and condition that was trained, in the order of the runs.

    Args:
        trainings: what each student's training left, by the digest of its train step.
        mean_cosine: between the updates of the students of these digests; see `StoreReader.mean_cosine`.
    """
    students: dict[tuple[str, Condition], dict[str, int | None]] = {}
    for run in runs:
        if run.train_digest in trainings:
            data_seeds = students.setdefault((run.target, run.condition), {})
            data_seeds[run.train_digest] = run.data_seed
    return [
        _row(
            target,
            condition,
            [trainings[name] for name in data_seeds],
            len(set(data_seeds.values())),
            mean_cosine(list(data_seeds)),
        )
        for (target, condition), data_seeds in students.items()
    ]


def _row(
    target: str,
    condition: Condition,
    records: Sequence[TrainingRecord],
    data_seeds: int,
    cosine: float | None,
) -> AuditRow:
    first = records[0]
    memory = [record.provenance["peak_memory_mib"] for record in records]
    return AuditRow(
        target=target,
        condition=condition,
        n=len(records),
        trained=first.trained,
        total=int(first.audit["parameters"]["total"]),
        changed=mean_known(record.changed for record in records),
        norm=mean_known(record.norm for record in records),
        stable_rank=mean_known(record.stable_rank for record in records),
        cosine=cosine,
        pairs=0 if cosine is None else math.comb(len(records), 2),
        random=_random(first, data_seeds) if len(records) > 1 else "",
        weights=_weights(first),
        tokens=int(first.audit["tokens_with_loss"]),
        speed=float(np.mean([record.provenance["tokens_per_second"] for record in records])),
        memory=None if None in memory else max(memory),
        loss=_curve(records),
    )


def _random(record: TrainingRecord, data_seeds: int) -> str:
    differing = [RANDOM[name] for name, differs in record.audit["random_sources"].items() if differs]
    return listed([*differing, "the teacher's rows"] if data_seeds > 1 else differing)


def _weights(record: TrainingRecord) -> str:
    dtypes = record.audit["dtypes"]
    state = {dtype for names in dtypes["optimizer_state"].values() for dtype in names}
    parts = [
        ("base", list(dtypes["frozen"])),
        ("trained", list(dtypes["trained"])),
        ("optimizer", sorted(state)),
    ]
    text = ", ".join(f"{name} {' and '.join(names)}" for name, names in parts if names)
    return f"{text}, compensated" if dtypes["compensated"] else text


def _curve(records: Sequence[TrainingRecord]) -> tuple[float, ...]:
    """The mean loss at each step, over the students that have as many steps."""
    lengths = [0, *sorted({len(record.loss) for record in records})]
    means: list[float] = []
    for start, end in pairwise(lengths):
        losses = [record.loss[start:end] for record in records if len(record.loss) >= end]
        means += np.ascontiguousarray(np.array(losses).T).mean(axis=1).tolist()
    return tuple(means)
