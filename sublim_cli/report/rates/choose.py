"""Choose a learning rate for each rank, without looking at the trait. Pure.

    choose("best", grid_of(runs, "rank"), common_seeds(grid))

A row is a rank, or a precision of full fine-tuning.

* fixed: every row at one learning rate, the recipe's own or the only one there is.
* best: every row at the rate with the lowest held-out number loss, averaged over seeds; of equal losses the
  lower rate. At an edge of the grid the best rate may be outside it.
* loss_matched: every row at the rate where its number loss equals a reference that all rows reach, the
  largest of their lowest losses. A lowest loss is the minimum of the parabola in log rate through the best
  rate and its two neighbours, because the grid's own minimum overestimates it by a different amount in every
  row. Only rates up to the minimum count: the same loss beyond it comes from over-stepping.
* norm_matched: every row at the rate where the norm of its update equals a reference: the geometric mean of
  the norms at the rows' best rates, moved into the range that every row's grid spans.

A matched rate is between rates of the grid. A run is then interpolated from the students of one seed at
the two nearest rates (linear in the loss or in the log norm) or at the three of the parabola (Lagrange).
Where the reference is out of reach, the nearest rate is used and the mismatch is reported.

Losses and norms are averaged over the seeds that all rows and rates have, since data sets differ in loss.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal, TypeVar

from sublim_cli.recipe.schema import CurveKind
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, Seeds, mean_known, mean_of
from sublim_cli.wording import listed, nats, rate

K = TypeVar("K")

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
BETA = 0.01
"""The probability that the set of rates that may be the best lacks the best (Berger and Boos 1994)."""

LEAST_RATES = 3
"""With fewer learning rates every rate is an edge of the grid, and the best may be outside it."""


@dataclass(frozen=True)
class CurvePoint:
    """One row on a curve: its students at one learning rate, or a weighted mean of those at two or three.

    `cells` are the row's runs at every learning rate. `weights` are by learning rate and sum to 1; of three
    one may be a little below zero. `loss` and `norm` are those of the weighted mean. `mismatch` is the
    matched quantity minus its reference: nats of a loss, the relative difference of a norm; None where
    nothing is matched. `edge` is `lowest` or `highest` where the rate is at that end of the grid and the
    optimum may be outside it, else empty.
    """

    row: Row
    cells: Mapping[float, Sequence[Run]] = field(repr=False, compare=False)
    weights: Mapping[float, float]
    loss: float | None
    norm: float | None
    mismatch: float | None = None
    edge: str = ""

    @property
    def learning_rate(self) -> float:
        """The geometric mean of the rates by their weights."""
        return math.exp(math.fsum(weight * math.log(rate) for rate, weight in self.weights.items()))

    @property
    def rates(self) -> str:
        """Such as `2e-3`, or `1.2e-3 of 6e-4 and 2e-3` where it is interpolated between rates."""
        parts = [rate(part) for part in self.weights]
        return (
            parts[0] if len(parts) == 1 else f"{rate(float(f'{self.learning_rate:.2g}'))} of {listed(parts)}"
        )

    def values(self, column: str) -> dict[Seeds, float | None]:
        """A column by seeds, for the seeds that all chosen rates have; None where a run is broken."""
        runs = {rate: {run.seeds: run for run in self.cells[rate]} for rate in self.weights}
        common = set.intersection(*(set(by_seeds) for by_seeds in runs.values()))
        values: dict[Seeds, float | None] = {}
        for seeds in sorted(common):
            parts = [
                weight * value
                for rate, weight in self.weights.items()
                if not runs[rate][seeds].broken and (value := getattr(runs[rate][seeds], column)) is not None
            ]
            values[seeds] = math.fsum(parts) if len(parts) == len(self.weights) else None
        return values

    @cached_property
    def runs(self) -> dict[Seeds, float]:
        """P(target) minus the base of the runs that did not break, by (train seed, data seed)."""
        return {seeds: value for seeds, value in self.values("difference").items() if value is not None}

    @cached_property
    def difference(self) -> Interval | None:
        """The mean of `runs` with its 95 % interval; None where there are none."""
        return mean_of(self.runs).interval() if self.runs else None

    @property
    def broken(self) -> int:
        """How many of the runs broke."""
        return sum(bool(run.broken) for rate in self.weights for run in self.cells[rate])


@dataclass(frozen=True)
class Curve:
    """The points of one curve, the reference they were matched to, and in words which rows have none."""

    kind: CurveKind
    points: tuple[CurvePoint, ...] = ()
    reference: float | None = None
    lacks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is the same at every point."""
        if self.reference is None:
            return TITLE[self.kind]
        loss = self.kind == "loss_matched"
        quantity = f"loss {nats(self.reference)}" if loss else f"norm {self.reference:.3g}"
        return f"{TITLE[self.kind]} ({quantity})"


