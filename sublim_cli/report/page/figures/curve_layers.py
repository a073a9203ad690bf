"""The layers of a curve: a point for every run, means with their intervals, lines, a legend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from sublim_cli.report.page.figures.figure import chart, named_ticks, series_encodings, tooltips
from sublim_cli.stats import Interval

Mark = dict[str, Any]
"""What one mark shows, and where: a row of a layer's data."""

YAxis = Callable[[str], alt.Y]
"""The y encoding of a field; all fields of a figure share its title and its scale."""

HEIGHT = 260
"""Pixels of a curve over ranks."""

BESIDE = 0.1
"""Octaves from a mean to the marks of its runs."""

CROWDED = 8
"""With more ticks than this their labels are tilted."""

FADED = 0.12
"""Opacity of the series that are not selected in the legend."""

ACROSS = {"x": alt.value(0), "x2": alt.value("width")}
"""From the left edge of a figure to the right one."""


def mean_mark(series: str, x: float, interval: Interval, condition: str, value: str, *, joined: bool) -> Mark:
    """A condition's mean, its interval and its tooltip's `value`. A line joins the `joined` of a series."""
    return {
        "series": series,
        "joined": joined,
        "x": x,
        "y": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "condition": condition,
        "value": value,
        "n": interval.n,
    }


def run_mark(series: str, x: float, y: float, name: str, value: str, broken: str = "") -> Mark:
    """One run; `broken` is why its preference cannot be read, or empty."""
    return {
        "series": series,
        "x": x,
        "y": y,
        "run": name,
        "value": value,
        "state": broken or "not broken",
        "broken": bool(broken),
    }


def fan(index: int) -> float:
    """How far aside a run stands. No random jitter: the same results draw the same figure."""
    return 0.035 * (index % 5)


def curve_layers(
    names: Sequence[str],
    means: Sequence[Mark],
    runs: Sequence[Mark],
    x: alt.X,
    y: YAxis,
    title: str,
    *,
    selectable: bool = True,
) -> list[alt.Chart]:
    """Lines, intervals, means and runs of the series `names`, from the marks of `mean_mark` and `run_mark`.

    Args:
        title: of the y axis and of its value in the tooltips.
        selectable: a click on a series in the legend fades the others.
    """
    color, shape = series_encodings(names)
    selected = alt.selection_point(name="picked", fields=["series"], bind="legend")
    selectable = selectable and bool(means)  # the legend is that of the means
    encodings = {"x": x, "y": y("y"), "color": color}
    if selectable:
        encodings["opacity"] = alt.when(selected).then(alt.value(1)).otherwise(alt.value(FADED))
    run_encodings = encodings | {"tooltip": tooltips({"run": "Run", "value": title, "state": "State"})}
    stroke = {"strokeWidth": 1.5, "aria": False}
    lines = chart(mark for mark in means if mark["joined"]).mark_line(**stroke)
    intervals = chart(mark for mark in means if mark["low"] is not None).mark_rule(**stroke)
    points = chart(means).mark_point(filled=True, size=70, opacity=1)
    points = points.add_params(selected) if selectable else points
    intact = chart(run for run in runs if not run["broken"])
    broken = chart(run for run in runs if run["broken"])
    return [
        lines.encode(**encodings),
        intervals.encode(**encodings | {"y": y("low"), "y2": "high"}),
        points.encode(
            shape=shape,
            tooltip=tooltips({"condition": "Condition", "value": title, "n": "Runs"}),
            **encodings,
        ),
        intact.mark_point(filled=True, size=16, opacity=0.75, aria=False).encode(**run_encodings),
        broken.mark_point(shape="cross", filled=False, size=70, opacity=1, aria=False).encode(
            **run_encodings
        ),
    ]


def line_across(height: float, label: str, y: YAxis) -> list[alt.Chart]:
    """A dashed line at a height, with its name on it."""
    base = chart([{"y": height, "label": label}])
    return [
        base.mark_rule(strokeDash=[5, 4], aria=False).encode(y=y("y"), **ACROSS),
        base.mark_text(align="left", dx=3, dy=-6, fontSize=11).encode(
            y=y("y"), x=alt.value(0), text="label:N"
        ),
    ]


def rank_axis(ticks: Mapping[str, float], marks: Sequence[float] = ()) -> alt.X:
    """The x axis over ranks (their log2), wide enough for the marks of runs at the last tick."""
    first, last = min(ticks.values()), max(ticks.values())
    domain = [min([first - 0.6, *marks]), max([last + 0.6, *(mark + 0.3 for mark in marks)])]
    return alt.X(
        "x:Q",
        title="LoRA rank" if any(name.isdecimal() for name in ticks) else None,
        axis=named_ticks(ticks, labelAngle=-45 if len(ticks) > CROWDED else 0),
        scale=alt.Scale(domain=domain, nice=False),
    )
