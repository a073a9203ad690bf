"""Full fine-tuning over learning rate and precision: the trait, the share of weights that moved, the norm.

An update below half a unit in the last place of a bfloat16 weight is lost (arXiv 2010.06192). Where the trait
disappears together with the share of weights that moved, its absence is due to rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import altair as alt

from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures.curve_layers import curve_layers, fan, line_across, mean_mark, run_mark
from sublim_cli.report.page.figures.figure import PANEL, Figure, layered, named_ticks, slug
from sublim_cli.report.page.summary import column_interval
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval
from sublim_cli.wording import listed, probability, rate, share, with_bounds

HEIGHT = 190

SHIFT = 0.05
"""Decades of learning rate between precisions at the same rate."""

Conditions = Mapping[tuple[str, float], Sequence[Run]]
"""The full fine-tunings of one trait in one training context, by precision and learning rate."""


@dataclass(frozen=True)
class PrecisionPanel:
    """One thing measured of every run: its column in the runs table, its axis, and how a value is written."""

    column: str
    title: str
    text: Callable[[float], str]
    largest: float | None = None
    """The end of the axis, where the quantity has a largest value that is often reached."""

    def interval(self, runs: Sequence[Run]) -> Interval | None:
        """The mean over the runs that did not break."""
        most = float("inf") if self.column == "update_norm" else 1.0
        return column_interval([run for run in runs if not run.broken], self.column, 0.0, most)


def precision_figures(results: Results) -> Iterator[Figure]:
    """One for every trait and training context with full fine-tuning in two conditions or more."""
    traits: dict[tuple[str, str, str], dict[tuple[str, float], list[Run]]] = {}
    for run in results.runs:
        trained_here = run.eval_context == run.train_context
        if run.role == "student" and run.method == "full" and trained_here and not run.missing:
            conditions = traits.setdefault((run.category, run.target, run.eval_context), {})
            conditions.setdefault((run.precision, run.learning_rate or 0.0), []).append(run)
    for (_, target, context), conditions in traits.items():
        if len(conditions) > 1:
            yield _precision_figure(target, context, dict(sorted(conditions.items())))


def _precision_figure(target: str, context: str, conditions: Conditions) -> Figure:
    panels = (
        PrecisionPanel("p_target", f"P({target})", probability),
        PrecisionPanel("changed", "share of weights moved", share, largest=1.0),
        PrecisionPanel("update_norm", "norm of the update ΔW", "{:.3g}".format),
    )
    described = []
    for (precision, learning_rate), runs in conditions.items():
        means = [(panel, interval.mean) for panel in panels if (interval := panel.interval(runs))]
        values = [f"{panel.title} {panel.text(mean)}" for panel, mean in means]
        described += [f"{precision} at {rate(learning_rate)}: {listed(values)}"] if values else []
    return Figure(
        slug=slug("precision", target, context),
        title=f"Full fine-tuning on {target} by learning rate and precision, trained and asked in {context}",
        description="; ".join(described) + ".",
        caption=(
            "Small dots are training runs, large marks their mean with a 95 % t interval over runs. "
            "Where the trait and the share of weights moved both fall, rounding may have removed the trait."
        ),
        chart=alt.concat(
            *(_panel_chart(panel, conditions) for panel in panels), columns=len(panels), spacing=24
        ),
    )


def _panel_chart(panel: PrecisionPanel, conditions: Conditions) -> alt.LayerChart:
    # In alphabetical order, so that colours do not depend on the order of runs.
    precisions = sorted({precision for precision, _ in conditions})
    rates = sorted({learning_rate for _, learning_rate in conditions})
    means, marks = [], []
    for (precision, learning_rate), runs in conditions.items():
        x = learning_rate * 10 ** (SHIFT * (precisions.index(precision) - (len(precisions) - 1) / 2))
        if interval := panel.interval(runs):
            value = panel.text(interval.mean)
            if panel.column != "changed":  # bounds have three decimals, a share has none
                value = with_bounds(value, interval)
            condition = f"{precision}, lr {rate(learning_rate)}"
            means.append(mean_mark(precision, x, interval, condition, value, joined=len(rates) > 1))
        for index, run in enumerate(runs):
            if (measured := getattr(run, panel.column)) is not None:
                beside = x * 10 ** (0.02 + 0.3 * fan(index))
                text = panel.text(measured)
                marks.append(run_mark(precision, beside, measured, run.name, text, run.broken))
    x = alt.X(
        "x:Q",
        title="learning rate",
        axis=named_ticks({rate(learning_rate): learning_rate for learning_rate in rates}),
        scale=alt.Scale(type="log", domain=[rates[0] / 1.6, rates[-1] * 1.6], nice=False),
    )
    limits = {"domainMin": 0, "nice": True} | ({"domainMax": panel.largest} if panel.largest else {})
    y = partial(alt.Y, type="quantitative", title=panel.title, scale=alt.Scale(**limits))
    layers = curve_layers(precisions, means, marks, x, y, panel.title, selectable=False)
    base = next(iter(conditions.values()))[0].p_target_base
    if panel.column == "p_target" and base is not None:
        layers = [*line_across(base, f"untouched base {probability(base)}", y), *layers]
    return layered(layers, PANEL, HEIGHT)
