"""The comparisons of a claim as a forest plot: odds ratios of runs, means, intervals and the margin."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import altair as alt

from sublim_cli.report.claims.pairing import Levels
from sublim_cli.report.claims.verdict import Finding, Outcome, Verdict
from sublim_cli.report.claims.wording import odds
from sublim_cli.report.page.figures.figure import (
    PALETTE,
    WIDTH,
    Figure,
    chart,
    layered,
    slug,
    tooltips,
)
from sublim_cli.stats import Interval
from sublim_cli.wording import count, probability

ROW = 50
"""Pixels of a comparison: a line of text, one of the mean and its interval, one of the runs."""

TEXT, MEAN, RUNS = 0.2, 0.54, 0.8
"""Where these lines lie in a row."""

P_WIDTH = 118
"""Pixels of `P 0.310, base 0.100` and a gap before it."""

MOST = 24
"""Comparisons drawn; of more those with the largest effects."""

BEYOND = 0.5
"""How far the axis reaches for an interval, beyond the runs and their mean, as a share of their range."""

SPEAKS: dict[Outcome, str] = {
    "supported": "for the claim",
    "refuted": "against it",
    "underpowered": "for neither",
}
"""What a comparison says, in the legend."""

COLOURS = dict(zip(SPEAKS.values(), (PALETTE[2], PALETTE[1], PALETTE[0]), strict=True))
SHAPES = dict(zip(SPEAKS.values(), ("diamond", "square", "circle"), strict=True))

STEPS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Ticks of a decade, the finest first."""

MOST_TICKS = 7


@dataclass(frozen=True)
class _ForestRow:
    """One comparison, or the mean over traits."""

    label: str
    effect: Interval
    levels: Levels = field(default_factory=Levels)
    finding: Finding | None = None
    speaks: str = ""


def forest_slug(verdict: Verdict, place: int) -> str:
    """The file name of the plot of the verdict at this place of the report, from 1."""
    return slug("claim", str(place), verdict.number)


def forest_figure(verdict: Verdict, place: int) -> Figure | None:
    """The comparisons that could be made; None if there are none. `place` counts verdicts from 1."""
    known = [found for found in verdict.findings if found.effect]
    if not known:
        return None
    shown = _largest(known)
    common = _common(shown)
    rows = list(_rows(verdict, shown, common))
    level = 100 - 200 * verdict.claim.alpha
    margin = verdict.claim.margin_odds_ratio
    caption = [
        f"Dots are runs, marks their mean with a {level:g} % interval; the band is the margin, "
        f"{1 / margin:.2g} to {margin:g}; P is that of the students."
    ]
    if common:
        words = ", ".join(common)
        caption.insert(0, f"{words[0].upper()}{words[1:]}.")
    if len(shown) < len(known):
        caption.append(f"Of {len(known)} comparisons the {MOST} with the largest effects are drawn.")
    return Figure(
        slug=forest_slug(verdict, place),
        title=f"{verdict.number}: {_title(verdict)}",
        description="; ".join(map(_described, rows)) + ".",
        caption=" ".join(caption),
        chart=_forest(rows, verdict.claim.margin),
    )


def _title(verdict: Verdict) -> str:
    """What the odds ratios compare."""
    match verdict.number:
        case "C2":
            return "odds ratio of the rank that other runs have highest to the highest rank"
        case "C3c":
            return "odds ratio of full fine-tuning to the best adapter"
        case "C5":
            return "odds ratio of students to controls, and of sets of tokens to random ones"
        case _:
            return "odds ratio of students to the controls of the same seeds"


def _largest(known: Sequence[Finding]) -> list[Finding]:
    """Those that are drawn, in their order."""
    by_size = sorted(known, key=lambda found: -abs(found.effect.mean if found.effect else 0.0))
    drawn = {id(found) for found in by_size[:MOST]}
    return [found for found in known if id(found) in drawn]


def _parts(found: Finding) -> list[str]:
    return found.about.split(", ")


