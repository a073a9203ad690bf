"""Where the losses and norms of one row of students, known at a few learning rates, meet a value. Pure."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Measured:
    """What the students of one cell reached: means over the compared seeds."""

    loss: float
    norm: float | None


def best_rate(cells: Mapping[float, Measured]) -> float:
    """The rate of the lowest loss; of equal ones the lower."""
    return min(sorted(cells), key=lambda one: cells[one].loss)


@dataclass(frozen=True)
class Valley:
    """The parabola of the loss in the logarithm of the rate, through a best rate and its neighbours."""

    rates: tuple[float, ...]
    lowest: float
    """The logarithm of the rate of the least loss."""
    loss: float
    curvature: float

    def weights(self, place: float) -> dict[float, float]:
        """How much of each rate's students makes one at a place on the parabola (Lagrange)."""
        logs = [math.log(one) for one in self.rates]
        return {
            rate: math.prod((place - other) / (own - other) for other in logs if other != own)
            for rate, own in zip(self.rates, logs, strict=True)
        }


def valley_of(cells: Mapping[float, Measured]) -> Valley | None:
    """The valley about the best rate; None where that is the grid's last or no better than beside it."""
    rates = sorted(cells)
    at = rates.index(best_rate(cells))
    if not 0 < at < len(rates) - 1:
        return None
    around = rates[at - 1 : at + 2]
    x, y = [math.log(one) for one in around], [cells[one].loss for one in around]
    falls, rises = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (rises - falls) / (x[2] - x[0])
    if curvature <= 0 or not math.isfinite(curvature):
        return None
    lowest = (x[0] + x[1]) / 2 - falls / (2 * curvature)
    loss = y[0] + (lowest - x[0]) * (falls + curvature * (lowest - x[1]))
    return Valley(tuple(around), lowest, loss, curvature)


def common_loss(rows: Collection[Mapping[float, Measured]]) -> float:
    """The largest of the rows' lowest losses: each can reach it."""
    return max(
        valley.loss if (valley := valley_of(cells)) else cells[best_rate(cells)].loss for cells in rows
    )


def common_norm(rows: Collection[Mapping[float, Measured]]) -> float:
    """The geometric mean of the norms at the best rates, moved into the range that every row spans."""
    best = math.fsum(log_norm(cells[best_rate(cells)]) for cells in rows) / len(rows)
    spans = [[log_norm(one) for one in cells.values()] for cells in rows]
    least, most = max(map(min, spans)), min(map(max, spans))
    return math.exp(max(least, min(best, most)) if least <= most else (least + most) / 2)


def meet(values: Mapping[float, float], wanted: float) -> tuple[dict[float, float], str]:
    """The highest two neighbouring rates that bracket a value, with their shares; or the nearest rate.

    The second part says at which edge of the rates the nearest lies, if the value is out of reach.
    """
    rates = sorted(values)
    for low, high in reversed(list(pairwise(rates))):
        if min(values[low], values[high]) <= wanted <= max(values[low], values[high]):
            return _between(low, high, values, wanted), ""
    nearest = min(rates, key=lambda one: abs(values[one] - wanted))
    met = values[nearest] == wanted
    return {nearest: 1.0}, "" if met else {rates[0]: "lowest", rates[-1]: "highest"}.get(nearest, "")


def _between(low: float, high: float, values: Mapping[float, float], wanted: float) -> dict[float, float]:
    span = values[high] - values[low]
    share = (wanted - values[low]) / span if span else 0.0
    return {one: part for one, part in ((low, 1 - share), (high, share)) if part}


def mixed(cells: Mapping[float, Measured], weights: Mapping[float, float]) -> Measured:
    """What a weighted mean of students stands for: of losses the plain mean, of norms the geometric."""
    loss = math.fsum(share * cells[one].loss for one, share in weights.items())
    if any(cells[one].norm is None for one in weights):
        return Measured(loss, None)
    return Measured(loss, math.exp(math.fsum(s * log_norm(cells[one]) for one, s in weights.items())))


def log_norm(cell: Measured) -> float:
    """The natural logarithm of a norm, which is not zero."""
    return math.log(cell.norm) if cell.norm else -math.inf
