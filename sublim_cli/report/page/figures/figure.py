"""A figure as data: a Vega-Lite specification beside its words. Pure."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one (vega.github.io/vega-lite/docs)."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Those of Okabe & Ito's colours that stand out against white and black alike, at 3:1 or more. Colour-blind
readers tell them apart (jfly.uni-koeln.de/color), and every series has a shape of its own beside."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left")

ABOVE, BELOW = PALETTE[1], PALETTE[0]
"""More than what it is compared with, and less."""

DEEPEST = 0.6
"""Opacity of the deepest tile, so that text on it stays readable in light and dark."""

LINE, TEXT = {"style": "ink-line"}, {"style": "ink-text"}
"""For marks in the colour of the text around, which the page and a file set differently."""

WIDTH = 400
"""Pixels of a figure in a file. On the page it is as wide as there is room."""

PANEL = 230
"""Pixels of a panel of a figure that has several. Narrow, so that one fits on a phone."""


LONGEST = 60
"""Characters of a file's name."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    `slug` is the name of its files, `description` its content in words for those who do not see it,
    `caption` what its marks mean.
    """

    slug: str
    title: str
    description: str
    caption: str
    spec: Spec

    @property
    def whole(self) -> Spec:
        """The specification as a program outside needs it."""
        head = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json"}
        return {**head, "description": f"{self.title}. {self.description}", **self.spec}


def slug(*words: str) -> str:
    """A file name made from words; what is cut from a long one still tells it from others."""
    whole = " ".join(words)
    name = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 7].strip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def layer(values: Iterable[Mapping[str, Any]], mark: Spec, **encoding: Spec) -> Spec:
    """One layer with data of its own."""
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def quantity(name: str, title: str | None = None, **more: Any) -> Spec:
    """A number on a scale."""
    return {"field": name, "type": "quantitative", "title": title, **more}


def category(name: str, title: str | None = None, **more: Any) -> Spec:
    """A name; it keeps the order in which the data have it."""
    return {"field": name, "type": "nominal", "title": title, **({"sort": None} | more)}


def hints(**fields: str) -> dict[str, Any]:
    """What is shown at a mark under the pointer: titles by field, texts as they stand in the data."""
    return {"tooltip": [{"field": name, "type": "nominal", "title": title} for name, title in fields.items()]}


def series(names: Sequence[str], field: str = "series") -> dict[str, Spec]:
    """Colour and shape of each series, with one legend below the figure for both."""
    legend = {"orient": "bottom", "direction": "vertical", "columns": 1, "title": None, "labelLimit": 330}
    marks = {"color": PALETTE, "shape": SHAPES}
    return {
        channel: category(
            field,
            scale={"domain": list(names), "range": [kinds[at % len(kinds)] for at in range(len(names))]},
            legend=legend,
        )
        for channel, kinds in marks.items()
    }
