"""Which of a category's items students came to prefer, and which they dropped. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.runs import Condition, Run

SHOWN = 3
"""Items named of those that rose, and of those that fell."""

LEAST = 0.0005
"""A smaller change would be written as 0.000."""


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

    Args:
        items: see `tables.frames.items_table`.
        rows: the summary, for the conditions' order and labels.
        runs: broken ones do not count.
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
