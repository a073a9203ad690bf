"""The share of an effect that each set of tokens has, and that of random sets of as many tokens."""

from collections.abc import Sequence

import altair as alt

from sublim_cli.report.page.figures.figure import (
    WIDTH,
    Figure,
    chart,
    layered,
    series_encodings,
    slug,
    tooltips,
)
from sublim_cli.report.tables.localisation import Share
from sublim_cli.wording import count, percent

ROW = 34
"""Pixels of a set: its own line and that of the random ones."""

SERIES = ("the set", "random sets of as many tokens")


def localisation_figure(rows: Sequence[Share]) -> Figure:
    """The shares of one condition asked in one context."""
    first = rows[0]
    return Figure(
        slug=slug("localisation", first.target, first.label, first.eval_context),
        title=f"Share of the effect kept or lost: {first.title}",
        description="; ".join(map(_described, rows)) + ".",
        caption=(
            "Marks are shares of the effect with Fieller's 95 % interval over runs: the share kept by a gate "
            "that applies the student at these tokens only, or lost by one that leaves it out there."
        ),
        chart=_share_chart([row for row in rows if row.share]),
    )


def _share_chart(rows: Sequence[Share]) -> alt.LayerChart:
    marks = [
        {
            "part": f"{row.part} ({row.measure})",
            "series": series,
            "x": share.mean,
            "low": share.low,
            "high": share.high,
            "value": percent(share),
            "runs": row.n,
        }
        for row in rows
        for series, share in zip(SERIES, (row.share, row.random), strict=True)
        if share is not None
    ]
    color, shape = series_encodings(SERIES)
    axis = {"title": "share of the effect", "axis": alt.Axis(format="%", tickCount=5)}
    names = alt.Axis(labelLimit=150, domain=False, ticks=False, grid=False)
    y = {
        "y": alt.Y("part:N", title=None, sort=None, axis=names),
        "yOffset": alt.YOffset("series:N", title=None, sort=list(SERIES)),
    }
    tooltip = tooltips({"part": "Tokens", "series": "Which", "value": "Share", "runs": "Runs"})
    layers = [
        chart([{"x": 0.0}, {"x": 1.0}])
        .mark_rule(strokeDash=[5, 4], aria=False)
        .encode(x=alt.X("x:Q", **axis), y=alt.value(0), y2=alt.value("height")),
        chart(mark for mark in marks if mark["low"] is not None)
        .mark_rule(strokeWidth=1.5, aria=False)
        .encode(x=alt.X("low:Q", **axis), x2="high", color=color, **y),
        chart(marks)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=alt.X("x:Q", **axis), color=color, shape=shape, tooltip=tooltip, **y),
    ]
    return layered(layers, WIDTH, ROW * len(rows))


def _described(row: Share) -> str:
    if row.share is None:
        return f"{row.part}: {row.state}"
    random = f", random sets {percent(row.random)}" if row.random else ""
    return f"{row.part}: {percent(row.share)} {row.measure}{random} ({count(row.n, 'run')})"