@dataclass(frozen=True)
class CellMeans:
    """The number loss and update norm of one row's students at one rate: means over the compared seeds."""

    loss: float
    norm: float | None

    @property
    def log_norm(self) -> float:
        """The natural logarithm of the norm, which is above zero."""
        return math.log(self.norm) if self.norm else -math.inf


Cells = Mapping[float, CellMeans]
"""One row's means by learning rate."""


@dataclass(frozen=True)
class LossParabola:
    """The parabola of the loss in log rate through a best rate and its two neighbours."""

    rates: tuple[float, ...]
    minimum: float
    """The log rate of the least loss."""
    loss: float
    """The least loss, in nats."""
    curvature: float

    def weights(self, log_rate: float) -> dict[float, float]:
        """The Lagrange weights of the three rates at a log rate."""
        logs = [math.log(rate) for rate in self.rates]
        return {
            rate: math.prod((log_rate - other) / (log - other) for other in logs if other != log)
            for rate, log in zip(self.rates, logs, strict=True)
        }


def grid_of(runs: Sequence[Run], row: Literal["rank", "precision"]) -> Grid:
    """Runs by a column and the learning rate, both ascending; what is not built is left out."""
    grid: dict[Row, dict[float, list[Run]]] = {}
    built = (run for run in runs if run.p_target is not None)
    for run in sorted(built, key=lambda run: (getattr(run, row), run.learning_rate)):
        if run.learning_rate is not None:
            grid.setdefault(getattr(run, row), {}).setdefault(run.learning_rate, []).append(run)
    return grid


def common_seeds(*grids: Grid) -> frozenset[Seeds]:
    """The seeds that every row has at every learning rate."""
    sets = [
        {run.seeds for run in runs} for grid in grids for cells in grid.values() for runs in cells.values()
    ]
    return frozenset(set.intersection(*sets)) if sets else frozenset()


def not_shown_higher(losses: Mapping[K, Mapping[Seeds, float]], beta: float) -> list[K]:
    """The cells that may have the lowest mean loss.

    They lack the one that has it with a probability of at most `beta`: a cell leaves them where its loss is
    shown to be higher than another's, by a one-sided t test over the runs of the same seeds, corrected for
    the number of other cells (Bonferroni).
    """

    def higher(cell: Mapping[Seeds, float], other: Mapping[Seeds, float]) -> float:
        return mean_of({seeds: cell[seeds] - other[seeds] for seeds in cell.keys() & other.keys()}).above()

    return [
        key
        for key, cell in losses.items()
        if all(
            higher(cell, other) > beta / (len(losses) - 1) for name, other in losses.items() if name != key
        )
    ]


def _loss_and_norm(runs: Sequence[Run], seeds: frozenset[Seeds]) -> tuple[float | None, float | None]:
    """The mean number loss and update norm over the runs of these seeds; None where a value is missing."""
    compared = {run.seeds: run for run in runs if run.seeds in seeds}.values()
    losses, norms = [run.number_loss for run in compared], [run.update_norm for run in compared]
    return None if None in losses else mean_known(losses), None if None in norms else mean_known(norms)


