"""The share of a student's effect that sits at a set of tokens: a row for each run and set, then summaries.

The effect of a run is P(target) of the whole student minus that of its base, in the eval context. A gate
`X_only` keeps (P - base) of it, a gate `no_X` loses (student - P); the same for patches. Beside every set
stand random sets of as many tokens, averaged within each run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import digest
from sublim_cli.models.positions import is_only_set
from sublim_cli.pipeline import Cell, Study
from sublim_cli.preference.score import broken_reason
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.runs import AskedModel, Condition, distinguishing, trained_model
from sublim_cli.stats import Interval, Seeds, estimate, mean_known, ratio_interval
from sublim_cli.steps.files import LOCATED
from sublim_cli.steps.locate import ALL_TOKENS, NO_TOKENS, LocateStep, part_name
from sublim_cli.wording import condition_label

LEAST_EFFECT = 0.02
"""The smallest change of P(target) of which a single run shows shares; controls change by up to 0.005."""

_MEANS = ("p_target", "p_any", "tokens", "prompt_tokens", "unresolved")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedRun(AskedModel):
    """One student in one eval context with one set of tokens: the columns of `localisation.parquet`."""

    part: str  # as the recipe names the gate or patch
    measure: str  # kept | lost: what the set has of the effect
    control: int | None = None  # the random set's number, None for the named set
    control_kind: str = ""  # scattered | window: how the tokens of a random set lie; empty for the named set
    tokens: float | None = None  # of the set, mean over questions
    prompt_tokens: float | None = None
    p_target: float | None = None  # mean over questions, with the set alone or without it
    p_target_student: float | None = None
    p_target_base: float | None = None
    amount: float | None = None  # of the effect, kept or lost
    effect: float | None = None  # student minus base
    p_any: float | None = None
    unresolved: float | None = None
    broken: str = ""  # why the whole student cannot be read, or empty
    missing: str = ""  # why there is no value, or empty
    train_digest: str = ""
    locate_digest: str = ""


@dataclass(frozen=True)
class RunAmount:
    """How much of one run's effect a set has, and the mean of its random sets (None: none were drawn)."""

    seeds: Seeds
    effect: float
    amount: float
    random: float | None


@dataclass(frozen=True)
class Share:
    """The share of an effect that a set of tokens has, over the runs of one condition in one context.

    The intervals are Fieller's at 95 %, over runs. `share`, `random` (of sets of as many tokens) and `beyond`
    (their difference) are None where there is no effect to locate: its own interval holds zero, or a
    single run's is below `LEAST_EFFECT`.
    """

    category: str
    target: str
    condition: Condition
    label: str
    eval_context: str
    part: str
    measure: str
    tokens: float | None
    prompt_tokens: float | None
    n: int
    broken: int
    missing: int
    effect: Interval | None
    p_target: float | None
    p_any: float | None
    share: Interval | None
    random: Interval | None
    beyond: Interval | None
    points: tuple[RunAmount, ...]

    @property
    def title(self) -> str:
        """The condition and the context it was asked in: `owl, LoRA rank 8, asked in default`."""
        return f"{self.target}, {self.label}, asked in {self.eval_context}"

    @property
    def state(self) -> str:
        """`ok`, or why there is no share."""
        if not self.n:
            return "broken" if self.broken else "missing"
        return "ok" if self.share else "effect not told from zero"


def located_runs(study: Study, keys: Sequence[Mapping[str, str]], reader: StoreReader) -> list[LocatedRun]:
    """A row for every student, eval context and set of tokens, random sets included; `keys` of every cell."""
    return [
        row
        for cell, cell_keys in zip(study.cells, keys, strict=True)
        if cell.chain.locate
        for row in _cell_rows(cell, cell_keys, reader)
    ]


def shares(located: Sequence[LocatedRun]) -> list[Share]:
    """The rows summarised over runs: by trait and condition, then contexts and sets in their order."""
    traits = {key: i for i, key in enumerate(dict.fromkeys((row.category, row.target) for row in located))}
    contexts = {name: i for i, name in enumerate(dict.fromkeys(row.eval_context for row in located))}
    parts = {name: i for i, name in enumerate(dict.fromkeys(row.part for row in located))}
    conditions = {row.condition for row in located}

    def order(row: LocatedRun) -> tuple[Any, ...]:
        trait = traits[row.category, row.target]
        return trait, row.condition.order, contexts[row.eval_context], parts[row.part]

    grouped = groupby(sorted(located, key=order), key=order)
    return [_share(list(rows), conditions) for _, rows in grouped]


def share_tables(located: Sequence[LocatedRun]) -> list[list[Share]]:
    """The same shares by trait, condition and context; those of one table have the same runs and effect."""
    key = attrgetter("category", "target", "condition", "eval_context")
    return [list(rows) for _, rows in groupby(shares(located), key=key)]


def shares_document(rows: Iterable[Share]) -> list[dict[str, Any]]:
    """Shares as plain data, for `--json`."""
    return [{**asdict(row), "state": row.state} for row in rows]


