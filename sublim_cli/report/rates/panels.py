"""P(target) over LoRA rank at four choices of the learning rate, and full fine-tuning beside them. Pure.

matched_curves(records(results.runs), fixed_rate(recipe))

With one learning rate at every rank and alpha = rank, a higher rank takes larger steps: what falls with rank
may be the steps. So the curve is shown four times: at one learning rate, at each rank's best, at equal number
loss and at equal update norm (`report.rates` has the rules).

Intervals are over training runs, given the choice: that another study might choose other rates is not in
them.
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
    mean_over,
)
from sublim_cli.report.tables.conditions import Run
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
        """Such as `2e-3`, or `1.2e-3 of 6e-4 and 2e-3` where it is made of students at others."""
        made = list(self.choice.weights)
        at = rate(float(f"{self.choice.learning_rate:.2g}")) if len(made) > 1 else rate(made[0])
        return f"{at} of {listed([rate(one) for one in made])}" if len(made) > 1 else at


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
        told = "" if self.reference is None else f" ({_quantity(self.kind, self.reference)})"
        return TITLE[self.kind] + told


@dataclass(frozen=True)
class GridPoint:
    """One row at one learning rate: a point of the grid that the curves choose from."""

    row: Row
    learning_rate: float
    point: CurvePoint


@dataclass(frozen=True)
class Panel:
    """One trait, asked in the context of training: the four curves of one adapter method.

    `method` and `about` (what else tells it from others) name the students of `curves`. `full` holds the
    best, the loss-matched and the norm-matched rate of full fine-tuning by precision, at the adapters'
    references. `cells` and `full_cells` hold every rate.
    """

    category: str
    target: str
    context: str
    method: str
    about: str
    base: float | None
    curves: tuple[Curve, ...]
    cells: tuple[GridPoint, ...]
    full: tuple[Curve, ...]
    full_cells: tuple[GridPoint, ...]

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
        lines = [f"{self.students}, {_told(one)}" for one in self.curves]
        return "\n".join([*lines, *(f"full fine-tuning, {_told(one)}" for one in self.full)])


def fixed_rate(recipe: Recipe) -> float | None:
    """The one learning rate that a recipe gives adapters before its sweep; None if each rank has its own."""
    wanted = recipe.train.learning_rate
    return None if isinstance(wanted, PerRank) else wanted or LEARNING_RATE["adapter"]


def matched_curves(runs: Sequence[Run], fixed: float | None = None) -> list[Panel]:
    """A panel for every trait, training context and adapter method that was asked where it was trained.

    Args:
        runs: the rows of a runs table, see `conditions.records`.
        fixed: the learning rate of the first curve, see `fixed_rate`.
    """
    places: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run["role"] == "student" and run["train_context"] == run["eval_context"]:
            places.setdefault((run["category"], run["target"], run["eval_context"]), []).append(run)
    return [one for place, there in places.items() for one in _panels(place, there, fixed)]


def _panels(place: tuple[str, str, str], runs: Sequence[Run], fixed: float | None) -> Iterator[Panel]:
    adapters: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run["method"] in RANKED:
            adapters.setdefault((run["method"], run["precision"], run["settings"]), []).append(run)
    in_full = [run for run in runs if run["method"] == "full"]
    for (method, precision, settings), own in (adapters or {("lora", "", ""): []}).items():
        several = len({key[1] for key in adapters if key[0] == method}) > 1
        yield _panel(
            place, method, ", ".join(filter(None, [precision if several else "", settings])), own,
            [run for run in in_full if run["settings"] == settings] or in_full, fixed,
        )  # fmt: skip


def _panel(
    place: tuple[str, str, str], method: str, about: str, own: Sequence[Run], in_full: Sequence[Run],
    fixed: float | None,
) -> Panel:  # fmt: skip
    grid, full = grid_of(own, "rank"), grid_of(in_full, "precision")
    seeds, shared = common_seeds(grid), common_seeds(grid, full)
    curves = {kind: choose(kind, grid, seeds, fixed=fixed) for kind in KINDS}
    references = {kind: choose(kind, grid, shared).reference for kind in MATCHED}
    beside = [choose(kind, full, shared, reference=one) for kind, one in references.items()]
    bases = [run["p_target_base"] for run in (*own, *in_full) if run["p_target_base"] is not None]
    return Panel(
        *place,
        method,
        about,
        bases[0] if bases else None,
        curves=tuple(_curve(one, grid) for one in curves.values()),
        cells=tuple(_cells(grid, seeds)),
        full=tuple(_curve(one, full) for one in beside if full),
        full_cells=tuple(_cells(full, shared)),
    )


def _curve(chosen: CurveChoice, grid: Grid) -> Curve:
    points = (_point(row, choice, grid[row]) for row, choice in chosen.choices.items())
    return Curve(chosen.kind, tuple(points), chosen.reference, chosen.lacks)


def _point(row: Row, choice: RateChoice, cells: Mapping[float, Sequence[Run]]) -> CurvePoint:
    values = choice.values(cells, "difference")
    whole = {one: value for one, value in values.items() if value is not None}
    return CurvePoint(
        row, choice, mean_of(whole).interval() if whole else None, whole,
        sum(bool(run["broken"]) for one in choice.weights for run in cells[one]),
    )  # fmt: skip


def _cells(grid: Grid, seeds: frozenset[Seeds]) -> Iterator[GridPoint]:
    for row, cells in grid.items():
        for one, runs in cells.items():
            choice = RateChoice(
                {one: 1.0}, mean_over(runs, seeds, "number_loss"), mean_over(runs, seeds, "update_norm")
            )
            yield GridPoint(row, one, _point(row, choice, cells))


def _quantity(kind: CurveKind, value: float) -> str:
    return f"loss {nats(value)}" if kind == "loss_matched" else f"norm {value:.3g}"


def _told(curve: Curve) -> str:
    told = [_told_point(curve.kind, one) for one in curve.points]
    lacking = [f"lacking: {listed(curve.lacks)}"] if curve.lacks else []
    return f"{curve.title}: {'; '.join([*told, *lacking])}."


def _told_point(kind: CurveKind, one: CurvePoint) -> str:
    if one.difference is None:
        value = "all broken"
    else:
        value = f"{difference(one.difference.mean)} {bounds(one.difference)}".rstrip()
    n = one.difference.n if one.difference else 0
    marks = [
        f"lr {one.rates}",
        f"n = {n}",
        *([f"{one.broken} broken"] if one.broken else []),
        *_misses(kind, one),
    ]
    where = f"rank {one.row}" if isinstance(one.row, int) else one.row
    return f"{where}: {value} ({', '.join(marks)})"


def _misses(kind: CurveKind, one: CurvePoint) -> Iterator[str]:
    choice = one.choice
    if choice.edge:
        yield f"the {choice.edge} rate tried"
    if choice.mismatch and kind == "loss_matched" and abs(choice.mismatch) >= 0.0005:
        yield f"loss off by {difference(choice.mismatch)}"
    if choice.mismatch and kind == "norm_matched" and abs(choice.mismatch) >= 0.005:
        yield f"norm off by {choice.mismatch:+.0%}".replace("-", "−").replace("%", " %")
