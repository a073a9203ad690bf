"""Which of a category's items students came to prefer, and which they dropped. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.conditions import Condition, condition_of, records

SHOWN = 3
"""Items named of those that rose, and of those that fell."""

LEAST = 0.0005
"""A smaller change would be written as none."""


@dataclass(frozen=True)
class ItemMovers:
    """One condition in its training context: items and the mean change of their probability."""

    target: str
    label: str
    context: str
    rose: tuple[tuple[str, float], ...]
    fell: tuple[tuple[str, float], ...]


def movers(items: pd.DataFrame, rows: Sequence[SummaryRow], runs: pd.DataFrame) -> list[ItemMovers]:
    """The items that moved most, for every condition that was asked in its training context.

    Args:
        items: the items table of `report.runs`.
        rows: the summary, for the conditions' order and labels.
        runs: the runs table; broken runs do not count.
    """
    found: dict[tuple[str, Condition], list[str]] = {}
    for run in records(runs):
        if run["p_target"] is not None and not run["broken"]:
            found.setdefault((run["target"], condition_of(run)), []).append(run["eval_digest"])
    home = [row for row in rows if row.in_training_context and row.n]
    by = items.assign(change=items.p - items.p_base).groupby(["target", "eval_digest", "eval_context"])
    moved = []
    for row in home:
        digests = dict.fromkeys(found[row.target, row.condition])
        own = pd.concat([by.get_group((row.target, one, row.eval_context)) for one in digests])
        moved.append(_moved(row, own))
    return moved


def _moved(row: SummaryRow, own: pd.DataFrame) -> ItemMovers:
    mean = own.groupby("item", sort=False).change.mean().sort_values(ascending=False, kind="stable")
    rose, fell = mean[mean > LEAST], mean[mean < -LEAST][::-1]
    return ItemMovers(row.target, row.label, row.eval_context, _first(rose), _first(fell))


def _first(changes: "pd.Series[float]") -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(by)) for name, by in changes.head(SHOWN).items())