def _common(findings: Sequence[Finding]) -> list[str]:
    """What the comparisons of all rows have in common, in words."""
    return [part for part in _parts(findings[0]) if all(part in _parts(found) for found in findings)]


def _rows(verdict: Verdict, findings: Sequence[Finding], common: Sequence[str]) -> Iterator[_ForestRow]:
    for found in findings:
        own = [part for part in _parts(found) if part not in common]
        if found.effect:
            decided = verdict.outcome != "descriptive"
            speaks = SPEAKS[found.outcome(verdict.claim.alpha)] if decided else ""
            yield _ForestRow(", ".join([found.target, *own]), found.effect, found.levels, found, speaks)
    if verdict.mean:
        yield _ForestRow(f"mean over {count(verdict.mean.n, 'trait')}", verdict.mean)


def _forest(rows: Sequence[_ForestRow], margin: float) -> alt.LayerChart:
    low, high = _reach(rows, margin)
    scale = alt.Scale(type="log", domain=[math.exp(low), math.exp(high)], nice=False)
    axis = alt.Axis(values=_ticks(low, high), format="~g", labelOverlap=True, gridOpacity=0.15)

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title="odds ratio (log scale)", scale=scale, axis=axis)

    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, len(rows)], reverse=True, nice=False, zero=False))
    names = [name for name in SPEAKS.values() if any(row.speaks == name for row in rows)]
    legend = alt.Legend(
        orient="bottom", direction="horizontal", title="Speaks", titleOrient="left", titleFontWeight="normal"
    )
    color = alt.Color(
        "speaks:N", scale=alt.Scale(domain=names, range=[COLOURS[name] for name in names]), legend=legend
    )
    shape = alt.Shape(
        "speaks:N", scale=alt.Scale(domain=names, range=[SHAPES[name] for name in names]), legend=legend
    )
    marks = [_mark(row, place, low, high) for place, row in enumerate(rows)]
    compared, pooled = [m for m in marks if m["speaks"]], [m for m in marks if not m["speaks"]]
    runs = [run for place, row in enumerate(rows) for run in _run_marks(row, place)]
    whole = {"y": alt.value(0), "y2": alt.value("height")}
    mean_tip = tooltips(
        {"label": "Comparison", "odds": "Odds ratio", "p": "P(target)", "above": "Above the margin"}
    )
    point = {"filled": True, "opacity": 1, "size": 90}
    line = {"strokeWidth": 2, "aria": False}
    texts = _texts(rows)
    text_style = {"fontSize": 11, "baseline": "middle", "aria": False}
    layers = [
        chart([{"low": math.exp(-margin), "high": math.exp(margin)}])
        .mark_rect(opacity=0.12, aria=False)
        .encode(x=x("low"), x2="high", **whole),
        chart([{"x": 1.0}]).mark_rule(strokeDash=[5, 4], aria=False).encode(x=x("x"), **whole),
        chart(compared).mark_rule(**line).encode(x=x("low"), x2="high", y=y, color=color),
        chart(pooled).mark_rule(**line).encode(x=x("low"), x2="high", y=y),
        chart(_arrows(compared))
        .mark_text(fontSize=13, aria=False)
        .encode(x=x("x"), y=y, text="arrow:N", color=color),
        chart(_arrows(pooled)).mark_text(fontSize=13, aria=False).encode(x=x("x"), y=y, text="arrow:N"),
        chart(runs)
        .mark_point(filled=True, size=18, opacity=0.6, aria=False)
        .encode(x=x("x"), y=y, tooltip=tooltips({"label": "Comparison", "run": "Run", "odds": "Odds ratio"})),
        chart(compared).mark_point(**point).encode(x=x("x"), y=y, color=color, shape=shape, tooltip=mean_tip),
        chart(pooled).mark_point(**point, shape="diamond").encode(x=x("x"), y=y, tooltip=mean_tip),
        *(
            chart(text for text in texts if bool(text["p"]) == with_p)
            .mark_text(align="left", limit=alt.ExprRef(expr=room), **text_style)
            .encode(x=alt.value(0), y=y, text="label:N")
            for with_p, room in ((True, f"width - {P_WIDTH}"), (False, "width"))
        ),
        chart(text for text in texts if text["p"])
        .mark_text(align="right", **text_style)
        .encode(x=alt.value("width"), y=y, text="p:N"),
    ]
    return layered(layers, WIDTH, ROW * len(rows))


