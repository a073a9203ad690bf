"""P(target) over LoRA rank, with full fine-tuning and the controls in columns beside the ranks."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import altair as alt

from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures.curve_layers import (
    ACROSS,
    BESIDE,
    HEIGHT,
    YAxis,
    curve_layers,
    fan,
    line_across,
    mean_mark,
    rank_axis,
    run_mark,
)
from sublim_cli.report.page.figures.figure import WIDTH, Figure, chart, layered, series_encodings, slug
from sublim_cli.report.page.summary import SummaryRow, summarise
from sublim_cli.report.tables.runs import Condition, Run
from sublim_cli.wording import count, listed, probability, with_bounds

COLUMN = 1.2
"""Octaves from the highest rank to the first column of conditions without a rank."""

APART = 0.2
"""Octaves between lines that share a tick."""

LEGEND_ENTRIES = 3
"""Conditions of one column that each have an entry in the legend; more of them share one."""


def rank_figures(results: Results) -> Iterator[Figure]:
    """A curve for every trait and training context that the students were also asked in.

    Where some curves compare several conditions, those of a single one are left to the context matrix.
    """
    rows = summarise(results)
    students: Counter[tuple[str, str, str]] = Counter()  # conditions with a value
    for row in rows:
        if row.in_training_context and row.p_target:
            students[row.category, row.target, row.eval_context] += row.condition.role == "student"
    runs: dict[tuple[str, str, str], dict[Condition, list[Run]]] = {key: {} for key in students}
    for run in results.runs:
        key = run.category, run.target, run.eval_context
        if key in runs and run.train_context == run.eval_context:
            runs[key].setdefault(run.condition, []).append(run)
    for key in [key for key, conditions in students.items() if conditions > 1] or students:
        asked = [row for row in rows if (row.category, row.target, row.eval_context) == key]
        drawn = [row for row in asked if row.condition.role == "base" or row.in_training_context]
        yield _rank_figure(key[1], key[2], drawn, runs[key])


def _rank_figure(
    target: str, context: str, rows: Sequence[SummaryRow], runs: Mapping[Condition, Sequence[Run]]
) -> Figure:
    students = [row for row in rows if row.condition.role == "student"]
    controls = [row for row in rows if row.condition.role == "control"]
    base = [row.p_target.mean for row in rows if row.condition.role == "base" and row.p_target]
    lines, ticks = legend_lines([*students, *controls]), tick_positions([*students, *controls])
    names = {name: name.replace(f", trained in {context}", "") for name in lines}
    placed = [(names[name], ticks[tick(row)] + offset, row) for name, offset, row in _side_by_side(lines)]
    means = [
        mean_mark(
            name,
            x,
            row.p_target,
            row.label,
            with_bounds(probability(row.p_target.mean), row.p_target),
            joined=rank(row) is not None,
        )
        for name, x, row in placed
        if row.p_target
    ]
    run_marks = [
        run_mark(name, x + BESIDE + fan(index), p, run.name, probability(p), run.broken)
        for name, x, row in placed
        for index, run in enumerate(runs.get(row.condition, ()))
        if (p := run.p_target) is not None
    ]
    title = f"P({target})"
    x = rank_axis(ticks, [x for _, x, _ in placed])
    y = partial(alt.Y, type="quantitative", title=title, scale=alt.Scale(domainMin=0, nice=True))
    counts = [str(n) for n in sorted({row.n for row in (*students, *controls) if row.n})]
    layers = [
        *_control_band(placed, list(names.values()), y),
        *(layer for p in base for layer in line_across(p, f"untouched base {probability(p)}", y)),
        *curve_layers(list(names.values()), means, run_marks, x, y, title),
    ]
    return Figure(
        slug=slug("rank curve", target, context),
        title=f"P({target}) by LoRA rank, asked in the training context ({context})",
        description="; ".join(map(_described, rows)) + ".",
        caption=(
            f"Small dots are training runs, large ones their mean ({listed(counts) or 'no'} to a condition) "
            "with a 95 % t interval over runs; the band spans the intervals of the controls; the dashed line "
            f"is the untouched base in the same context ({context})."
        ),
        chart=layered(layers, WIDTH, HEIGHT),
    )


def legend_lines(rows: Sequence[SummaryRow]) -> dict[str, list[SummaryRow]]:
    """The rows of each entry of the legend: one for conditions that differ in nothing but their rank.

    Each without a rank has one of its own, unless its column has more than `LEGEND_ENTRIES`.
    """
    lines: dict[str, list[SummaryRow]] = {}
    columns = Counter(tick(row) for row in rows if rank(row) is None)
    titles = {"control": "controls", "full": "full fine-tuning"}
    for row in rows:
        if rank(row) is not None:
            name = row.family
        elif columns[tick(row)] <= LEGEND_ENTRIES:
            name = row.label
        else:
            name = f"{count(columns[tick(row)], 'condition')} of {titles.get(tick(row), tick(row))}"
        lines.setdefault(name, []).append(row)
    return lines


def tick_positions(rows: Sequence[SummaryRow]) -> dict[str, float]:
    """The x axis: ranks at their log2, and after them a column each for the other conditions."""
    ranks = sorted({value for row in rows if (value := rank(row)) is not None})
    positions = {str(value): math.log2(value) for value in ranks}
    columns = [tick(row) for row in rows if rank(row) is None]
    end = max(positions.values(), default=-COLUMN)
    for name in sorted(set(columns), reverse=True):
        half = APART * (columns.count(name) - 1) / 2  # the conditions of a column stand side by side
        positions[name] = end + COLUMN + half
        end = positions[name] + half
    return positions


def rank(row: SummaryRow) -> int | None:
    """A student's rank. None for controls, which are no point of the curve, and methods without one."""
    return row.condition.rank if row.condition.role == "student" else None


