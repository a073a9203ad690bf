"""P(target) over LoRA rank at four choices of the learning rate, and full fine-tuning beside them. Pure.

    matched_curves(runs, fixed_rate(recipe))

With one learning rate at every rank and alpha = rank, a higher rank takes larger steps, so a fall with rank
may be a fall with step size. The curve is therefore shown four times: at one learning rate, at each rank's
best, at equal number loss and at equal update norm (the rules are in `rates.choose`).

Intervals are over training runs at the chosen rates. They leave out that other runs might choose other rates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import LEARNING_RATE, CurveKind, PerRank, Recipe
from sublim_cli.report.rates.choose import (
    TITLE,
    CurveChoice,
    Grid,
    RateChoice,
    Row,
    choose,
    common_seeds,
    grid_of,
)
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, Seeds, mean_of
from sublim_cli.wording import bounds, condition_label, difference, listed, nats, rate

MATCHED: tuple[CurveKind, ...] = ("best", "loss_matched", "norm_matched")
KINDS: tuple[CurveKind, ...] = ("fixed", *MATCHED)


@dataclass(frozen=True)
class CurvePoint:
    """One row on one curve.

    `difference` is P(target) minus the base over the `runs` that did not break, by (train seed, data seed),
    with its 95 % interval; None where none is left. `broken` counts those that did.
    """

    row: Row
    choice: RateChoice
    difference: Interval | None
    runs: Mapping[Seeds, float]
    broken: int

    @property
    def rates(self) -> str:
        """Such as `2e-3`, or `1.2e-3 of 6e-4 and 2e-3` where it is interpolated between rates."""
        parts = list(self.choice.weights)
        if len(parts) == 1:
            return rate(parts[0])
        rounded = float(f"{self.choice.learning_rate:.2g}")
        return f"{rate(rounded)} of {listed([rate(part) for part in parts])}"


@dataclass(frozen=True)
class Curve:
    """One series; without points where `lacks` says why."""

    kind: CurveKind
    points: tuple[CurvePoint, ...]
    reference: float | None
    lacks: tuple[str, ...]

    @property
    def title(self) -> str:
        """What is the same at every point."""
        if self.reference is None:
            return TITLE[self.kind]
        quantity = (
            f"loss {nats(self.reference)}" if self.kind == "loss_matched" else f"norm {self.reference:.3g}"
        )
        return f"{TITLE[self.kind]} ({quantity})"


@dataclass(frozen=True)
class Panel:
    """One trait, asked in the context of training: the four curves of one adapter method.

    `method` and `about` (what else tells it from others) name the students of `curves`. `full` holds the
    best, the loss-matched and the norm-matched rate of full fine-tuning by precision, at the adapters'
    references.
    """

    category: str
    target: str
    context: str
    method: str
    about: str
    curves: tuple[Curve, ...]
    full: tuple[Curve, ...]

    @property
    def title(self) -> str:
        """What the panel shows."""
        return f"P({self.target}) minus the base, trained and asked in {self.context}: {self.students}"

    @property
    def students(self) -> str:
        """Such as `LoRA`, `LoRA, bf16_mixed`."""
        return condition_label("student", self.method, None, [self.about] if self.about else [])

    def describe(self) -> str:
        """All of it in words, a line for each curve."""
        lines = [f"{self.students}, {_described(curve)}" for curve in self.curves]
        return "\n".join([*lines, *(f"full fine-tuning, {_described(curve)}" for curve in self.full)])


def fixed_rate(recipe: Recipe) -> float | None:
    """The learning rate that a recipe gives all adapters before its sweep; None if each rank has its own."""
    learning_rate = recipe.train.learning_rate
    return None if isinstance(learning_rate, PerRank) else learning_rate or LEARNING_RATE["adapter"]


def matched_curves(runs: Sequence[Run], fixed: float | None = None) -> list[Panel]:
    """A panel for every trait, training context and adapter method, of runs asked where they were trained.

    Args:
        fixed: the learning rate of the first curve, see `fixed_rate`.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.role == "student" and run.train_context == run.eval_context:
            groups.setdefault((run.category, run.target, run.eval_context), []).append(run)
    return [panel for key, group in groups.items() for panel in _panels(key, group, fixed)]


def _panels(key: tuple[str, str, str], runs: Sequence[Run], fixed: float | None) -> Iterator[Panel]:
    adapters: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.method in RANKED:
            adapters.setdefault((run.method, run.precision, run.settings), []).append(run)
    full = [run for run in runs if run.method == "full"]
    for (method, precision, settings), adapter_runs in (adapters or {("lora", "", ""): []}).items():
        several = len({other[1] for other in adapters if other[0] == method}) > 1
        about = ", ".join(filter(None, [precision if several else "", settings]))
        full_runs = [run for run in full if run.settings == settings] or full
        grid, full_grid = grid_of(adapter_runs, "rank"), grid_of(full_runs, "precision")
        seeds, shared_seeds = common_seeds(grid), common_seeds(grid, full_grid)
        # Full fine-tuning is compared over the seeds that both have, so references are taken over those.
        references = {kind: choose(kind, grid, shared_seeds).reference for kind in MATCHED}
        full_curves = [
            choose(kind, full_grid, shared_seeds, reference=reference)
            for kind, reference in references.items()
            if full_grid
        ]
        yield Panel(
            *key,
            method,
            about,
            curves=tuple(_curve(choose(kind, grid, seeds, fixed=fixed), grid) for kind in KINDS),
            full=tuple(_curve(choice, full_grid) for choice in full_curves),
        )


def _curve(chosen: CurveChoice, grid: Grid) -> Curve:
    points = []
    for row, choice in chosen.choices.items():
        values = choice.values(grid[row], "difference")
        unbroken = {seeds: value for seeds, value in values.items() if value is not None}
        interval = mean_of(unbroken).interval() if unbroken else None
        broken = sum(bool(run.broken) for chosen_rate in choice.weights for run in grid[row][chosen_rate])
        points.append(CurvePoint(row, choice, interval, unbroken, broken))
    return Curve(chosen.kind, tuple(points), chosen.reference, chosen.lacks)


def _described(curve: Curve) -> str:
    points = [_described_point(curve.kind, point) for point in curve.points]
    lacks = [f"lacking: {listed(curve.lacks)}"] if curve.lacks else []
    return f"{curve.title}: {'; '.join([*points, *lacks])}."


def _described_point(kind: CurveKind, point: CurvePoint) -> str:
    interval, choice = point.difference, point.choice
    value = f"{difference(interval.mean)} {bounds(interval)}".rstrip() if interval else "all broken"
    notes = [f"lr {point.rates}", f"n = {interval.n if interval else 0}"]
    if point.broken:
        notes.append(f"{point.broken} broken")
    if choice.edge:
        notes.append(f"the {choice.edge} rate tried")
    if choice.mismatch and kind == "loss_matched" and abs(choice.mismatch) >= 0.0005:
        notes.append(f"loss off by {difference(choice.mismatch)}")
    if choice.mismatch and kind == "norm_matched" and abs(choice.mismatch) >= 0.005:
        notes.append(f"norm off by {choice.mismatch:+.0%}".replace("-", "−").replace("%", " %"))
    row = f"rank {point.row}" if isinstance(point.row, int) else point.row
    return f"{row}: {value} ({', '.join(notes)})"
