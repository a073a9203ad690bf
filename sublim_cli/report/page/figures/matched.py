"""Four curves over LoRA rank: at one learning rate, at each rank's best, at equal loss, at equal norm."""

import math
from functools import partial

import altair as alt

from sublim_cli.report.page.figures.curve_layers import (
    BESIDE,
    HEIGHT,
    curve_layers,
    fan,
    line_across,
    mean_mark,
    rank_axis,
    run_mark,
)
from sublim_cli.report.page.figures.figure import WIDTH, Figure, layered, slug
from sublim_cli.report.rates.choose import Row
from sublim_cli.report.rates.panels import Panel
from sublim_cli.wording import count, difference, listed, with_bounds

APART = 0.16
"""Octaves between curves at one rank."""

COLUMN = 1.4
"""Octaves from the highest rank to the first precision of full fine-tuning, and on to the next."""


def matched_figure(panel: Panel) -> Figure:
    """The curves of one trait, and full fine-tuning at rates chosen by the same rules."""
    references = {curve.kind: curve.reference for curve in panel.curves}
    apart = [
        curve.title for curve in panel.full if curve.points and curve.reference != references[curve.kind]
    ]
    lacks = [f"{curve.title}: {listed(curve.lacks)}" for curve in panel.curves if curve.lacks]
    caption = [
        "Each line chooses the learning rate of every rank by another rule, never by the trait.",
        "Marks are means over runs with a 95 % t interval, small dots the runs;",
        "full fine-tuning stands to the right, by precision.",
    ]
    if apart:
        caption.append(f"Over the seeds that both have, its reference values differ: {listed(apart)}.")
    if lacks:
        caption.append(f"Lacking: {'; '.join(lacks)}.")
    return Figure(
        slug=slug("four curves", panel.target, panel.context, panel.students),
        title=panel.title,
        description=panel.describe(),
        caption=" ".join(caption),
        chart=_curves_chart(panel),
    )


def _curves_chart(panel: Panel) -> alt.LayerChart:
    ranks = sorted(
        {point.row for curve in panel.curves for point in curve.points if isinstance(point.row, int)}
    )
    ticks = {str(rank): math.log2(rank) for rank in ranks}
    last = max(ticks.values())
    full = dict.fromkeys(_tick(point.row) for curve in panel.full for point in curve.points)
    ticks |= {name: last + COLUMN * column for column, name in enumerate(full, start=1)}

    names = {curve.kind: curve.title for curve in panel.curves if curve.points}
    offsets = {kind: APART * (index - (len(names) - 1) / 2) for index, kind in enumerate(names)}
    placed = [
        (names[curve.kind], ticks[_tick(point.row)] + offsets[curve.kind], point)
        for curve in (*panel.curves, *panel.full)
        if curve.kind in names
        for point in curve.points
    ]
    title = f"P({panel.target}) minus the base"
    y = partial(alt.Y, type="quantitative", title=title, scale=alt.Scale(nice=True))
    means = []
    for name, x, point in placed:
        if point.difference is None:
            continue  # every run broke
        is_rank = isinstance(point.row, int)  # a line joins ranks, not precisions
        students = f"{panel.students} rank {point.row}" if is_rank else f"full fine-tuning, {point.row}"
        edge = f", the {point.edge} tried" if point.edge else ""
        broken = f", {count(point.broken, 'run')} broken" if point.broken else ""
        value = with_bounds(difference(point.difference.mean), point.difference)
        condition = f"{students}, lr {point.rates}{edge}"
        means.append(mean_mark(name, x, point.difference, condition, f"{value}{broken}", joined=is_rank))
    runs = [
        run_mark(
            name,
            x + BESIDE / 2 + fan(index),
            value,
            f"train seed {seeds[0]}, data seed {seeds[1]}",
            difference(value),
        )
        for name, x, point in placed
        for index, (seeds, value) in enumerate(sorted(point.runs.items()))
    ]
    layers = [
        *line_across(0.0, "the untouched base", y),
        *curve_layers(list(names.values()), means, runs, rank_axis(ticks), y, title),
    ]
    return layered(layers, WIDTH, HEIGHT)


def _tick(row: Row) -> str:
    return str(row) if isinstance(row, int) else f"full {row}"