def tick(row: SummaryRow) -> str:
    """The tick of the x axis that a row stands at."""
    if row.condition.role == "control":
        return "control"
    return row.condition.method if rank(row) is None else str(rank(row))


def _side_by_side(lines: Mapping[str, Sequence[SummaryRow]]) -> Iterator[tuple[str, float, SummaryRow]]:
    """Every row with its line and its distance from its tick, in octaves."""
    ticks: dict[str, list[tuple[str, SummaryRow]]] = {}
    for name, rows in lines.items():
        for row in rows:
            ticks.setdefault(tick(row), []).append((name, row))
    for sharing in ticks.values():
        for index, (name, row) in enumerate(sharing):
            yield name, APART * (index - (len(sharing) - 1) / 2), row


def _control_band(
    placed: Sequence[tuple[str, float, SummaryRow]], names: Sequence[str], y: YAxis
) -> Iterator[alt.Chart]:
    """From the lowest to the highest bound of the controls' intervals, in the colour of the first."""
    intervals = [
        (name, row.p_target.low, row.p_target.high)
        for name, _, row in placed
        if row.condition.role == "control" and row.p_target
        if row.p_target.low is not None and row.p_target.high is not None
    ]
    if intervals:
        series, lows, highs = zip(*intervals, strict=True)
        yield (
            chart([{"series": series[0], "low": min(lows), "high": max(highs)}])
            .mark_rect(opacity=0.13, aria=False)
            .encode(y=y("low"), y2="high", color=series_encodings(names)[0], **ACROSS)
        )


def _described(row: SummaryRow) -> str:
    if row.p_target is None:
        return f"{row.label}: {row.state}"
    marks = [f"n = {row.n}"] if row.condition.role != "base" else []
    marks += [f"{row.broken} broken"] if row.broken else []
    value = f"{row.label}: {with_bounds(probability(row.p_target.mean), row.p_target)}"
    return f"{value} ({', '.join(marks)})" if marks else value
