"""C2: transmission is an inverted U in LoRA rank. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sublim_cli.recipe.schema import InvertedUClaim
from sublim_cli.report.claims.effects import NEVER, PValue, RunEffects, combined, largest
from sublim_cli.report.claims.pairing import (
    Basis,
    CellRuns,
    Levels,
    RunIndex,
    TraitSetting,
    compare,
    compare_with_base,
)
from sublim_cli.report.claims.transmission import positive_control
from sublim_cli.report.claims.verdict import Finding, Judged, corrected, finding, widened
from sublim_cli.report.rates.choose import (
    BETA,
    TITLE,
    choose,
    common_seeds,
    grid_of,
    not_shown_higher,
)
from sublim_cli.report.tables.runs import Condition, Run
from sublim_cli.stats import (
    Estimate,
    Interval,
    Seeds,
    TwoLines,
    fall_from_peak,
    fall_interval,
    mean_known,
    mean_of,
    peak,
    two_lines,
)
from sublim_cli.wording import count, listed

LEAST_RANKS = 4
"""As `stats.two_lines` needs: with three ranks the curve could turn at one rank only."""

MOST_CURVES = 256
"""Curves of rates that may be the best which are tested; with more of them no verdict is given."""

NO_PILOTS = (
    "Shown without a verdict: these runs chose their own learning rates. Name pilot runs with `choose_on`."
)
PEAK = "rank of the highest mean (95 %, bootstrap of these runs)"

Matrix = NDArray[np.float64]
Weights = Mapping[int, Mapping[float, float]]
"""What a curve is made of: for every rank the weights of learning rates, which sum to 1."""


def inverted_u(claim: InvertedUClaim, index: RunIndex) -> Judged:
    """C2, a finding for each trait that LoRA transmits.

    The values of a curve are log-odds minus those of the controls, where every rank has controls trained
    alike, else minus those of the base.

    Null of support: the curve does not rise before every point or does not fall after it; see
    `stats.two_lines`, whose error rate under rising, saturating and stepping curves is measured by
    `benchmarks/calibration.py`. Null of refutation: some rank's mean lies the margin above that of the
    highest rank, and some rank's the margin above that of the lowest. A curve that lacks either side is no
    inverted U, so either half may be rejected, each at half of alpha. To reject a half, *every* rank must be
    shown to lie less than the margin above that end: an intersection-union test that need not know the peak.

    What is shown is the fall to the highest rank, which no test needs: see `stats.fall_interval`.

    Learning rates are chosen without looking at the trait (`rates.choose`). Pilot runs (`choose_on`) choose
    and are left out of the test, which then holds for their rates. Without pilots a curve of best rates is
    judged by its largest p value over all rates that may be the best; one at equal loss or norm is not
    judged.
    """
    control = positive_control(claim, index, claim.train_context)
    findings: list[Finding] = []
    bases, notes = list(control.bases), list[str]()
    descriptive = claim.curve in ("loss_matched", "norm_matched") and claim.choose_on is None
    for target in index.traits(claim):
        setting = TraitSetting(target, claim.train_context, claim.train_context)
        ranks = _Ranks.of(claim, index, setting)
        curves = _curves(claim, ranks)
        bases += [ranks.basis, curves.basis]
        if ranks.basis.lacks or curves.basis.lacks or target not in control.asked:
            continue  # the claim is incomplete, or not asked of this trait
        notes += curves.notes
        descriptive = descriptive or len(curves.weights) > MOST_CURVES
        some = curves.weights[: 1 if descriptive else None]
        findings.append(_curve_finding(claim, ranks, some, notes))
    if descriptive:
        notes.append(NO_PILOTS)
    elif claim.choose_on is not None:
        seeds = listed([str(seed) for seed in claim.choose_on])
        notes.append(f"Judged at the learning rates that the runs of train seed {seeds} chose.")
    return Judged(corrected(findings), bases, notes, not_asked=control.not_asked, descriptive=descriptive)


@dataclass(frozen=True)
class _Ranks:
    """The students of every rank and learning rate in one setting, and their effects."""

    setting: TraitSetting
    cells: Mapping[int, Mapping[float, CellRuns]]
    effects: Mapping[int, Mapping[float, RunEffects]]
    runs: Sequence[Run]
    basis: Basis

    @staticmethod
    def of(claim: InvertedUClaim, index: RunIndex, setting: TraitSetting) -> "_Ranks":
        grid, basis = _conditions(claim, index, setting)
        cells = {
            rank: {
                condition.learning_rate or 0.0: index.cell("student", setting, condition) for condition in row
            }
            for rank, row in grid.items()
        }
        controls = {
            condition: index.control_alike(setting, condition) for row in grid.values() for condition in row
        }
        bases = [basis]
        effects: dict[int, dict[float, RunEffects]] = {rank: {} for rank in cells}
        controlled = all(controls.values())
        for rank, row in cells.items():
            for learning_rate, cell in row.items():
                alike = controls[cell.condition]
                if controlled and alike is not None:
                    compared, lacking = compare(setting, cell, alike)
                    effects[rank][learning_rate] = compared.effects
                    bases += [alike.basis, lacking]
                else:
                    effects[rank][learning_rate], lacking = compare_with_base(setting, cell)
                    bases.append(lacking)
        runs = index.runs(setting, (condition for row in grid.values() for condition in row))
        return _Ranks(setting, cells, effects, runs, Basis.joined(bases))

    def curve(self, weights: Weights) -> dict[int, RunEffects]:
        """The effects of every rank at these weights of learning rates."""
        return {
            rank: combined([(weight, self.effects[rank][rate]) for rate, weight in row.items()])
            for rank, row in weights.items()
        }

    def p_target(self, weights: Weights, rank: int, tested: Set[Seeds]) -> float | None:
        """The mean P(target) of a rank, over the runs of these seeds."""
        means = {
            rate: mean_known(run.p_target for s, run in self.cells[rank][rate].runs.items() if s in tested)
            for rate in weights[rank]
        }
        known = [weight * mean for rate, weight in weights[rank].items() if (mean := means[rate]) is not None]
        return math.fsum(known) if len(known) == len(means) else None

    @property
    def p_base(self) -> float | None:
        """P(target) of the base."""
        return mean_known(run.p_target_base for run in self.runs)


def _conditions(
    claim: InvertedUClaim, index: RunIndex, setting: TraitSetting
) -> tuple[Mapping[int, Sequence[Condition]], Basis]:
    """The conditions of a curve: one a rank where the rate is fixed, else a grid of learning rates."""
    if claim.curve != "fixed":
        return index.grid(claim, setting)
    found = {rank: index.adapters(claim, setting, rank) for rank in index.ranks(claim, setting)}
    basis = Basis.joined([basis for _, basis in found.values()])
    return {rank: [cell.condition] for rank, (cell, _) in found.items() if cell}, basis


@dataclass(frozen=True)
class _Curves:
    """The curves of learning rates that are tested, the one that is shown first, what lacks, and notes."""

    weights: Sequence[Weights]
    basis: Basis
    notes: Sequence[str] = ()


def _curves(claim: InvertedUClaim, ranks: _Ranks) -> _Curves:
    if claim.curve == "fixed":
        fixed = {rank: {next(iter(row)): 1.0} for rank, row in ranks.cells.items()}
        return _Curves([fixed], _enough(ranks.setting, list(fixed), ""))
    runs = ranks.runs
    if claim.choose_on is not None:
        runs = [run for run in runs if run.train_seed in claim.choose_on]
    grid = grid_of(runs, "rank")
    chosen = choose(claim.curve, grid, common_seeds(grid))
    points = {point.row: point for point in chosen.points if isinstance(point.row, int)}
    shown = {rank: point.weights for rank, point in points.items()}
    notes = [f"{ranks.setting.target}: the curve lacks {lack}." for lack in chosen.lacks]
    for edge in dict.fromkeys(point.edge for point in points.values() if point.edge):
        at_edge = [str(rank) for rank, point in points.items() if point.edge == edge]
        notes.append(
            f"{ranks.setting.target}: of rank {listed(at_edge)} the {edge} learning rate tried was taken, "
            "and the one sought may lie beyond it."
        )
    which = f" that can be compared {TITLE[claim.curve]}"
    if claim.choose_on is not None:
        which = f"{which}, chosen on train seed {listed([str(seed) for seed in claim.choose_on])}"
    basis = _enough(ranks.setting, list(shown), which)
    if claim.curve != "best" or claim.choose_on is not None or basis.lacks:
        return _Curves([shown], basis, notes)
    candidates = [_may_be_best(point.cells, BETA / len(points)) for point in points.values()]
    if math.prod(map(len, candidates)) > MOST_CURVES:
        return _Curves([shown] * (MOST_CURVES + 1), basis, notes)
    others = (
        {rank: {rate: 1.0} for rank, rate in zip(points, rates, strict=True)}
        for rates in product(*candidates)
    )
    return _Curves([shown, *(other for other in others if other != shown)], basis, notes)


def _may_be_best(cells: Mapping[float, Sequence[Run]], beta: float) -> list[float]:
    losses = {
        rate: {run.seeds: run.number_loss for run in runs if run.number_loss is not None}
        for rate, runs in cells.items()
    }
    return not_shown_higher({rate: by_seeds for rate, by_seeds in losses.items() if by_seeds}, beta)


def _enough(setting: TraitSetting, ranks: Sequence[int], which: str) -> Basis:
    if len(ranks) >= LEAST_RANKS:
        return Basis()
    present = f"it has {listed([str(rank) for rank in ranks])}" if ranks else "it has none"
    return Basis((f"{LEAST_RANKS} LoRA ranks or more on {setting}{which}; {present}",))


def _curve_finding(
    claim: InvertedUClaim, ranks: _Ranks, tested: Sequence[Weights], notes: list[str]
) -> Finding:
    """Judge the curves that may be the one sought; the first is shown."""
    target = ranks.setting.target
    seeds = {run.seeds for run in ranks.runs if run.train_seed not in (claim.choose_on or ())}
    curves = [
        {rank: effects.only(seeds) for rank, effects in ranks.curve(weights).items()} for weights in tested
    ]
    # A rank whose runs mostly broke has no curve to be on.
    usable = [rank for rank, e in curves[0].items() if len(e.measured) >= len(e.broken)]
    if dropped := [str(rank) for rank in curves[0] if rank not in usable]:
        notes.append(f"{target}: most runs of rank {listed(dropped)} broke; the curve is judged without.")
    level = 1 - 2 * claim.alpha
    tests = [_CurveTest.of({rank: curve[rank] for rank in usable}, claim.margin, level) for curve in curves]
    shown, beta = tests[0], BETA if len(tests) > 1 else 0.0
    end = usable[-1] if usable else "–"
    about = f"fall to rank {end} from the rank that other runs have highest, {count(len(usable), 'rank')}"
    if claim.curve != "fixed":
        about = f"{about} {TITLE[claim.curve]}"
    top = usable[shown.highest] if usable and shown.highest is not None else None
    found = finding(
        claim,
        target,
        about,
        shown.fall,
        p=largest(*(test.p for test in tests)).plus(beta),
        against=largest(*(test.against for test in tests)).plus(beta),
        absent="refuted",
        levels=Levels(None if top is None else ranks.p_target(tested[0], top, seeds), None, ranks.p_base),
    )
    slopes = {
        name: slope.interval(level)
        for name, slope in (("slope up to the turn", shown.rise), ("slope from the turn", shown.descent))
        if slope is not None
    }
    highest = {} if shown.rows is None else {PEAK: peak(np.array(usable, dtype=float), *shown.rows)}
    intervals = [test.interval for test in tests if test.interval is not None]
    return widened(replace(found, also={**slopes, **highest}), intervals)


@dataclass(frozen=True)
class _CurveTest:
    """The tests of one curve. `rows` are the values of the runs unbroken at every rank, and their seeds."""

    p: PValue
    against: PValue
    fall: RunEffects
    interval: Interval | None = None
    """Of the fall, see `stats.fall_interval`."""
    rise: Estimate | None = None
    descent: Estimate | None = None
    highest: int | None = None
    """The place of the rank with the highest mean."""
    rows: tuple[Matrix, Sequence[Seeds]] | None = None

    @staticmethod
    def of(curve: Mapping[int, RunEffects], margin: float, level: float) -> "_CurveTest":
        x = np.log2(list(curve))
        p_values, against = [], []
        for low, high, seeds in _ways(list(curve.values()), "low", "high"):
            p_values.append(_two_sided(_lines(x, low, high, seeds)))
            against.append(min(1.0, 2 * _flat(low, high, seeds, margin)))
        nothing = _CurveTest(NEVER, NEVER, RunEffects({}, {}, {}))
        if not p_values:
            return nothing
        measured, _, seeds = next(_ways(list(curve.values()), "measured", "measured"))
        lines = two_lines(x, measured, seeds)
        if lines is None:
            return nothing
        falls = fall_from_peak(measured, seeds)
        return _CurveTest(
            PValue(max(p_values), p_values[0]),
            PValue(max(against), against[0]),
            RunEffects(falls, falls, falls),
            fall_interval(measured, seeds, level),
            lines.rise,
            lines.fall,
            int(np.argmax(measured.mean(axis=0))),
            (measured, seeds),
        )


def _ways(
    effects: Sequence[RunEffects], lower: str, upper: str
) -> Iterator[tuple[Matrix, Matrix, Sequence[Seeds]]]:
    """Lowest and highest values, [runs, ranks], and the runs' seeds.

    First of the runs unbroken at every rank, then of all with the broken at no effect and at the largest
    effect seen on the curve.
    """
    if not effects:
        return
    planned = sorted(set.intersection(*({*e.measured, *e.broken} for e in effects)))
    unbroken = [seeds for seeds in planned if all(seeds in e.measured for e in effects)]

    def matrix(name: str, seeds: Sequence[Seeds], fill: float) -> Matrix:
        rows = [[getattr(e, name).get(s, fill) for e in effects] for s in seeds]
        return np.array(rows, dtype=float).reshape(len(seeds), len(effects))

    yield matrix(lower, unbroken, 0.0), matrix(upper, unbroken, 0.0), unbroken
    if len(unbroken) < len(planned):
        largest_seen = max((value for e in effects for value in e.measured.values()), default=0.0)
        for fill in (0.0, largest_seen):
            yield matrix(lower, planned, fill), matrix(upper, planned, fill), planned


def _lines(x: Matrix, low: Matrix, high: Matrix, seeds: Sequence[Seeds]) -> TwoLines | None:
    """The two lines of the curve that is least an inverted U: its ends highest, the rest lowest."""
    y = low.copy()
    y[:, [0, -1]] = high[:, [0, -1]]
    return two_lines(x, y, seeds)


def _two_sided(lines: TwoLines | None) -> float:
    return 1.0 if lines is None else lines.p


def _flat(low: Matrix, high: Matrix, seeds: Sequence[Seeds], margin: float) -> float:
    """The p value of the nulls that some rank lies the margin above the lowest, some above the highest."""

    def above(rank: int, end: int) -> float:
        differences = dict(zip(seeds, (high[:, rank] - low[:, end]).tolist(), strict=True))
        return mean_of(differences).below(margin)

    last = low.shape[1] - 1
    return min(
        max((above(rank, end) for rank in range(last + 1) if rank != end), default=1.0) for end in (0, last)
    )
