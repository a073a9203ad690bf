"""The marks of a curve: a point for every run, means with their intervals, a line, a legend. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.tables.conditions import Run
from sublim_cli.stats import Interval
from sublim_cli.wording import bounds, probability

Values = dict[str, Any]
"""What one mark shows, and where."""


@dataclass(frozen=True)
class Curves:
    """Means and runs of the series `names`, over one x axis; made by `mean` and `run`."""

    names: Sequence[str]
    means: Sequence[Values]
    runs: Sequence[Values]


def mean(
    series: str, x: float, interval: Interval, condition: str, *, joined: bool, told: str = ""
) -> Values:
    """A condition's mean with its interval, at x. A line joins those of a series that are `joined`.

    `told` is the value in words if it is no probability.
    """
    return {
        "series": series,
        "joined": joined,
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
    picks = pick and bool(curves.means)  # the legend belongs to the means
    look = f.series(curves.names)
    shared: dict[str, f.Spec] = {"x": x, "color": look["color"], **({"opacity": _faded()} if picks else {})}
    hint = f.hints(condition="Condition", value=y["title"], n="Runs")
    points = f.layer(
        curves.means,
        {"type": "point", "filled": True, "size": 70, "opacity": 1},
        y=y,
        shape=look["shape"],
        **shared,
        **hint,
    )
    layers = [
        f.layer([one for one in curves.means if one["joined"]], _STROKE | {"type": "line"}, y=y, **shared),
        f.layer(
            [one for one in curves.means if one["low"] is not None],
            _STROKE | {"type": "rule"},
            y={**y, "field": "low"},
            y2={"field": "high"},
            **shared,
        ),
        points | ({"params": [_PICKED]} if picks else {}),
        *_run_layers(curves.runs, shared, y),
    ]
    return [one for one in layers if one["data"]["values"]]


_STROKE: f.Spec = {"strokeWidth": 1.5, "aria": False}
_PICKED: f.Spec = {"name": "picked", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}

ACROSS: dict[str, f.Spec] = {"x": {"value": 0}, "x2": {"value": "width"}}
"""From edge to edge."""


def rule_across(height: float | None, label: str, y: f.Spec) -> list[f.Spec]:
    """A dashed line at a height, with its name on it; nothing at None."""
    if height is None:
        return []
    values = [{"y": height, "label": label}]
    name: f.Spec = {"type": "text", "align": "left", "dx": 3, "dy": -6, "fontSize": 11, **f.TEXT}
    return [
        f.layer(values, {"type": "rule", "strokeDash": [5, 4], **f.LINE, "aria": False}, y=y, **ACROSS),
        f.layer(values, name, y=y, x={"value": 0}, text=f.category("label")),
    ]


def fan(index: int) -> float:
    """How far aside a run stands. A fan instead of random jitter: the same results draw the same figure."""
    return 0.035 * (index % 5)


def _run_layers(runs: Sequence[Values], shared: Mapping[str, f.Spec], y: f.Spec) -> Iterator[f.Spec]:
    hint = f.hints(run="Run", value=y["title"], state="State")
    whole = {"type": "point", "filled": True, "size": 16, "opacity": 0.75, "aria": False}
    broken = {"type": "point", "shape": "cross", "filled": False, "size": 70, "opacity": 1, "aria": False}
    for lost, mark in ((False, whole), (True, broken)):
        yield f.layer([one for one in runs if one["broken"] is lost], mark, y=y, **shared, **hint)


def _faded() -> f.Spec:
    """The opacity of a mark: what the legend did not pick steps back."""
    return {"condition": {"param": "picked", "value": 1}, "value": 0.12}
