"""The share of an effect that each set of tokens has, beside random sets of as many tokens. Pure."""

from collections.abc import Iterator

from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.tables.localisation import Share, ShareTable
from sublim_cli.stats import Interval
from sublim_cli.wording import count, percent

ROW = 34
"""Pixels of a set: its own line and that of the random ones."""
SERIES = ("the set", "random sets of as many tokens")


def localisation_figure(table: ShareTable) -> f.Figure:
    """The shares of one condition asked in one context."""
    first = table.rows[0]
    return f.Figure(
        slug=f.slug("localisation", first.target, first.label, first.eval_context),
        title=f"Share of the effect kept or lost: {table.title}",
        description="; ".join(map(_told, table.rows)) + ".",
        caption=(
            "Marks are shares of the effect with Fieller's 95 % interval over runs: kept by a gate that "
            "leaves the student in at these tokens alone, lost by one that takes it out there."
        ),
        spec=_spec(table),
    )


def _spec(table: ShareTable) -> f.Spec:
    rows = [one for one in table.rows if one.share]
    marks = [mark for one in rows for mark in _marks(one)]
    look = f.series(SERIES)
    x = f.quantity("x", "share of the effect", axis={"format": "%", "tickCount": 5}, scale={"nice": True})
    names = {"labelLimit": 150, "domain": False, "ticks": False, "grid": False}
    place = {"y": f.category("part", axis=names), "yOffset": f.category("series", sort=list(SERIES))}
    hint = f.hints(part="Tokens", series="Which", value="Share", runs="Runs")
    edges = [{"x": 0.0}, {"x": 1.0}]
    spread = [one for one in marks if one["low"] is not None]
    across: dict[str, f.Spec] = {"y": {"value": 0}, "y2": {"value": "height"}}
    layers = [
        f.layer(edges, {"type": "rule", "strokeDash": [5, 4], **f.LINE, "aria": False}, x=x, **across),
        f.layer(
            spread,
            {"type": "rule", "strokeWidth": 1.5, "aria": False},
            x={**x, "field": "low"},
            x2={"field": "high"},
            color=look["color"],
            **place,
        ),
        f.layer(
            marks, {"type": "point", "filled": True, "size": 70, "opacity": 1}, x=x, **look, **place, **hint
        ),
    ]
    return {
        "width": f.WIDTH,
        "height": ROW * len(rows),
        "layer": [one for one in layers if one["data"]["values"]],
    }


def _marks(one: Share) -> Iterator[dict[str, object]]:
    for series, share in zip(SERIES, (one.share, one.random), strict=True):
        if share is not None:
            yield {
                "part": f"{one.part} ({one.measure})",
                "series": series,
                "x": share.mean,
                "low": share.low,
                "high": share.high,
                "value": percent(share),
                "runs": one.n,
            }


def _told(one: Share) -> str:
    if one.share is None:
        return f"{one.part}: {one.state}"
    return f"{one.part}: {percent(one.share)} {one.measure}{_beside(one.random)} ({count(one.n, 'run')})"


def _beside(random: Interval | None) -> str:
    return f", random sets {percent(random)}" if random else ""
