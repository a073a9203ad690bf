"""A figure: an Altair chart with title, description and caption; the colours and axes that figures share."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""The colours of Okabe & Ito (jfly.uni-koeln.de/color) with a contrast of 3:1 or more on white and on black.
Colour-blind readers can tell them apart; every series also has a shape of its own."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left")

WIDTH = 400
"""Pixels of a figure in a file. On the page it is as wide as there is room."""

PANEL = 230
"""Pixels of one panel of several. Narrow, so that one fits on a phone."""

LONGEST = 60
"""Characters of a file's name."""


@dataclass(frozen=True)
class Figure:
    """A chart and its words.

    `slug` is the name of its files, `description` its content in words for those who do not see it,
    `caption` what its marks mean.
    """

    slug: str
    title: str
    description: str
    caption: str
    chart: alt.LayerChart | alt.ConcatChart


def slug(*words: str) -> str:
    """A file name made from words; a long one is cut and ends in a hash, so that names stay distinct."""
    text = " ".join(words)
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 7].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def chart(rows: Iterable[Mapping[str, Any]]) -> alt.Chart:
    """A chart with its data in the specification itself."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def layered(layers: Iterable[alt.Chart], width: int, height: int) -> alt.LayerChart:
    """Charts drawn over each other. Those without data are left out: Vega warns of an infinite extent."""
    return alt.layer(*(layer for layer in layers if layer.data["values"])).properties(
        width=width, height=height
    )


def tooltips(titles: Mapping[str, str]) -> list[alt.Tooltip]:
    """The texts shown at a mark under the pointer: their titles by field."""
    return [alt.Tooltip(field, type="nominal", title=title) for field, title in titles.items()]


def named_ticks(ticks: Mapping[str, float], **options: Any) -> alt.Axis:
    """An axis with a tick of a given name at each value."""
    names, values = json.dumps(list(ticks), ensure_ascii=False), list(ticks.values())
    label = f"{names}[indexof({json.dumps(values)}, datum.value)]"
    return alt.Axis(values=values, labelExpr=label, labelOverlap=False, grid=False, **options)


def series_encodings(names: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of each series, with one legend below the figure for both.

    Both lists start again at their end; no pair repeats before 28 series.
    """
    legend = alt.Legend(orient="bottom", direction="vertical", columns=1, title=None, labelLimit=330)
    color, shape = (alt.Scale(domain=list(names), range=list(looks)) for looks in (PALETTE, SHAPES))
    return (
        alt.Color("series:N", title=None, sort=None, scale=color, legend=legend),
        alt.Shape("series:N", title=None, sort=None, scale=shape, legend=legend),
    )
