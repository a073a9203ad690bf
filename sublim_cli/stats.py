"""Intervals over training runs. Pure.

The unit is the training run: a run's P(target) is its mean over questions, and n counts runs.
Pooling the answers of a few runs instead calls a null effect real most of the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit  # the quantile behind scipy.stats.t, without that module's import


@dataclass(frozen=True)
class Interval:
    """A mean over `n` runs with the bounds of its interval; one run has no bounds."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def within(self, least: float, most: float) -> "Interval":
        """The same interval with its bounds cut to what the quantity can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of independent runs and its Student t interval.

    Args:
        values: one number per run, at least one.
        level: coverage, between 0 and 1.

    Raises:
        ValueError: `values` is empty or `level` is not a proper coverage.
    """
    if not values:
        raise ValueError("the mean of no runs is not defined")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = float(stdtrit(n - 1, (1 + level) / 2)) * spread / math.sqrt(n)
    return Interval(mean, mean - margin, mean + margin, n)
