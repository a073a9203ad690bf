"""P(target) over LoRA rank. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.page.figures.points import (
    ACROSS,
    Curves,
    Values,
    curve_layers,
    fan,
    mean,
    rule_across,
    run,
)
from sublim_cli.report.page.rank_curves import RankCurve, column, places, rank, series, side_by_side
from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.conditions import Run
from sublim_cli.wording import probability

HEIGHT = 260
BESIDE = 0.1
"""Octaves from a mean to its runs."""
CROWDED = 8
"""More ticks than this are written aslant."""


def rank_figure(curve: RankCurve) -> f.Figure:
    """The curve of one trait in one training context."""
    lines, where = series(curve.trained), places(curve.trained)
    names = {name: name.replace(f", trained in {curve.context}", "") for name in lines}
    placed = [(names[name], where[column(row)] + aside, row) for name, aside, row in side_by_side(lines)]
    curves = Curves(
        names=list(names.values()),
        means=[
            mean(name, x, row.p_target, row.label, joined=rank(row) is not None)
            for name, x, row in placed
            if row.p_target
        ],
        runs=[one for name, x, row in placed for one in _runs(name, x, row, curve.runs)],
    )
    axis = rank_axis(where, [x for _, x, _ in placed])
    y = f.quantity("y", f"P({curve.target})", scale={"domainMin": 0, "nice": True})
    layers = [*_band(curves, placed, y), *_base(curve, y), *curve_layers(curves, axis, y)]
    spec = {"width": f.WIDTH, "height": HEIGHT, "layer": layers}
    return f.Figure(
        f.slug("rank curve", curve.target, curve.context), curve.title, curve.description, curve.caption, spec
    )


def _band(curves: Curves, placed: Sequence[tuple[str, float, SummaryRow]], y: f.Spec) -> list[f.Spec]:
    """All the controls' intervals, carried across as one."""
    controls = [
        (name, row.p_target.low, row.p_target.high)
        for name, _, row in placed
        if row.condition.role == "control" and row.p_target
    ]
    spans = [(name, low, high) for name, low, high in controls if low is not None and high is not None]
    if not spans:
        return []
    name, low, high = spans[0][0], min(one[1] for one in spans), max(one[2] for one in spans)
    shade = f.layer(
        [{"series": name, "low": low, "high": high}],
        {"type": "rect", "opacity": 0.13, "aria": False},
        y={**y, "field": "low"},
        y2={"field": "high"},
        color=f.series(curves.names)["color"],
        **ACROSS,
    )
    return [shade]


def _base(curve: RankCurve, y: f.Spec) -> list[f.Spec]:
    bases = [row.p_target.mean for row in curve.rows if row.condition.role == "base" and row.p_target]
    return [one for base in bases for one in rule_across(base, f"untouched base {probability(base)}", y)]


def rank_axis(where: Mapping[str, float], marks: Sequence[float] = ()) -> f.Spec:
    """The x axis with the ticks `where`, wide enough for marks that stand beside theirs."""
    names, at = list(where), list(where.values())
    axis = {
        "values": at,
        "labelExpr": f"{names}[indexof({at}, datum.value)]",
        "labelAngle": -45 if len(at) > CROWDED else 0,
        "labelOverlap": False,
        "grid": False,
    }
    title = "LoRA rank" if any(name.isdecimal() for name in names) else None
    ends = [min([min(at) - 0.6, *marks]), max([max(at) + 0.6, *(one + 0.3 for one in marks)])]
    return f.quantity("x", title, axis=axis, scale={"domain": ends, "nice": False})


def _runs(name: str, x: float, row: SummaryRow, runs: Iterable[Run]) -> Iterator[Values]:
    own = [one for one in runs if one["condition"] == row.condition]
    for index, one in enumerate(own):
        yield run(name, x + BESIDE + fan(index), one)