def choose(
    kind: CurveKind,
    grid: Grid,
    seeds: frozenset[Seeds],
    *,
    fixed: float | None = None,
    reference: float | None = None,
) -> Curve:
    """The students that stand for each row on a curve of this kind.

    Args:
        grid: see `grid_of`.
        seeds: those over which losses and norms are averaged, see `common_seeds`.
        fixed: the rate of a fixed curve; where there is only one it is that.
        reference: what to match; None takes what all rows can reach.
    """
    if kind == "fixed":
        return _fixed(grid, seeds, fixed)
    # Broken runs count: their loss shows what a rate does.
    rows: dict[Row, dict[float, CellMeans]] = {row: {} for row in grid}
    for row, cells in grid.items():
        for learning_rate, runs in cells.items():
            loss, norm = _loss_and_norm(runs, seeds)
            if loss is not None:
                rows[row][learning_rate] = CellMeans(loss, norm)
    usable = {row: cells for row, cells in rows.items() if len(cells) >= LEAST_RATES}
    lacks = _unusable(grid, rows, seeds)
    if kind == "norm_matched" and usable:
        # Rounding can remove a whole update, whose norm is then zero.
        moved = {row: {r: cell for r, cell in cells.items() if cell.norm} for row, cells in usable.items()}
        usable = {row: cells for row, cells in moved.items() if cells}
        if not usable:
            lacks = (*lacks, "update norms: this method adds nothing to the weights")
    if not usable:
        return Curve(kind, lacks=lacks)
    if reference is None and kind != "best":
        reference = (_common_loss if kind == "loss_matched" else _common_norm)(usable.values())
    points = (_point(kind, row, grid[row], means, reference) for row, means in usable.items())
    return Curve(kind, tuple(points), reference, lacks)


def _point(
    kind: CurveKind, row: Row, runs: Mapping[float, Sequence[Run]], cells: Cells, reference: float | None
) -> CurvePoint:
    """The rate of one row, best or matched to the reference, with the weighted means of loss and norm.

    The mean over rates is arithmetic for losses and geometric for norms.
    """
    if kind == "best" or reference is None:
        best = _best_rate(cells)
        weights, edge = {best: 1.0}, _edge(cells, best)
    elif kind == "loss_matched":
        weights, edge = _weights_at_loss(cells, reference)
    else:
        weights, edge = _bracket({rate: cell.log_norm for rate, cell in cells.items()}, math.log(reference))
    loss = math.fsum(weight * cells[rate].loss for rate, weight in weights.items())
    norm = mismatch = None
    if all(cells[rate].norm is not None for rate in weights):
        norm = math.exp(math.fsum(weight * cells[rate].log_norm for rate, weight in weights.items()))
    if kind == "loss_matched" and reference is not None:
        mismatch = loss - reference
    if kind == "norm_matched" and reference is not None and norm is not None:
        mismatch = norm / reference - 1
    return CurvePoint(row, runs, weights, loss, norm, mismatch, edge)


def _weights_at_loss(cells: Cells, reference: float) -> tuple[dict[float, float], str]:
    """The rates whose weighted loss meets the reference below the row's minimum, and the edge if any."""
    best, parabola = _best_rate(cells), _loss_parabola(cells)
    if parabola:
        log_rate = parabola.minimum - math.sqrt(max(0.0, reference - parabola.loss) / parabola.curvature)
        if log_rate >= math.log(parabola.rates[0]):
            return parabola.weights(log_rate), ""
    weights, edge = _bracket({rate: cells[rate].loss for rate in cells if rate <= best}, reference)
    if list(weights) == [best]:  # the row's lowest loss, which may be lower beyond the grid
        edge = _edge(cells, best)
    return weights, edge


def _edge(rates: Collection[float], rate: float) -> str:
    """`lowest` or `highest` where a rate is the grid's last, else empty."""
    return {min(rates): "lowest", max(rates): "highest"}.get(rate, "")


def _best_rate(cells: Cells) -> float:
    """The rate of the lowest loss; of equal losses the lower rate."""
    return min(sorted(cells), key=lambda rate: cells[rate].loss)


