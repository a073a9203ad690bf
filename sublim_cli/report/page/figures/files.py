"""Figures drawn: as files, as SVG in the page, and live in it. The same figure draws the same bytes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from sublim_cli.report.page.figures.figure import Figure, Spec

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first ships with the renderer, the second and third are as wide: the same figure on every machine."""

INK, PAPER = "#1a1a1b", "#ffffff"
"""Text and ground of a file."""

FORMATS = ("svg", "png", "pdf", "vl.json")
PIXELS = 2.5
"""Pixels of a PNG to one of the figure: 1000 across a column."""

_RESOURCES = re.compile(rb"(?:^ +/\w+ \d+ 0 R\n){2,}", re.MULTILINE)


@dataclass(frozen=True)
class Drawing:
    """A figure and what it looks like: an `<svg>` element with a text alternative."""

    figure: Figure
    svg: str


def draw(figure: Figure) -> Drawing:
    """Draw a figure, without a browser."""
    import vl_convert

    spec = _coloured(figure, INK, PAPER)
    # Read aloud mark by mark it would never end; the element has words of its own instead.
    text = vl_convert.vegalite_to_svg({**spec, "config": {**spec["config"], "aria": False}})
    # Several figures share the page: what one refers to must not be found in another.
    head, rest = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.slug}-", text).split(">", 1)
    return Drawing(
        figure,
        f'{head} role="img" aria-labelledby="{figure.slug}-title {figure.slug}-desc">'
        f'<title id="{figure.slug}-title">{escape(figure.title)}</title>'
        f'<desc id="{figure.slug}-desc">{escape(figure.description)}</desc>{rest}',
    )


def figure_files(drawing: Drawing) -> Iterator[tuple[Path, bytes]]:
    """The figure in every format, with the name of its file.

    `.vl.json` is the Vega-Lite specification with its data: what to edit for a figure of one's own.
    """
    import vl_convert

    spec = json.dumps(_coloured(drawing.figure, INK, PAPER), indent=1, ensure_ascii=False)
    drawn = {
        "svg": drawing.svg.encode(),
        "png": vl_convert.svg_to_png(drawing.svg, scale=PIXELS),
        "pdf": _ordered(vl_convert.svg_to_pdf(drawing.svg)),
        "vl.json": f"{spec}\n".encode(),
    }
    for kind in FORMATS:
        yield Path(f"{drawing.figure.slug}.{kind}"), drawn[kind]


def inline_svg(drawing: Drawing) -> str:
    """The drawing as it stands in the page: as wide as there is room, in the page's own colours."""
    head, rest = drawing.svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(rf'<rect [^>]*fill="{PAPER}"[^>]*>(</rect>)?', "", rest, count=1)
    return f"{head}>{rest.replace(INK, 'currentColor')}"


def embedded(figure: Figure) -> str:
    """The specification for the page's script, as JSON that can stand in a `<script>` element."""
    text = json.dumps(_coloured(figure, "currentColor", None), ensure_ascii=False)
    return text.replace("<", "\\u003c")


@cache
def script() -> str:
    """What draws the figures live: `page.js` with Vega, Vega-Lite and Vega-Embed, as one module."""
    import vl_convert

    return vl_convert.javascript_bundle(
        (files("sublim_cli.report.page") / "templates" / "page.js").read_text(encoding="utf-8")
    )


def _ordered(pdf: bytes) -> bytes:
    """The renderer lists a page's resources in random order; sorted, the same figure is the same bytes."""
    return _RESOURCES.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), pdf)


def _coloured(figure: Figure, ink: str, paper: str | None) -> Spec:
    return {**figure.whole, "background": paper, "config": _config(ink)}


def _config(ink: str) -> Spec:
    grid = {"gridColor": "#888888", "gridOpacity": 0.25, "labelColor": ink, "titleColor": ink}
    return {
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **grid,
            "domainColor": ink,
            "tickColor": ink,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
        },
        "header": {"labelColor": ink, "titleColor": ink},
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "symbolOpacity": 1},
        "title": {"color": ink, "fontWeight": "normal", "fontSize": 12},
        "style": {"ink-line": {"color": ink}, "ink-text": {"color": ink}},
    }
