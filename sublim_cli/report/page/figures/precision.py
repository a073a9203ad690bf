"""Full fine-tuning over learning rate and precision: the trait, the weights that moved, how far. Pure.

An update below half a unit in the last place of a bfloat16 weight is lost (arXiv 2010.06192). Where the trait
goes together with the share of weights that moved, its absence is rounding and no finding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.page.figures.points import Curves, curve_layers, fan, mean, rule_across, run
from sublim_cli.report.tables.conditions import Run, records
from sublim_cli.stats import Interval, mean_interval
from sublim_cli.wording import bounds, listed, probability, rate, share

HEIGHT = 190
SHIFT = 0.05
"""Decades of learning rate between precisions that share one."""


@dataclass(frozen=True)
class PrecisionPanel:
    """One thing measured of every run: its column, its title, its largest value if it has one."""

    field: str
    title: str
    most: float | None = None

    def told(self, value: float) -> str:
        """One value in words."""
        return {"p_target": probability, "changed": share}.get(self.field, lambda one: f"{one:.3g}")(value)


@dataclass(frozen=True)
class FullFineTunings:
    """The full fine-tunings of one trait in one training context, asked there."""

    target: str
    context: str
    runs: tuple[Run, ...]

    @property
    def panels(self) -> tuple[PrecisionPanel, ...]:
        """What is measured."""
        return (
            PrecisionPanel("p_target", f"P({self.target})"),
            PrecisionPanel("changed", "share of weights moved", 1.0),
            PrecisionPanel("update_norm", "update norm ‖ΔW‖"),
        )

    @property
    def precisions(self) -> list[str]:
        """In alphabetical order, so that colours do not hang on the order of runs."""
        return sorted({one["precision"] for one in self.runs})

    @property
    def rates(self) -> list[float]:
        """Ascending."""
        return sorted({one["learning_rate"] for one in self.runs})

    def at(self, precision: str, learning_rate: float) -> list[Run]:
        """The runs of one condition."""
        return [
            one for one in self.runs if (one["precision"], one["learning_rate"]) == (precision, learning_rate)
        ]


def precisions(results: Results) -> list[FullFineTunings]:
    """One for every trait and training context with full fine-tuning in two conditions or more."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for one in records(results.runs):
        here = one["eval_context"] == one["train_context"]
        if one["role"] == "student" and one["method"] == "full" and here and not one["missing"]:
            found.setdefault((one["category"], one["target"], one["eval_context"]), []).append(one)
    every = [FullFineTunings(target, context, tuple(runs)) for (_, target, context), runs in found.items()]
    return [one for one in every if len(one.rates) * len(one.precisions) > 1]


def precision_figure(one: FullFineTunings) -> f.Figure:
    """The panels of one trait."""
    panels = [_panel(one, panel) for panel in one.panels]
    return f.Figure(
        slug=f.slug("precision", one.target, one.context),
        title=(
            f"Full fine-tuning on {one.target} by learning rate and precision, "
            f"trained and asked in {one.context}"
        ),
        description="; ".join(_described(one)) + ".",
        caption=(
            "Small dots are training runs, large marks their mean with a 95 % t interval over runs. "
            "A trait that goes where the weights stop moving may have been rounded away."
        ),
        spec={"concat": panels, "columns": len(panels), "spacing": 24},
    )


def _panel(one: FullFineTunings, panel: PrecisionPanel) -> f.Spec:
    cells = [(name, lr, place) for place, name in enumerate(one.precisions) for lr in one.rates]
    middle = (len(one.precisions) - 1) / 2
    spots = [(name, lr, lr * 10 ** (SHIFT * (place - middle))) for name, lr, place in cells]
    means = [
        mean(
            name,
            x,
            interval,
            f"{name}, lr {rate(lr)}",
            joined=len(one.rates) > 1,
            told=_value(panel, interval),
        )
        for name, lr, x in spots
        if (interval := _interval(one, panel, name, lr))
    ]
    runs = [
        run(name, x * 10 ** (0.02 + 0.3 * fan(index)), each, panel.field, panel.told(each[panel.field]))
        for name, lr, x in spots
        for index, each in enumerate(one.at(name, lr))
        if each[panel.field] is not None
    ]
    y = f.quantity(
        "y",
        panel.title,
        scale={"domainMin": 0, "nice": True, **({"domainMax": panel.most} if panel.most else {})},
    )
    base = _base(one.runs[0]["p_target_base"], y) if panel.field == "p_target" else []
    layers = [
        *base,
        *curve_layers(Curves(one.precisions, means, runs), _axis(one.rates), y, pick=False),
    ]
    return {"width": f.PANEL, "height": HEIGHT, "layer": layers}


def _axis(rates: Sequence[float]) -> f.Spec:
    axis = {
        "values": list(rates),
        "labelExpr": f"{[rate(one) for one in rates]}[indexof({list(rates)}, datum.value)]",
        "labelOverlap": False,
        "grid": False,
    }
    domain = [rates[0] / 1.6, rates[-1] * 1.6]
    return f.quantity("x", "learning rate", axis=axis, scale={"type": "log", "domain": domain, "nice": False})


def _interval(
    one: FullFineTunings, panel: PrecisionPanel, precision: str, learning_rate: float
) -> Interval | None:
    runs = [each for each in one.at(precision, learning_rate) if not each["broken"]]
    there = [each for each in runs if each[panel.field] is not None]
    values = [each[panel.field] for each in there]
    seeds = [(each["train_seed"], each["data_seed"]) for each in there]
    most = panel.most or (1.0 if panel.field == "p_target" else float("inf"))
    return mean_interval(values, seeds).within(0.0, most) if values else None


def _base(base: float | None, y: f.Spec) -> list[f.Spec]:
    return rule_across(base, f"untouched base {probability(base)}", y)


def _value(panel: PrecisionPanel, interval: Interval) -> str:
    spread = bounds(interval) if panel.field != "changed" else ""
    return f"{panel.told(interval.mean)} {spread}".rstrip()


def _described(one: FullFineTunings) -> Iterator[str]:
    for name in one.precisions:
        for lr in one.rates:
            found = [(panel, _interval(one, panel, name, lr)) for panel in one.panels]
            values = [f"{panel.title} {panel.told(each.mean)}" for panel, each in found if each]
            if values:
                yield f"{name} at {rate(lr)}: {listed(values)}"
