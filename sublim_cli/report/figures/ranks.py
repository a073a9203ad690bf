"""P(target) over LoRA rank. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from sublim_cli.report.conditions import Run
from sublim_cli.report.curves import RankCurve, column, places, series, shifts
from sublim_cli.report.figures import figure as f
from sublim_cli.report.figures.points import ACROSS, Curves, Values, base_layers, curve_layers, fan, mean, run
from sublim_cli.report.summary import SummaryRow

HEIGHT = 260
BESIDE = 0.1
"""Octaves from a mean to its runs."""
CROWDED = 8
"""More ticks than this are written aslant."""


def rank_figure(curve: RankCurve) -> f.Figure:
    """The curve of one trait in one training context."""
    lines, where = series(curve.trained), places(curve.trained)
    aside = shifts(lines)
    placed = [
        (name, where[column(row)] + aside[name, column(row)], row)
        for name, rows in lines.items()
        for row in rows
    ]
    curves = Curves(
        names=list(lines),
        means=[mean(name, x, row.p_target, row.label) for name, x, row in placed if row.p_target],
        runs=[one for name, x, row in placed for one in _runs(name, x, row, curve.runs)],
        joined=frozenset(name for name, rows in lines.items() if len(rows) > 1),
    )
    base = [row.p_target.mean for row in curve.rows if row.condition.role == "base" and row.p_target]
    controls = {name for name, rows in lines.items() if rows[0].condition.role == "control"}
    spec = over_ranks(curves, where, curve.target, base[0] if base else None, controls)
    return f.Figure(curve.slug, curve.title, curve.description, curve.caption, spec)


def over_ranks(
    curves: Curves,
    where: Mapping[str, float],
    target: str,
    base: float | None,
    controls: Iterable[str] = (),
) -> f.Spec:
    """Curves over the ticks `where`; the intervals of the series `controls` go across as bands."""
    y = f.quantity("y", f"P({target})", scale={"domainMin": 0, "nice": True})
    bands = [one for one in curves.means if one["series"] in controls and one["low"] is not None]
    shade = f.layer(
        bands,
        {"type": "rect", "opacity": 0.13, "aria": False},
        y={**y, "field": "low"},
        y2={"field": "high"},
        color=f.series(curves.names)["color"],
        **ACROSS,
    )
    layers = [*([shade] if bands else []), *base_layers(base, y), *curve_layers(curves, _axis(where), y)]
    return {"width": f.WIDTH, "height": HEIGHT, "layer": layers}


def _axis(where: Mapping[str, float]) -> f.Spec:
    names, at = list(where), list(where.values())
    axis = {
        "values": at,
        "labelExpr": f"{names}[indexof({at}, datum.value)]",
        "labelAngle": -45 if len(at) > CROWDED else 0,
        "labelOverlap": False,
        "grid": False,
    }
    title = "LoRA rank" if any(name.isdecimal() for name in names) else None
    return f.quantity("x", title, axis=axis, scale={"domain": [min(at) - 0.6, max(at) + 0.6], "nice": False})


def _runs(name: str, x: float, row: SummaryRow, runs: Iterable[Run]) -> Iterator[Values]:
    own = [one for one in runs if one["condition"] == row.condition]
    for index, one in enumerate(own):
        yield run(name, x + BESIDE + fan(index), one)
