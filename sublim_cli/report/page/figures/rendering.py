"""Figures drawn: as files, as SVG in the page, and live in it. The same figure gives the same bytes."""

import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from statistics import fmean
from typing import Any

import vl_convert
from markupsafe import Markup

from sublim_cli.report.page.figures.figure import Figure

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first ships with the renderer; all three are as wide, so a figure is the same on every machine."""

INK, PAPER = "#1a1a1b", "#ffffff"
"""Text and background of a file."""

PIXELS = 2.5
"""Pixels of a PNG to one of the figure: 1000 for a width of 400."""

SPARK = 48
"""Points of a sparkline at most; a longer curve is averaged over equal parts."""


def specification(figure: Figure, ink: str, paper: str) -> dict[str, Any]:
    """The Vega-Lite specification with its data, and with text and background in these colours."""
    text = {"labelColor": ink, "titleColor": ink}
    chart = figure.chart.properties(
        description=f"{figure.title}. {figure.description}", background=paper
    ).configure(
        font=FONT,
        view={"stroke": None},
        axis={
            "gridColor": "#888888",
            "gridOpacity": 0.25,
            "domainColor": ink,
            "tickColor": ink,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            **text,
        },
        legend={"labelFontSize": 11, "symbolOpacity": 1, **text},
        # For marks without a colour of their own.
        rule={"color": ink},
        rect={"color": ink},
        text={"color": ink},
        point={"color": ink},
    )
    specification: dict[str, Any] = chart.to_dict()
    return specification


def figure_files(figure: Figure) -> dict[str, bytes]:
    """The figure in every format of `write.FORMATS`.

    `vl.json` is the Vega-Lite specification with its data, the place to start for a figure of one's own.
    """
    spec = specification(figure, INK, PAPER)
    svg = _svg(figure, spec)
    # The renderer lists a page's resources in random order: sorted, the same figure is the same bytes.
    pdf = re.sub(
        rb"(?m)(?:^ +/\w+ \d+ 0 R\n){2,}",
        lambda lines: b"".join(sorted(lines[0].splitlines(keepends=True))),
        vl_convert.svg_to_pdf(svg),
    )
    return {
        "svg": svg.encode(),
        "png": vl_convert.svg_to_png(svg, scale=PIXELS),
        "pdf": pdf,
        "vl.json": f"{json.dumps(spec, indent=1, ensure_ascii=False)}\n".encode(),
    }


def inline_svg(figure: Figure) -> Markup:
    """The drawing as it stands in the page: in the page's own colours, as wide as its style makes it."""
    return Markup(_svg(figure, specification(figure, "currentColor", "transparent")))


def embedded_specification(figure: Figure) -> Markup:
    """The specification for the page's script, as JSON that can stand in a `<script>` element."""
    text = json.dumps(specification(figure, "currentColor", "transparent"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


@cache
def page_script() -> str:
    """What draws the figures live: `page.js` with Vega, Vega-Lite and Vega-Embed, as one module."""
    source = files("sublim_cli.report.page") / "templates" / "page.js"
    return vl_convert.javascript_bundle(source.read_text(encoding="utf-8"))


def sparkline(values: Sequence[float]) -> Markup:
    """A curve from its lowest to its highest value as an `<svg>` element, and its ends in words."""
    if not values:
        return Markup()
    count = min(SPARK, len(values))
    cuts = [len(values) * index // count for index in range(count + 1)]
    points = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, height = min(points), (max(points) - min(points)) or 1.0
    coordinates = " ".join(
        f"{100 * index / max(1, count - 1):.1f},{22 - 20 * (point - low) / height:.1f}"
        for index, point in enumerate(points)
    )
    words = f"from {points[0]:.3f} to {points[-1]:.3f}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{words}">'
        f'<polyline points="{coordinates}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<small>{words}</small>"
    )


def _svg(figure: Figure, spec: dict[str, Any]) -> str:
    """An `<svg>` element with a text alternative, which replaces a label at every mark."""
    drawn = vl_convert.vegalite_to_svg({**spec, "config": {**spec["config"], "aria": False}})
    opening, _, content = drawn.partition(">")
    return (
        f'{opening} role="img" aria-labelledby="{figure.slug}-title {figure.slug}-desc">'
        f'<title id="{figure.slug}-title">{escape(figure.title)}</title>'
        f'<desc id="{figure.slug}-desc">{escape(figure.description)}</desc>{content}'
    )
