"""Which students stand for a rank: the choice of a learning rate by what is not the trait. Pure.

choose("best", grid_of(runs, "rank"), common_seeds(grid))

* fixed: every row at one learning rate, the recipe's own or the only one there is.
* best: every row at the rate of its lowest held-out number loss, averaged over seeds. Of equal ones it is the
  lower. At an edge of the grid the best may lie beyond it.
* loss_matched: every row where its number loss meets one that all rows reach, the largest of their lowest. A
  lowest loss is that of the parabola in the logarithm of the rate through the best rate and its two
  neighbours: a grid's own would stand above the valley here and below it there. Only rates up to the valley
  count; the same loss beyond it is over-stepping, another matter.
* norm_matched: every row where the norm of its update meets one for all, the geometric mean of what the rows
  have at their best rates, moved into the range that every row's grid spans.

A matched rate lies between those of the grid. A run then stands for the mean of its students at the two next
to it (a norm, in logarithms), or at the three of the parabola, with the weights that meet the quantity. Where
it is out of reach the nearest rate stands, and the mismatch is told.

Losses and norms are averaged over the seeds that all rows and rates have, since data sets differ in loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sublim_cli.recipe.schema import CurveKind
from sublim_cli.report.rates.interpolate import (
    Measured,
    best_rate,
    common_loss,
    common_norm,
    log_norm,
    meet,
    mixed,
    valley_of,
)
from sublim_cli.report.tables.conditions import Run
from sublim_cli.stats import Seeds
from sublim_cli.wording import listed, rate

Row = int | str
"""A rank; of full fine-tuning the precision."""

Grid = Mapping[Row, Mapping[float, Sequence[Run]]]
"""The runs of every row at every learning rate."""

TITLE: dict[CurveKind, str] = {
    "fixed": "one learning rate",
    "best": "each at its best learning rate",
    "loss_matched": "at equal number loss",
    "norm_matched": "at equal update norm",
}
LEAST_RATES = 3
"""Fewer have no inner rate, so a best one cannot be told from an edge."""


@dataclass(frozen=True)
class RateChoice:
    """Which students of one row stand for it: those of one learning rate, or a mean of two or three.

    `weights` are their shares by learning rate, and of three one may be a little below zero. `loss` and
    `norm` are theirs. `mismatch` is the matched quantity minus its reference: nats of a loss, the relative
    difference of a norm; None where nothing is matched. `edge` is `lowest` or `highest` where the rate is
    the grid's last and the one sought may lie beyond, else empty.
    """

    weights: Mapping[float, float]
    loss: float | None = None
    norm: float | None = None
    mismatch: float | None = None
    edge: str = ""

    @property
    def learning_rate(self) -> float:
        """The rate that they stand for."""
        return math.exp(math.fsum(share * math.log(one) for one, share in self.weights.items()))

    def values(self, cells: Mapping[float, Sequence[Run]], column: str) -> dict[Seeds, float | None]:
        """A column by seeds, of the runs that all chosen rates have; None where one of them is broken."""
        chosen = [(share, _by_seeds(cells[one])) for one, share in self.weights.items()]
        common = set.intersection(*(set(runs) for _, runs in chosen))
        return {one: _weighed([(share, runs[one][column]) for share, runs in chosen
                               if not runs[one]["broken"]], len(chosen))
                for one in sorted(common)}  # fmt: skip


@dataclass(frozen=True)
class CurveChoice:
    """The choices of one curve, what they were matched to, and which rows have none, in words."""

    kind: CurveKind
    choices: Mapping[Row, RateChoice] = field(default_factory=dict)
    reference: float | None = None
    lacks: tuple[str, ...] = ()


def grid_of(runs: Sequence[Run], row: str) -> Grid:
    """Runs by the column `row` and the learning rate, both ascending; what is not built is left out."""
    found: dict[Row, dict[float, list[Run]]] = {}
    there = (run for run in runs if run["p_target"] is not None)
    for run in sorted(there, key=lambda one: (one[row], one["learning_rate"])):
        found.setdefault(run[row], {}).setdefault(run["learning_rate"], []).append(run)
    return found


def common_seeds(*grids: Grid) -> frozenset[Seeds]:
    """The seeds that every row has at every learning rate."""
    sets = [set(_by_seeds(runs)) for grid in grids for cells in grid.values() for runs in cells.values()]
    return frozenset(set.intersection(*sets)) if sets else frozenset()


def choose(
    kind: CurveKind,
    grid: Grid,
    seeds: frozenset[Seeds],
    *,
    fixed: float | None = None,
    reference: float | None = None,
) -> CurveChoice:
    """The students that stand for each row on a curve of this kind.

    Args:
        grid: see `grid_of`.
        seeds: those over which losses and norms are averaged, see `common_seeds`.
        fixed: the rate of a fixed curve; where there is only one it is that.
        reference: what to match; None takes what all rows can reach.
    """
    if kind == "fixed":
        return _fixed(grid, seeds, fixed)
    rows = {row: _measured(cells, seeds) for row, cells in grid.items()}
    able = {row: one for row, one in rows.items() if len(one) >= LEAST_RATES}
    lacks = _gridless(grid, rows, seeds)
    if kind == "norm_matched":
        able, with_losses = {row: moved for row, cells in able.items() if (moved := _moved(cells))}, able
        if with_losses and not able:
            lacks = (*lacks, "update norms: this method adds nothing to the weights")
    if not able:
        return CurveChoice(kind, lacks=lacks)
    if kind == "best":
        return CurveChoice(
            kind, {row: _at(cells, best_rate(cells)) for row, cells in able.items()}, None, lacks
        )
    find, meet = (common_loss, _meet_loss) if kind == "loss_matched" else (common_norm, _meet_norm)
    wanted = find(able.values()) if reference is None else reference
    return CurveChoice(kind, {row: meet(cells, wanted) for row, cells in able.items()}, wanted, lacks)


def _measured(cells: Mapping[float, Sequence[Run]], seeds: frozenset[Seeds]) -> dict[float, Measured]:
    """The cells of a row whose losses are known; broken runs count, for they show what a rate does."""
    found = {
        one: (mean_over(runs, seeds, "number_loss"), mean_over(runs, seeds, "update_norm"))
        for one, runs in cells.items()
    }
    return {one: Measured(loss, norm) for one, (loss, norm) in found.items() if loss is not None}


def mean_over(runs: Sequence[Run], seeds: frozenset[Seeds], column: str) -> float | None:
    """The mean of a column over the runs of these seeds; None where one has no value or none is left."""
    values = [run[column] for one, run in _by_seeds(runs).items() if one in seeds]
    return None if not values or None in values else math.fsum(values) / len(values)


def _moved(cells: Mapping[float, Measured]) -> dict[float, Measured]:
    """The cells whose update has a norm that is not zero: rounding can take all of one away."""
    return {one: cell for one, cell in cells.items() if cell.norm}


def _gridless(
    grid: Grid, rows: Mapping[Row, Mapping[float, Measured]], seeds: frozenset[Seeds]
) -> tuple[str, ...]:
    """Why rows cannot be chosen for: in words."""
    few = [row for row, cells in grid.items() if len(cells) < LEAST_RATES]
    if not grid:
        return ("students",)
    if len(few) < len(grid) and not seeds:
        return ("a seed that all ranks and learning rates have in common",)
    lacks = [f"{LEAST_RATES} learning rates or more for {_rows(few)}"] if few else []
    blind = [row for row, cells in rows.items() if row not in few and len(cells) < LEAST_RATES]
    return (*lacks, *([f"the held-out number loss of {_rows(blind)}"] if blind else []))


def _rows(rows: Sequence[Row]) -> str:
    kind = "rank" if isinstance(rows[0], int) else "full fine-tuning in"
    return f"{kind} {listed([str(one) for one in rows])}"


def _fixed(grid: Grid, seeds: frozenset[Seeds], fixed: float | None) -> CurveChoice:
    rates = sorted({one for cells in grid.values() for one in cells})
    wanted = rates[0] if len(rates) == 1 else fixed
    if wanted is None or not rates:
        there = f"; there are {listed([rate(one) for one in rates])}" if rates else ""
        return CurveChoice("fixed", lacks=(f"one learning rate for all{there}",))
    choices = {
        row: RateChoice({wanted: 1.0}, mean_over(cells[wanted], seeds, "number_loss"),
                    mean_over(cells[wanted], seeds, "update_norm"))
        for row, cells in grid.items() if wanted in cells
    }  # fmt: skip
    without = [row for row in grid if row not in choices]
    return CurveChoice(
        "fixed", choices, None, (f"lr {rate(wanted)} for {_rows(without)}",) if without else ()
    )


def _at(cells: Mapping[float, Measured], one: float) -> RateChoice:
    edge = {min(cells): "lowest", max(cells): "highest"}.get(one, "")
    return RateChoice({one: 1.0}, cells[one].loss, cells[one].norm, None, edge)


def _meet_loss(cells: Mapping[float, Measured], reference: float) -> RateChoice:
    best, valley = best_rate(cells), valley_of(cells)
    if valley:
        place = valley.lowest - math.sqrt(max(0.0, reference - valley.loss) / valley.curvature)
        if place >= math.log(valley.rates[0]):
            made = mixed(cells, weights := valley.weights(place))
            return RateChoice(weights, made.loss, made.norm, made.loss - reference)
    weights, edge = meet({one: cells[one].loss for one in cells if one <= best}, reference)
    made = mixed(cells, weights)
    if list(weights) == [best]:  # its lowest loss, which may be lower beyond the grid
        edge = _at(cells, best).edge
    return RateChoice(weights, made.loss, made.norm, made.loss - reference, edge)


def _meet_norm(cells: Mapping[float, Measured], reference: float) -> RateChoice:
    weights, edge = meet({one: log_norm(cell) for one, cell in cells.items()}, math.log(reference))
    made = mixed(cells, weights)
    return RateChoice(weights, made.loss, made.norm, math.exp(log_norm(made)) / reference - 1, edge)


def _by_seeds(runs: Sequence[Run]) -> dict[Seeds, Run]:
    return {(run["train_seed"], run["data_seed"]): run for run in runs}


def _weighed(parts: Sequence[tuple[float, float | None]], whole: int) -> float | None:
    if len(parts) < whole or any(value is None for _, value in parts):
        return None
    return math.fsum(share * value for share, value in parts if value is not None)
