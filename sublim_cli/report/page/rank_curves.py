"""What a figure shows, before it is drawn: which rows, on which line, at which place. Pure."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sublim_cli.report.collect import Results
from sublim_cli.report.page.summary import SummaryRow, summarise
from sublim_cli.report.tables.conditions import Condition, Run, condition_of, records
from sublim_cli.wording import bounds, count, listed, probability

COLUMN = 1.2
"""Octaves from the highest rank to the first column of what has no place among the ranks."""

APART = 0.2
"""Octaves between lines that share a tick."""

TOLD_APART = 3
"""Conditions of one column that have an entry each in the legend."""


@dataclass(frozen=True)
class RankCurve:
    """P(target) over rank for one trait, in the context the students were trained in.

    Each of `runs` carries its `condition`.
    """

    target: str
    context: str
    rows: tuple[SummaryRow, ...]
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"P({self.target}) by LoRA rank, asked in the training context ({self.context})"

    @property
    def description(self) -> str:
        """The figure's content in words, for those who do not see it."""
        return "; ".join(_told(row) for row in self.rows) + "."

    @property
    def caption(self) -> str:
        """What the marks mean and how many runs stand behind them."""
        counts = sorted({row.n for row in self.rows if row.condition.role != "base" and row.n})
        runs = listed([str(one) for one in counts]) or "no"
        return (
            f"Small dots are training runs, large ones their mean ({runs} to a condition) with a "
            "95 % t interval over runs; the band spans those of the controls; the dashed line is the "
            f"untouched base in the same context ({self.context})."
        )

    @property
    def trained(self) -> list[SummaryRow]:
        """The rows without the base: students first, then controls."""
        trained = [row for row in self.rows if row.condition.role != "base"]
        return sorted(trained, key=lambda row: row.condition.role == "control")


def rank_curves(results: Results) -> list[RankCurve]:
    """One curve for every trait and training context that the students were also asked in.

    Where some compare conditions, a context with a single one is left to the context matrix.
    """
    rows = summarise(results)
    runs = [{**run, "condition": condition_of(run)} for run in records(results.runs)]
    students: dict[tuple[str, str, str], set[Condition]] = {}
    for row in rows:
        if row.in_training_context and row.p_target:
            own = students.setdefault((row.category, row.target, row.eval_context), set())
            own.update([row.condition] if row.condition.role == "student" else [])
    several = [key for key, conditions in students.items() if len(conditions) > 1]
    return [
        RankCurve(
            target=key[1],
            context=key[2],
            rows=tuple(row for row in rows if _belongs(row, key)),
            runs=tuple(run for run in runs if _drawn(run, key)),
        )
        for key in several or students
    ]


def series(rows: Sequence[SummaryRow]) -> dict[str, list[SummaryRow]]:
    """Ranks that differ in nothing else are one line.

    Every other condition stands alone in the legend, unless its column holds more than `TOLD_APART`.
    """
    found: dict[str, list[SummaryRow]] = {}
    beside = Counter(column(row) for row in rows if rank(row) is None)
    for row in rows:
        found.setdefault(_series(row, beside[column(row)]), []).append(row)
    return found


def _series(row: SummaryRow, beside: int) -> str:
    if rank(row) is not None:
        return row.family
    if beside <= TOLD_APART:
        return row.label
    return f"{count(beside, 'condition')} of {_COLUMNS.get(column(row), column(row))}"


_COLUMNS = {"control": "controls", "full": "full fine-tuning"}


def places(rows: Sequence[SummaryRow]) -> dict[str, float]:
    """The x axis: ranks at their log2, and after them a column each for the other conditions."""
    ranks = sorted({one for row in rows if (one := rank(row)) is not None})
    found = {str(one): math.log2(one) for one in ranks}
    others = [column(row) for row in rows if rank(row) is None]
    end = max(found.values(), default=-COLUMN)
    for name in sorted(set(others), reverse=True):
        half = APART * (others.count(name) - 1) / 2  # what shares the column stands side by side
        found[name] = end + COLUMN + half
        end = found[name] + half
    return found


def side_by_side(lines: Mapping[str, Sequence[SummaryRow]]) -> Iterator[tuple[str, float, SummaryRow]]:
    """Every row with its line and how far it stands to the side of its tick, in octaves."""
    sharing: dict[str, list[tuple[str, SummaryRow]]] = {}
    for name, rows in lines.items():
        for row in rows:
            sharing.setdefault(column(row), []).append((name, row))
    for own in sharing.values():
        for place, (name, row) in enumerate(own):
            yield name, APART * (place - (len(own) - 1) / 2), row


def rank(row: SummaryRow) -> int | None:
    """The rank a row stands at; a control's is not a point of the curve."""
    return row.condition.rank if row.condition.role == "student" else None


def column(row: SummaryRow) -> str:
    """The tick a row stands over."""
    if row.condition.role == "control":
        return "control"
    return row.condition.method if rank(row) is None else str(rank(row))


def _belongs(row: SummaryRow, key: tuple[str, str, str]) -> bool:
    trained_here = row.condition.role == "base" or row.in_training_context
    return (row.category, row.target, row.eval_context) == key and trained_here


def _drawn(run: Run, key: tuple[str, str, str]) -> bool:
    here = (run["category"], run["target"], run["eval_context"]) == key
    return here and run["train_context"] == key[2] and run["p_target"] is not None


def _told(row: SummaryRow) -> str:
    if row.p_target is None:
        return f"{row.label}: {row.state}"
    marks = [f"n = {row.n}"] if row.condition.role != "base" else []
    marks += [f"{row.broken} broken"] if row.broken else []
    value = f"{row.label}: {probability(row.p_target.mean)} {bounds(row.p_target)}".rstrip()
    return f"{value} ({', '.join(marks)})" if marks else value
