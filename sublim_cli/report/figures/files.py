"""Figures drawn: as files, as SVG in the page, and live in it. The same figure draws the same bytes."""

import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from sublim_cli.report.figures.figure import Figure, Spec

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""The first ships with the renderer, the second and third are as wide: the same figure on every machine."""

INK = "#1a1a1b"
PAGE_INK = "currentColor"
"""The page's own text colour, light or dark."""

FORMATS = ("svg", "png", "pdf", "vl.json")
PIXELS = 3
"""Pixels of a PNG to one of the figure: 1200 across a column."""

_RESOURCES = re.compile(rb"(?:^ +/\w+ \d+ 0 R\n){2,}", re.MULTILINE)


def figure_files(figure: Figure) -> Iterator[tuple[Path, bytes]]:
    """The figure in every format, with the name of its file.

    `.vl.json` is the Vega-Lite specification with its data: what to edit for a figure of one's own.
    """
    import vl_convert

    spec = {**figure.whole, "background": "white", "config": _config(INK)}
    drawn = {
        "svg": vl_convert.vegalite_to_svg(spec).encode(),
        "png": vl_convert.vegalite_to_png(spec, scale=PIXELS),
        "pdf": _ordered(vl_convert.vegalite_to_pdf(spec)),
        "vl.json": f"{json.dumps(spec, indent=1, ensure_ascii=False)}\n".encode(),
    }
    for kind in FORMATS:
        yield Path(f"{figure.slug}.{kind}"), drawn[kind]


def inline_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element, with a text alternative, in the page's text colour."""
    import vl_convert

    text = vl_convert.vegalite_to_svg(page_spec(figure))
    # Several figures share the page: what one refers to must not be found in another.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.slug}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{figure.slug}-title {figure.slug}-desc">'
        f'<title id="{figure.slug}-title">{escape(figure.title)}</title>'
        f'<desc id="{figure.slug}-desc">{escape(figure.description)}</desc>{rest}'
    )


def page_spec(figure: Figure) -> Spec:
    """The specification as the page draws it: on the page's own ground."""
    return {**figure.whole, "background": None, "config": _config(PAGE_INK)}


def embedded(figure: Figure) -> str:
    """`page_spec` as JSON that can stand in a `<script>` element."""
    return json.dumps(page_spec(figure), ensure_ascii=False).replace("<", "\\u003c")


@cache
def script() -> str:
    """What draws the figures live: `page.js` with Vega, Vega-Lite and Vega-Embed, as one module."""
    import vl_convert

    return vl_convert.javascript_bundle(
        (files("sublim_cli.report") / "templates" / "page.js").read_text(encoding="utf-8")
    )


def _ordered(pdf: bytes) -> bytes:
    """The renderer lists a page's resources in random order; sorted, the same figure is the same bytes."""
    return _RESOURCES.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), pdf)


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
