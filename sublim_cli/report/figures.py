"""Figures as files for papers and as SVG for the page. The same results draw the same bytes."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sublim_cli.report.conditions import Run
from sublim_cli.report.curves import RankCurve, column, places, rank, series, shifts
from sublim_cli.report.summary import SummaryRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe & Ito's colours, told apart by colour-blind readers (jfly.uni-koeln.de/color)."""

INK = "#1a1a1b"
"""Text and axes; on the page it becomes the page's own text colour, light or dark."""

FORMATS = ("svg", "png", "pdf")
_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a context's name may hold a dollar sign
    "svg.hashsalt": "sublim",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 9.5,
    "axes.facecolor": "none",  # the page behind may be dark
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_WIDTH = 4.4
"""Inches. Narrow, so that its text stays readable on a phone."""


SPARK = 48
"""Points of a sparkline at most; a longer curve is averaged over equal stretches."""


def sparkline(values: Sequence[float]) -> str:
    """A curve in a line of text, from its lowest to its highest value, as an `<svg>` element.

    Its words are the first and the last point drawn.
    """
    if not values:
        return ""
    count = min(SPARK, len(values))
    cuts = [len(values) * place // count for place in range(count + 1)]
    points = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, height = min(points), (max(points) - min(points)) or 1.0
    drawn = " ".join(
        f"{100 * place / max(1, count - 1):.1f},{22 - 20 * (one - low) / height:.1f}"
        for place, one in enumerate(points)
    )
    words = f"from {points[0]:.3f} to {points[-1]:.3f}"
    return (
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{words}">'
        f'<polyline points="{drawn}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<small>{words}</small>"
    )


def inline_svg(curve: RankCurve) -> str:
    """The figure as one `<svg>` element, with a text alternative, in the page's text colour."""
    text = _rendered(curve, "svg", facecolor="none").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Several figures share the page: what one refers to must not be found in another.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{curve.slug}-", text)
    head, rest = text.replace(INK, "currentColor").split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{curve.slug}-title {curve.slug}-desc">'
        f'<title id="{curve.slug}-title">{escape(curve.title)}</title>'
        f'<desc id="{curve.slug}-desc">{escape(curve.description)}</desc>{rest}'
    )


def figure_files(curve: RankCurve) -> Iterator[tuple[Path, bytes]]:
    """The figure in every format, with the name of its file."""
    for kind in FORMATS:
        yield Path(f"{curve.slug}.{kind}"), _rendered(curve, kind, facecolor="white")


def _rendered(curve: RankCurve, kind: str, facecolor: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = _draw(curve)
        figure.savefig(out, format=kind, metadata=_UNDATED[kind], facecolor=facecolor, dpi=200)
    return out.getvalue()


def _draw(curve: RankCurve) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    lines, where = series(curve.trained), places(curve.trained)
    figure = Figure(figsize=(_WIDTH, 3.0 + 0.2 * (len(lines) + 2)), layout="constrained")
    axes = figure.add_subplot()
    aside = shifts(lines)
    for index, (name, rows) in enumerate(lines.items()):
        xs = [where[column(row)] + aside[name, column(row)] for row in rows]
        _draw_series(axes, name, list(zip(xs, rows, strict=True)), curve.runs, _colour(index))
    for row in curve.rows:
        if row.condition.role == "base" and row.p_target:
            axes.axhline(row.p_target.mean, color=INK, linestyle="--", linewidth=1, label=row.label)
    if any(run["broken"] for run in curve.runs):
        axes.plot([], [], "X", markerfacecolor="none", color=INK, label="a run that broke")
    _finish(axes, curve.target, where)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _draw_series(
    axes: "Axes",
    name: str,
    placed: Sequence[tuple[float, SummaryRow]],
    runs: Sequence[Run],
    colour: str,
) -> None:
    """A point for every run, and the mean of each condition with its interval."""
    means = [(x, row.p_target.mean) for x, row in placed if row.p_target]
    line = "-" if len(means) > 1 else ""
    xs, ys = [x for x, _ in means], [y for _, y in means]
    axes.plot(xs, ys, f"o{line}", color=colour, markersize=5, linewidth=1.4, label=name)
    for x, row in placed:
        _draw_interval(axes, x, row, colour)
        _draw_runs(axes, x, [run for run in runs if run["condition"] == row.condition], colour)


def _draw_interval(axes: "Axes", x: float, row: SummaryRow, colour: str) -> None:
    """The interval at its place; what has no rank is carried across all ranks as a band."""
    interval = row.p_target
    if interval is None:
        return
    across = rank(row) is None
    if across:
        axes.axhline(interval.mean, color=colour, linewidth=1, alpha=0.7)
    if interval.low is None or interval.high is None:
        return
    axes.vlines(x, interval.low, interval.high, color=colour, linewidth=1.4)
    if across:
        axes.axhspan(interval.low, interval.high, color=colour, alpha=0.1, linewidth=0)


def _draw_runs(axes: "Axes", x: float, runs: Sequence[Run], colour: str) -> None:
    for index, run in enumerate(runs):
        # A fixed fan instead of random jitter: the same results draw the same figure.
        at = x + 0.1 + 0.035 * (index % 5)
        if run["broken"]:
            axes.plot(at, run["p_target"], "X", color=colour, markerfacecolor="none", markersize=6)
        else:
            axes.plot(at, run["p_target"], ".", color=colour, alpha=0.7, markersize=5, markeredgewidth=0)


def _finish(axes: "Axes", target: str, where: Mapping[str, float]) -> None:
    axes.set_xticks(list(where.values()), list(where))
    axes.set_xlabel("LoRA rank" if any(name.isdecimal() for name in where) else "")
    axes.set_ylabel(f"P({target})")
    axes.set_ylim(bottom=0)
    axes.set_xlim(min(where.values()) - 0.6, max(where.values()) + 0.6)
    axes.grid(axis="y", color="#888888", alpha=0.25, linewidth=0.6)
