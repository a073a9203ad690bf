"""The marks of a curve: a point for every run, means with their intervals, a line, a legend. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sublim_cli.report.conditions import Run
from sublim_cli.report.figures import figure as f
from sublim_cli.report.wording import bounds, probability
from sublim_cli.stats import Interval

Values = dict[str, Any]
"""What one mark shows, and where."""


@dataclass(frozen=True)
class Curves:
    """Means and runs of the series `names`, over one x axis.

    A mean is made by `mean`, a run by `run`; `joined` are the series whose means a line joins.
    """

    names: Sequence[str]
    means: Sequence[Values]
    runs: Sequence[Values]
    joined: frozenset[str]


def mean(series: str, x: float, interval: Interval, condition: str, told: str = "") -> Values:
    """A condition's mean with its interval, at x; `told` is the value in words if it is no probability."""
    return {
        "series": series,
        "x": x,
        "y": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "condition": condition,
        "value": told or f"{probability(interval.mean)} {bounds(interval)}".rstrip(),
        "n": interval.n,
    }


def run(series: str, x: float, one: Run, field: str = "p_target", told: str = "") -> Values:
    """One run at x."""
    return {
        "series": series,
        "x": x,
        "y": one[field],
        "run": one["name"],
        "value": told or probability(one[field]),
        "state": one["broken"] or "answers as it should",
        "broken": bool(one["broken"]),
    }


def curve_layers(curves: Curves, x: f.Spec, y: f.Spec, *, pick: bool = True) -> list[f.Spec]:
    """Everything that belongs to the series. With `pick`, a click on the legend brings one out."""
    look = f.series(curves.names)
    title = y["title"]
    shared: dict[str, f.Spec] = {"x": x, "color": look["color"], **({"opacity": _faded(1)} if pick else {})}
    hint = f.hints(condition="Condition", value=title, n="Runs")
    points = f.layer(
        curves.means,
        {"type": "point", "filled": True, "size": 70, "opacity": 1},
        y=y,
        **shared,
        shape=look["shape"],
        **hint,
    )
    return [
        f.layer(
            [one for one in curves.means if one["series"] in curves.joined],
            {"type": "line", "strokeWidth": 1.5, "aria": False},
            y=y,
            **shared,
        ),
        f.layer(
            [one for one in curves.means if one["low"] is not None],
            {"type": "rule", "strokeWidth": 1.5, "aria": False},
            y={**y, "field": "low"},
            y2={"field": "high"},
            **shared,
        ),
        points | ({"params": _picked()} if pick else {}),
        *_run_layers(curves.runs, shared, y),
    ]


ACROSS: dict[str, f.Spec] = {"x": {"value": 0}, "x2": {"value": "width"}}
"""From edge to edge."""


def base_layers(base: float | None, y: f.Spec, label: str = "untouched base") -> list[f.Spec]:
    """A dashed line across, with its name on it."""
    if base is None:
        return []
    values = [{"y": base, "label": f"{label} {probability(base)}"}]
    return [
        f.layer(values, {"type": "rule", "strokeDash": [5, 4], **f.LINE, "aria": False}, y=y, **ACROSS),
        f.layer(
            values,
            {"type": "text", "align": "right", "dy": -6, "fontSize": 11, **f.TEXT},
            y=y,
            x={"value": "width"},
            text=f.category("label"),
        ),
    ]


def fan(index: int) -> float:
    """How far aside a run stands. A fan instead of random jitter: the same results draw the same figure."""
    return 0.035 * (index % 5)


def _run_layers(runs: Sequence[Values], shared: Mapping[str, f.Spec], y: f.Spec) -> Iterator[f.Spec]:
    hint = f.hints(run="Run", value=y["title"], state="State")
    whole = {"type": "point", "filled": True, "size": 16, "opacity": 0.75, "aria": False}
    broken = {"type": "point", "shape": "cross", "filled": False, "size": 70, "opacity": 1, "aria": False}
    for lost, mark in ((False, whole), (True, broken)):
        chosen = [one for one in runs if one["broken"] is lost]
        if chosen:
            yield f.layer(chosen, mark, y=y, **shared, **hint)


def _picked() -> list[f.Spec]:
    return [{"name": "picked", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}]


def _faded(opacity: float) -> f.Spec:
    return {"condition": {"param": "picked", "value": opacity}, "value": 0.12 * opacity}