def _reach(rows: Sequence[_ForestRow], margin: float) -> tuple[float, float]:
    """The ends of the axis in log-odds: all runs and means, the margin, and intervals as far as `BEYOND`."""
    values = [
        value
        for row in rows
        for value in (row.effect.mean, *(row.finding.runs.values() if row.finding else ()))
    ]
    low, high = min([*values, -margin]), max([*values, margin])
    room = BEYOND * (high - low)
    bounds = [bound for row in rows for bound in (row.effect.low, row.effect.high) if bound is not None]
    low = min([low, *(max(bound, low - room) for bound in bounds)])
    high = max([high, *(min(bound, high + room) for bound in bounds)])
    edge = 0.03 * (high - low)
    return low - edge, high + edge


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    for steps in STEPS:
        ticks = [float(f"{step * 10.0**decade:.6g}") for decade in decades for step in steps]
        within = [tick for tick in ticks if low <= math.log(tick) <= high]
        if len(within) <= MOST_TICKS:
            return within
    return within[:: math.ceil(len(within) / MOST_TICKS)]


def _mark(row: _ForestRow, place: int, low: float, high: float) -> dict[str, object]:
    """The mean with its interval, cut to the axis."""
    effect, found = row.effect, row.finding
    known = effect.low is not None and effect.high is not None
    return {
        "y": place + MEAN,
        "x": math.exp(effect.mean),
        "low": math.exp(max(effect.low if known and effect.low is not None else effect.mean, low)),
        "high": math.exp(min(effect.high if known and effect.high is not None else effect.mean, high)),
        "left": known and effect.low is not None and effect.low < low,
        "right": known and effect.high is not None and effect.high > high,
        "label": row.label,
        "odds": odds(effect),
        "p": _levels_text(row.levels),
        "above": _above(found),
        "speaks": row.speaks,
    }


def _arrows(marks: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Heads where an interval goes on beyond the axis."""
    ends = (("left", "low", "«"), ("right", "high", "»"))
    return [
        {"x": mark[end], "y": mark["y"], "arrow": arrow, "speaks": mark["speaks"]}
        for mark in marks
        for side, end, arrow in ends
        if mark[side]
    ]


def _run_marks(row: _ForestRow, place: int) -> Iterator[dict[str, object]]:
    runs = sorted(row.finding.runs.items()) if row.finding else []
    for (train, data), effect in runs:
        yield {
            "y": place + RUNS,
            "x": math.exp(effect),
            "label": row.label,
            "run": f"train seed {train}, data seed {data}",
            "odds": f"{math.exp(effect):.3g}",
        }


def _texts(rows: Sequence[_ForestRow]) -> list[dict[str, object]]:
    """The label of each row, and P where the row above it has another or is of another trait."""
    students = [(row.finding.target if row.finding else "", row.levels) for row in rows]
    return [
        {
            "y": place + TEXT,
            "label": row.label,
            "p": "" if place and students[place] == students[place - 1] else _levels_text(row.levels),
        }
        for place, row in enumerate(rows)
    ]


def _levels_text(levels: Levels) -> str:
    parts = []
    if levels.students is not None:
        parts.append(f"P {probability(levels.students)}")
    if levels.base is not None:
        parts.append(f"base {probability(levels.base)}")
    return ", ".join(parts)


def _above(found: Finding | None) -> str:
    return f"{found.above} of {count(len(found.runs), 'run')}" if found else ""


def _described(row: _ForestRow) -> str:
    parts = [f"{row.label}: odds ratio {odds(row.effect)}", _levels_text(row.levels)]
    if row.finding:
        parts.append(f"{_above(row.finding)} above the margin")
    if row.speaks:
        parts.append(f"speaks {row.speaks}")
    return ", ".join(filter(None, parts))
