"""P(target) over LoRA rank at four choices of the learning rate, with full fine-tuning for comparison. Pure.

    matched_curves(runs, fixed_rate(recipe))

With one learning rate at every rank and alpha = rank, a higher rank takes larger steps, so a fall with rank
may be a fall with step size. The curve is therefore shown four times, by the rules of `rates.choose`.
Intervals are over training runs at the chosen rates and leave out that other runs might choose other rates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import LEARNING_RATE, CurveKind, PerRank, Recipe
from sublim_cli.report.rates.choose import Curve, CurvePoint, choose, common_seeds, grid_of
from sublim_cli.report.tables.runs import Run
from sublim_cli.wording import condition_label, difference, listed, with_bounds

MATCHED: tuple[CurveKind, ...] = ("best", "loss_matched", "norm_matched")
KINDS: tuple[CurveKind, ...] = ("fixed", *MATCHED)


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

    The first curve has the learning rate `fixed`, see `fixed_rate`.
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
            curves=tuple(choose(kind, grid, seeds, fixed=fixed) for kind in KINDS),
            full=tuple(full_curves),
        )


def _described(curve: Curve) -> str:
    points = [_described_point(curve.kind, point) for point in curve.points]
    lacks = [f"lacking: {listed(curve.lacks)}"] if curve.lacks else []
    return f"{curve.title}: {'; '.join([*points, *lacks])}."


def _described_point(kind: CurveKind, point: CurvePoint) -> str:
    interval, mismatch = point.difference, point.mismatch
    value = with_bounds(difference(interval.mean), interval) if interval else "all broken"
    notes = [f"lr {point.rates}", f"n = {interval.n if interval else 0}"]
    if point.broken:
        notes.append(f"{point.broken} broken")
    if point.edge:
        notes.append(f"the {point.edge} rate tried")
    if mismatch and kind == "loss_matched" and abs(mismatch) >= 0.0005:
        notes.append(f"loss off by {difference(mismatch)}")
    if mismatch and kind == "norm_matched" and abs(mismatch) >= 0.005:
        notes.append(f"norm off by {mismatch:+.0%}".replace("-", "−").replace("%", " %"))
    row = f"rank {point.row}" if isinstance(point.row, int) else point.row
    return f"{row}: {value} ({', '.join(notes)})"