def _cell_rows(cell: Cell, keys: Mapping[str, str], reader: StoreReader) -> Iterator[LocatedRun]:
    student_step, *part_steps = cell.chain.locate
    target = cell.recipe.trait.target
    ends = _means(student_step, reader, target)
    losses = reader.losses(cell.chain.train)
    for step in part_steps:
        part = step.spec.part
        kept = part is None or is_only_set(part.positions)
        row: dict[str, Any] = {
            **trained_model(cell, keys),
            "part": part_name(part),
            "measure": "kept" if kept else "lost",
            "locate_digest": digest(step),
        }
        if missing := reader.missing(step) or reader.missing(student_step):
            for context in step.spec.contexts:
                yield LocatedRun(**row, eval_context=context.name, missing=missing)
            continue
        for (context_name, _, control, kind), mean in _means(step, reader, target).items():
            student, base = ends[context_name, ALL_TOKENS, None, ""], ends[context_name, NO_TOKENS, None, ""]
            p_student, p_base = student["p_target"], base["p_target"]
            yield LocatedRun(
                **(row | mean),
                eval_context=context_name,
                control=control,
                control_kind=kind,
                p_target_student=p_student,
                p_target_base=p_base,
                amount=mean["p_target"] - p_base if kept else p_student - mean["p_target"],
                effect=p_student - p_base,
                broken=broken_reason(student["p_any"], base["p_any"], losses.after, losses.before),
            )


def _means(
    step: LocateStep, reader: StoreReader, target: str
) -> Mapping[tuple[str, str, int | None, str], dict[str, float]]:
    """`_MEANS` over the questions by context, set and control; empty for a step that is not built."""
    artifact = reader.find(step)
    if artifact is None:
        return {}
    cached = reader.cache.get(
        artifact, f"located {target}", lambda: {"sets": _sets(artifact.path / LOCATED, target)}
    )
    return {
        (row["context"], row["set"], row["control"], row["control_kind"]): {
            name: row[name] for name in _MEANS
        }
        for row in cached["sets"]
    }


def _sets(path: Path, target: str) -> list[dict[str, Any]]:
    table = pq.read_table(path, use_threads=False)
    drawn = pc.greater(table["samples"], 0)
    table = table.append_column("unresolved", pc.if_else(drawn, 0.0, table["uncovered"]))
    keys = ["context", "set", "control", "control_kind"]
    sums = table.group_by(keys, use_threads=False).aggregate([("p", "sum")]).to_pylist()
    p_any = {tuple(row[key] for key in keys): row["p_sum"] for row in sums}
    means = [(name, "mean") for name in ("p", "tokens", "prompt_tokens", "unresolved")]
    of_target = table.filter(pc.equal(table["item"], target)).group_by(keys, use_threads=False)
    return [
        {key: row[key] for key in keys}
        | {
            "p_target": row["p_mean"],
            "p_any": p_any[tuple(row[key] for key in keys)] / row["p_count"],
            "tokens": row["tokens_mean"],
            "prompt_tokens": row["prompt_tokens_mean"],
            "unresolved": row["unresolved_mean"],
        }
        for row in of_target.aggregate([*means, ("p", "count")]).to_pylist()
    ]


def _share(rows: Sequence[LocatedRun], conditions: set[Condition]) -> Share:
    first, condition = rows[0], rows[0].condition
    named = [row for row in rows if row.control is None]
    built = [row for row in named if not row.missing]
    unbroken = [row for row in built if not row.broken]
    points = run_amounts(rows)
    effects, seeds = [point.effect for point in points], [point.seeds for point in points]
    amounts = [point.amount for point in points]
    random = [point.random for point in points if point.random is not None]
    beyond = [point.amount - point.random for point in points if point.random is not None]
    all_drawn = len(random) == len(points)
    return Share(
        category=first.category,
        target=first.target,
        condition=condition,
        label=condition_label(
            first.role, condition.method, condition.rank, distinguishing(condition, conditions)
        ),
        eval_context=first.eval_context,
        part=first.part,
        measure=first.measure,
        tokens=mean_known(row.tokens for row in built),
        prompt_tokens=mean_known(row.prompt_tokens for row in built),
        n=len(unbroken),
        broken=len(built) - len(unbroken),
        missing=len(named) - len(built),
        effect=estimate(effects, seeds).interval() if points else None,
        p_target=mean_known(row.p_target for row in unbroken),
        p_any=mean_known(row.p_any for row in unbroken),
        share=_ratio(amounts, effects, seeds),
        random=_ratio(random, effects, seeds) if all_drawn else None,
        beyond=_ratio(beyond, effects, seeds) if all_drawn else None,
        points=tuple(points),
    )


def run_amounts(rows: Sequence[LocatedRun]) -> list[RunAmount]:
    """The amounts of a set of tokens in the runs of one condition that did not break, sorted by seeds.

    Args:
        rows: those of the set and of its random sets.
    """
    drawn: dict[tuple[Seeds, str], list[float]] = {}
    for row in rows:
        if row.control is not None and row.amount is not None:
            drawn.setdefault((row.seeds, row.locate_digest), []).append(row.amount)
    amounts = []
    for row in rows:
        if row.control is None and not row.broken and row.effect is not None and row.amount is not None:
            random = drawn.get((row.seeds, row.locate_digest))
            mean = sum(random) / len(random) if random else None
            amounts.append(RunAmount(row.seeds, row.effect, row.amount, mean))
    return sorted(amounts, key=lambda run: run.seeds)


def _ratio(amounts: Sequence[float], effects: Sequence[float], seeds: Sequence[Seeds]) -> Interval | None:
    if not effects or (len(effects) == 1 and abs(effects[0]) < LEAST_EFFECT):
        return None
    return ratio_interval(amounts, effects, seeds)