def _loss_parabola(cells: Cells) -> LossParabola | None:
    """The parabola about the best rate; None at an edge of the grid or where it has no minimum."""
    rates = sorted(cells)
    best = rates.index(_best_rate(cells))
    if not 0 < best < len(rates) - 1:
        return None
    around = rates[best - 1 : best + 2]
    x, y = [math.log(rate) for rate in around], [cells[rate].loss for rate in around]
    falls, rises = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (rises - falls) / (x[2] - x[0])
    if curvature <= 0 or not math.isfinite(curvature):
        return None
    minimum = (x[0] + x[1]) / 2 - falls / (2 * curvature)
    loss = y[0] + (minimum - x[0]) * (falls + curvature * (minimum - x[1]))
    return LossParabola(tuple(around), minimum, loss, curvature)


def _common_loss(rows: Collection[Cells]) -> float:
    """The largest of the rows' lowest losses: each can reach it."""
    parabolas = [(cells, _loss_parabola(cells)) for cells in rows]
    return max(p.loss if p else cells[_best_rate(cells)].loss for cells, p in parabolas)


def _common_norm(rows: Collection[Cells]) -> float:
    """The geometric mean of the norms at the best rates, moved into the range that every row spans."""
    best = math.fsum(cells[_best_rate(cells)].log_norm for cells in rows) / len(rows)
    spans = [[cell.log_norm for cell in cells.values()] for cells in rows]
    least, most = max(map(min, spans)), min(map(max, spans))
    return math.exp(max(least, min(best, most)) if least <= most else (least + most) / 2)


def _bracket(values: Mapping[float, float], wanted: float) -> tuple[dict[float, float], str]:
    """The highest two neighbouring rates whose values bracket `wanted`, or the nearest rate, with weights.

    The second part is `lowest` or `highest` where the nearest rate is that edge and misses `wanted`.
    """
    rates = sorted(values)
    for low, high in reversed(list(pairwise(rates))):
        if min(values[low], values[high]) <= wanted <= max(values[low], values[high]):
            span = values[high] - values[low]
            share = (wanted - values[low]) / span if span else 0.0
            return {rate: weight for rate, weight in ((low, 1 - share), (high, share)) if weight}, ""
    nearest = min(rates, key=lambda rate: abs(values[rate] - wanted))
    return {nearest: 1.0}, "" if values[nearest] == wanted else _edge(rates, nearest)


def _unusable(grid: Grid, rows: Mapping[Row, Cells], seeds: frozenset[Seeds]) -> tuple[str, ...]:
    """Why no rate can be chosen for some rows, in words."""
    if not grid:
        return ("students",)
    few = [row for row, cells in grid.items() if len(cells) < LEAST_RATES]
    if len(few) < len(grid) and not seeds:
        return ("a seed that all ranks and learning rates have in common",)
    lacks = [f"{LEAST_RATES} learning rates or more for {_listed(few)}"] if few else []
    without_loss = [row for row, cells in rows.items() if row not in few and len(cells) < LEAST_RATES]
    return (*lacks, *([f"the held-out number loss of {_listed(without_loss)}"] if without_loss else []))


def _listed(rows: Sequence[Row]) -> str:
    kind = "rank" if isinstance(rows[0], int) else "full fine-tuning in"
    return f"{kind} {listed([str(row) for row in rows])}"


def _fixed(grid: Grid, seeds: frozenset[Seeds], fixed: float | None) -> Curve:
    rates = sorted({rate for cells in grid.values() for rate in cells})
    chosen = rates[0] if len(rates) == 1 else fixed
    if chosen is None or not rates:
        tried = f"; there are {listed([rate(r) for r in rates])}" if rates else ""
        return Curve("fixed", lacks=(f"one learning rate for all{tried}",))
    points = tuple(
        CurvePoint(row, cells, {chosen: 1.0}, *_loss_and_norm(cells[chosen], seeds))
        for row, cells in grid.items()
        if chosen in cells
    )
    without = [row for row, cells in grid.items() if chosen not in cells]
    lacks = (f"lr {rate(chosen)} for {_listed(without)}",) if without else ()
    return Curve("fixed", points, None, lacks)
