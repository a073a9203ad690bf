"""Every rank at every learning rate as a heat map of odds ratios: what one curve over ranks is taken from."""

import math
from collections.abc import Iterator, Sequence

import altair as alt

from sublim_cli.report.claims.effects import RunEffects
from sublim_cli.report.claims.pairing import RunIndex, TraitSetting, compare_with_base
from sublim_cli.report.claims.wording import as_odds, odds
from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures.contexts import ABOVE, BELOW, DEEPEST
from sublim_cli.report.page.figures.figure import WIDTH, Figure, chart, layered, slug, tooltips
from sublim_cli.report.tables.runs import Condition
from sublim_cli.wording import condition_label, count, rate

ROW = 30
"""Pixels of a learning rate."""

LEVEL = 0.95
"""Of the intervals."""

ALL_BROKEN = "×"


def rate_grid_figures(results: Results) -> Iterator[Figure]:
    """One for every trait, training context and kind of LoRA students with several learning rates."""
    index = RunIndex(results.runs)
    settings = dict.fromkeys(
        TraitSetting(run.target, run.train_context, run.eval_context)
        for run in results.runs
        if run.role == "student" and run.train_context == run.eval_context
    )
    for setting in settings:
        kinds: dict[tuple[str, str], list[Condition]] = {}
        for condition in index.lora(setting):
            kinds.setdefault((condition.precision, condition.settings), []).append(condition)
        for kind, conditions in kinds.items():
            if len({condition.learning_rate for condition in conditions}) > 1:
                about = [part for part in kind if part] if len(kinds) > 1 else []
                yield _grid_figure(index, setting, conditions, about)


def _grid_figure(
    index: RunIndex, setting: TraitSetting, conditions: Sequence[Condition], about: Sequence[str]
) -> Figure:
    compared = {condition: index.compared(setting, condition)[0] for condition in conditions}
    to_control = all(compared.values())
    effects = {
        condition: comparison.effects
        if to_control and comparison
        else compare_with_base(setting, index.cell("student", setting, condition))[0]
        for condition, comparison in compared.items()
    }
    other = "the controls of the same seeds" if to_control else "the untouched base"
    students = condition_label("student", "lora", None, about)
    described = [
        f"rank {condition.rank} at {rate(condition.learning_rate)} {_value(of)}"
        for condition, of in effects.items()
    ]
    return Figure(
        slug=slug("rates", setting.target, setting.trained, *about),
        title=f"Odds ratio of {setting.target} to {other}, {setting.contexts}: {students}",
        description="; ".join(described) + ".",
        caption=(
            "Geometric mean over runs that did not break. Orange is above 1 and blue below, darker for more; "
            f"in a framed tile some runs broke, {ALL_BROKEN} marks one where all did."
        ),
        chart=_heat_map(effects),
    )


def _value(effects: RunEffects) -> str:
    broken = f", {count(len(effects.broken), 'run')} broken" if effects.broken else ""
    if not effects.measured:
        return f"has no value{broken}"
    return f"{odds(effects.mean.interval(LEVEL))} ({count(len(effects.measured), 'run')}{broken})"


def _heat_map(effects: dict[Condition, RunEffects]) -> alt.LayerChart:
    largest = max((abs(of.mean.mean) for of in effects.values() if of.measured), default=0.0)
    tiles = [
        _tile(condition, of, largest, _column(condition, list(effects))) for condition, of in effects.items()
    ]
    columns = [_column(condition, list(effects)) for condition in effects]
    rates = sorted({condition.learning_rate or 0.0 for condition in effects}, reverse=True)
    edge = {"domain": False, "ticks": False, "grid": False}
    encodings = {
        "x": alt.X(
            "rank:N",
            title="LoRA rank",
            sort=list(dict.fromkeys(columns)),
            axis=alt.Axis(labelAngle=0, **edge),
        ),
        "y": alt.Y("rate:N", title="learning rate", sort=list(map(rate, rates)), axis=alt.Axis(**edge)),
    }
    tooltip = tooltips({"rank": "LoRA rank", "rate": "Learning rate", "value": "Odds ratio"})
    layers = [
        chart(tiles)
        .mark_rect()
        .encode(
            color=alt.when("datum.effect >= 0").then(alt.value(ABOVE)).otherwise(alt.value(BELOW)),
            opacity=alt.Opacity("depth:Q", scale=None, legend=None),
            tooltip=tooltip,
            **encodings,
        ),
        chart(tile for tile in tiles if tile["broken"])
        .mark_rect(filled=False, strokeWidth=1.5, aria=False)
        .encode(**encodings),
        chart(tiles).mark_text(fontSize=11, aria=False).encode(text="short:N", tooltip=tooltip, **encodings),
    ]
    return layered(layers, WIDTH, ROW * len(rates))


def _column(condition: Condition, conditions: Sequence[Condition]) -> str:
    """The rank, and alpha where students of one rank differ in it."""
    alphas = {other.alpha for other in conditions if other.rank == condition.rank}
    return str(condition.rank) if len(alphas) == 1 else f"{condition.rank} (α {condition.alpha:g})"


def _tile(condition: Condition, effects: RunEffects, largest: float, column: str) -> dict[str, object]:
    mean = effects.mean.mean if effects.measured else None
    short = as_odds(mean) if mean is not None else ALL_BROKEN if effects.broken else as_odds(None)
    return {
        "rank": column,
        "rate": rate(condition.learning_rate),
        "effect": mean or 0.0,
        "depth": DEEPEST * abs(mean) / largest if mean and largest and math.isfinite(mean) else 0.0,
        "short": short,
        "value": _value(effects),
        "broken": len(effects.broken),
    }
