"""The four curves over LoRA rank: one learning rate, each rank's best, equal loss, equal norm. Pure."""

import math
from collections.abc import Iterator

from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.page.figures.points import Curves, Values, curve_layers, fan, rule_across
from sublim_cli.report.page.figures.ranks import BESIDE, HEIGHT, rank_axis
from sublim_cli.report.rates.choose import Row
from sublim_cli.report.rates.panels import Curve, CurvePoint, Panel
from sublim_cli.wording import bounds, count, difference, listed

APART = 0.16
"""Octaves between curves at one rank."""
COLUMN = 1.4
"""Octaves from the highest rank to the first precision of full fine-tuning, and on to the next."""


def has_curves(panel: Panel) -> bool:
    """Whether more than the curve at one learning rate can be drawn; that one is the rank curve's."""
    return any(curve.points for curve in panel.curves if curve.kind != "fixed")


def matched_figure(panel: Panel) -> f.Figure:
    """The curves of one trait, and full fine-tuning beside them at its rates chosen alike."""
    lacks = [f"{one.title}: {listed(one.lacks)}" for one in panel.curves if one.lacks]
    references = {one.kind: one.reference for one in panel.curves}
    apart = [one.title for one in panel.full if one.points and one.reference != references[one.kind]]
    return f.Figure(
        slug=f.slug("four curves", panel.target, panel.context, panel.students),
        title=panel.title,
        description=panel.describe(),
        caption=" ".join(
            [
                "Each line chooses the learning rate of every rank by another rule, never by the trait.",
                "Marks are means over runs with a 95 % t interval, small dots the runs;",
                "full fine-tuning stands to the right, by precision.",
                *([f"It is over the seeds that both have, and so {listed(apart)}."] if apart else []),
                *([f"Lacking: {'; '.join(lacks)}."] if lacks else []),
            ]
        ),
        spec=_spec(panel),
    )


def _spec(panel: Panel) -> f.Spec:
    where = _places(panel)
    names = {one.kind: one.title for one in panel.curves if one.points}
    drawn = [one for one in (*panel.curves, *panel.full) if one.kind in names]
    aside = {kind: APART * (at - (len(names) - 1) / 2) for at, kind in enumerate(names)}
    placed = [
        (curve, point, where[_tick(point.row)] + aside[curve.kind])
        for curve in drawn
        for point in curve.points
    ]
    curves = Curves(
        names=list(names.values()),
        means=[one for curve, point, x in placed for one in _mean(panel, names[curve.kind], curve, point, x)],
        runs=[one for curve, point, x in placed for one in _runs(names[curve.kind], point, x)],
    )
    y = f.quantity("y", f"P({panel.target}) minus the base", scale={"nice": True})
    layers = [*rule_across(0.0, "the untouched base", y), *curve_layers(curves, rank_axis(where), y)]
    return {"width": f.WIDTH, "height": HEIGHT, "layer": layers}


def _places(panel: Panel) -> dict[str, float]:
    """The x axis: ranks at their log2, then a column for each precision of full fine-tuning."""
    ranks = sorted({p.row for one in panel.curves for p in one.points if isinstance(p.row, int)})
    found = {str(one): math.log2(one) for one in ranks}
    end = max(found.values())
    full = dict.fromkeys(_tick(point.row) for one in panel.full for point in one.points)
    return found | {name: end + COLUMN * at for at, name in enumerate(full, start=1)}


def _tick(row: Row) -> str:
    return str(row) if isinstance(row, int) else f"full {row}"


def _mean(panel: Panel, series: str, curve: Curve, point: CurvePoint, x: float) -> Iterator[Values]:
    if point.difference is None:
        return
    who = (
        f"{panel.students} rank {point.row}"
        if isinstance(point.row, int)
        else f"full fine-tuning, {point.row}"
    )
    edge = f", the {point.choice.edge} tried" if point.choice.edge else ""
    broken = f", {count(point.broken, 'run')} broken" if point.broken else ""
    spread = f"{difference(point.difference.mean)} {bounds(point.difference)}".rstrip()
    yield {
        "series": series,
        # A line joins ranks, not precisions.
        "joined": isinstance(point.row, int),
        "x": x,
        "y": point.difference.mean,
        "low": point.difference.low,
        "high": point.difference.high,
        "condition": f"{who}, lr {point.rates}{edge}",
        "value": f"{spread}{broken}",
        "n": point.difference.n,
    }


def _runs(series: str, point: CurvePoint, x: float) -> Iterator[Values]:
    for index, (seeds, value) in enumerate(sorted(point.runs.items())):
        yield {
            "series": series,
            "x": x + BESIDE / 2 + fan(index),
            "y": value,
            "run": f"train seed {seeds[0]}, data seed {seeds[1]}",
            "value": difference(value),
            "state": "answers as it should",
            "broken": False,
        }
