"""Runs summarised: a row for every trait, condition and eval context; contexts side by side; items. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from sublim_cli.report.collect import Results
from sublim_cli.report.tables.runs import Condition, Run, distinguishing
from sublim_cli.stats import Interval, estimate, mean_known
from sublim_cli.wording import condition_label

SHOWN = 3
"""Items named of those that rose, and of those that fell."""

LEAST = 0.0005
"""A smaller change would be written as 0.000."""


@dataclass(frozen=True)
class SummaryRow:
    """The runs of one condition in one eval context.

    Broken and missing runs are counted, not averaged. The intervals are 95 % t intervals over runs,
    clustered by the seeds that several share; with one run they have no bounds, with none they are None.
    `label` is what a person calls the condition, `family` the same without its rank.
    """

    category: str
    target: str
    condition: Condition
    label: str
    family: str
    eval_context: str
    n: int
    broken: int
    missing: int
    p_target: Interval | None
    base: float | None
    difference: Interval | None
    delta_log_p: float | None
    """How far log P(the answer opens with the target's plain name) moved from the base's, in nats."""
    entropy: float | None
    """Of the answer, in nats, over the items and one more outcome: none of them."""
    entropy_base: float | None
    p_any: float | None
    p_any_base: float | None
    number_loss: float | None
    number_loss_before: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as likely the target is as for the base, in the same context."""
        return self.p_target.mean / self.base if self.p_target and self.base else None

    @property
    def state(self) -> str:
        """`ok`, or why there is no mean: `broken` (all that ran are) or `missing` (none ran)."""
        if self.n:
            return "ok"
        return "broken" if self.broken else "missing"

    @property
    def in_training_context(self) -> bool:
        """Whether the students were trained on this very context."""
        return self.eval_context == self.condition.train_context


_Key = tuple[tuple[str, str], Condition, str]
"""Category and target, condition, eval context."""


def summarise(results: Results) -> list[SummaryRow]:
    """Trait by trait in the study's order: base, control, ranks ascending, full; then contexts."""
    groups: dict[_Key, list[Run]] = {}
    for run in results.runs:
        key = ((run.category, run.target), run.condition, run.eval_context)
        groups.setdefault(key, []).append(run)
    traits = list(dict.fromkeys(trait for trait, _, _ in groups))
    contexts = list(dict.fromkeys(context for _, _, context in groups))
    conditions = {condition for _, condition, _ in groups}

    def order(key: _Key) -> tuple[Any, ...]:
        """Training contexts come in the order that they are asked in, others after them."""
        trait, condition, context = key
        *first, trained_in, settings = condition.order
        position = contexts.index(trained_in) if trained_in in contexts else len(contexts)
        return traits.index(trait), *first, position, trained_in, settings, contexts.index(context)

    return [_row(key, distinguishing(key[1], conditions), groups[key]) for key in sorted(groups, key=order)]


def _row(key: _Key, differences: Sequence[str], runs: Sequence[Run]) -> SummaryRow:
    (category, target), condition, context = key
    role, method = condition.role, condition.method
    built = [run for run in runs if run.p_target is not None]
    intact = [run for run in built if not run.broken]
    log_form = mean_known(run.log_form for run in intact)
    log_form_base = mean_known(run.log_form_base for run in intact)
    return SummaryRow(
        category=category,
        target=target,
        condition=condition,
        label=condition_label(role, method, condition.rank, differences),
        family=condition_label(role, method, None, differences),
        eval_context=context,
        n=len(intact),
        broken=len(built) - len(intact),
        missing=len(runs) - len(built),
        p_target=column_interval(intact, "p_target", 0.0, 1.0),
        base=mean_known(run.p_target_base for run in runs),
        difference=column_interval(intact, "difference", -1.0, 1.0),
        delta_log_p=None if log_form is None or log_form_base is None else log_form - log_form_base,
        entropy=mean_known(run.entropy for run in built),
        entropy_base=mean_known(run.entropy_base for run in runs),
        # These two show how a broken condition broke, so broken runs count.
        p_any=mean_known(run.p_any for run in built),
        number_loss=mean_known(run.number_loss for run in built),
        p_any_base=mean_known(run.p_any_base for run in runs),
        number_loss_before=mean_known(run.number_loss_before for run in built),
    )


def column_interval(runs: Sequence[Run], column: str, least: float, most: float) -> Interval | None:
    """The mean of a column over the runs that have a value, its 95 % interval cut to what a value can be."""
    values = [(value, run.seeds) for run in runs if (value := getattr(run, column)) is not None]
    if not values:
        return None
    return estimate(*zip(*values, strict=True)).interval().within(least, most)


@dataclass(frozen=True)
class MatrixRow:
    """One condition across the contexts; None where it was not asked."""

    label: str
    condition: Condition
    tiles: tuple[SummaryRow | None, ...]


@dataclass(frozen=True)
class ContextMatrix:
    """The conditions of one trait, without the base: it is what they are compared with."""

    target: str
    contexts: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def context_matrices(summary: Sequence[SummaryRow]) -> list[ContextMatrix]:
    """A matrix for every trait."""
    trained = (row for row in summary if row.condition.role != "base")
    matrices = []
    for (_, target), group in groupby(trained, key=lambda row: (row.category, row.target)):
        rows = list(group)
        contexts = tuple(dict.fromkeys(row.eval_context for row in rows))
        tiles = {(row.condition, row.eval_context): row for row in rows}
        labels = {row.condition: row.label for row in rows}
        matrix_rows = (
            MatrixRow(label, condition, tuple(tiles.get((condition, context)) for context in contexts))
            for condition, label in labels.items()
        )
        matrices.append(ContextMatrix(target, contexts, tuple(matrix_rows)))
    return matrices


@dataclass(frozen=True)
class ItemMovers:
    """One condition in its training context: items and the mean change of their probability."""

    target: str
    label: str
    context: str
    rose: tuple[tuple[str, float], ...]
    fell: tuple[tuple[str, float], ...]


def movers(items: pd.DataFrame, rows: Sequence[SummaryRow], runs: Sequence[Run]) -> list[ItemMovers]:
    """The items that moved most, for every condition that was asked in its training context.

    `items` are those of `tables.frames.items_table`, `rows` give order and labels; broken runs do not count.
    """
    digests: dict[tuple[str, Condition], dict[str, None]] = {}
    for run in runs:
        if run.p_target is not None and not run.broken:
            digests.setdefault((run.target, run.condition), {})[run.eval_digest] = None
    by_run = items.assign(change=items.p - items.p_base).groupby(["target", "eval_digest", "eval_context"])
    moved = []
    for row in rows:
        if row.in_training_context and row.n:
            keys = [(row.target, digest, row.eval_context) for digest in digests[row.target, row.condition]]
            changes = pd.concat([by_run.get_group(key) for key in keys])
            means = changes.groupby("item", sort=False).change.mean()
            means = means.sort_values(ascending=False, kind="stable")
            rose, fell = means[means > LEAST], means[means < -LEAST][::-1]
            moved.append(ItemMovers(row.target, row.label, row.eval_context, _first(rose), _first(fell)))
    return moved


def _first(changes: "pd.Series[float]") -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(change)) for name, change in changes.head(SHOWN).items())
