"""Intervals and tests over training runs. Pure.

The unit is the training run: a run's P(target) is its mean over questions, and n counts runs.
Pooling the answers of a few runs instead calls a null effect real most of the time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtr, stdtrit  # what scipy.stats.t is made of, without its import

Values = NDArray[np.float64]

DRAWS = 4000
"""Resamples of a bootstrap. A bound of a 95 % interval has a standard error of 1 % of its width:
sqrt(0.025 · 0.975 / 4000) / 0.058, the normal density there, against 3.92."""


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


@dataclass(frozen=True)
class Test:
    """An effect, the p value of the test it was put to, and how many independent runs stand behind it."""

    effect: float
    p: float
    n: int


def t_test(differences: Sequence[float], above: float = 0.0) -> Test:
    """Whether the mean of independent differences lies above `above`: Student's t, one-sided.

    Fewer than two differences have no spread, and their p value is 1. Differences without any spread,
    which no real runs have, are taken at their word: p is 0 or 1.
    """
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        return Test(mean, 1.0, n)
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error == 0:
        return Test(mean, 0.0 if mean > above else 1.0, n)
    return Test(mean, float(stdtr(n - 1, -(mean - above) / error)), n)


def equivalence(differences: Sequence[float], margin: float) -> Test:
    """Whether the mean of independent differences lies within ±`margin`: two one-sided t tests (TOST).

    The p value is the larger of the two (Schuirmann 1987).
    """
    lower = t_test(differences, -margin)
    upper = t_test([-one for one in differences], -margin)
    return replace(lower, p=max(lower.p, upper.p))


def detectable(spread: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean of `n` differences of standard deviation `spread` that `t_test` finds with `power`.

    From the noncentral t distribution; infinite with fewer than two runs.
    """
    if n < 2:
        return math.inf
    critical = float(stdtrit(n - 1, 1 - alpha))
    low, high = 0.0, critical + 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if 1 - float(nctdtr(n - 1, middle, critical)) < power:
            low = middle
        else:
            high = middle
    return high * spread / math.sqrt(n)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted so that none is wrong with more than alpha (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def two_way_interval(values: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of runs × questions with an interval that holds for new runs and new questions.

    Rows and columns are resampled independently (the pigeonhole bootstrap, Owen 2007): it is never too
    narrow, also where a run is easier on all questions or a question is easier for all runs.

    Args:
        values: one number for every run and question: [runs, questions], two or more of each.
    """
    runs, questions = values.shape
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.multinomial(runs, [1 / runs] * runs, size=DRAWS) / runs
    asked = generator.multinomial(questions, [1 / questions] * questions, size=DRAWS) / questions
    means = np.einsum("dr,rq,dq->d", weights, values, asked)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), runs)


@dataclass(frozen=True)
class TwoLines:
    """The two-lines test of an inverted U: a rise up to `breakpoint` and a fall from there."""

    breakpoint: float
    rise: Test
    fall: Test
    """Mean slopes over clusters, per unit of x, each with the p value of its sign: up, and down."""

    @property
    def p(self) -> float:
        """Both must hold."""
        return max(self.rise.p, self.fall.p)


def two_lines(x: Values, y: Values) -> TwoLines | None:
    """Simonsohn's two-lines test (doi 10.1177/2515245918805755) for an inverted U, clustered.

    The breakpoint is his Robin Hood: among the x whose mean lies within a standard error of the highest
    inner one, nearer to the side whose slope is the surer. Each cluster is fitted by itself and the test
    is a t test over the clusters' slopes (Ibragimov and Müller 2010), which holds with a handful of
    clusters and whatever the correlation inside one. Each sign is tested at half its two-sided p value's
    level, as in the original: `rise.p` and `fall.p` are two-sided.

    Args:
        x: the places, ascending, four or more: [places]. Here log2 of the rank.
        y: one value for every cluster (seed) and place: [clusters, places].

    Returns:
        None where there are too few places or clusters to put lines through.
    """
    clusters, places = y.shape
    if clusters < 2 or places < 4:
        return None
    means = y.mean(axis=0)
    errors = y.std(axis=0, ddof=1) / math.sqrt(clusters)
    inner = np.arange(1, places - 1)
    top = inner[int(np.argmax(means[inner]))]
    flat = x[inner][means[inner] >= means[top] - errors[top]]
    rise, fall = _slopes(x, y, float(np.median(flat)))
    surer = abs(_t(rise)) + abs(_t(fall))
    toward = abs(_t(fall)) / surer if surer else 0.5
    at = float(np.quantile(flat, toward))
    rise, fall = _slopes(x, y, at)
    return TwoLines(at, _signed(rise, 1), _signed(fall, -1))


def _slopes(x: Values, y: Values, at: float) -> tuple[Values, Values]:
    """Each cluster's slope below and above a breakpoint: an interrupted regression with a jump."""
    low = (x < at).astype(float)
    high = 1 - low
    design = np.stack([low, high, (x - at) * low, (x - at) * high], axis=1)
    found = np.linalg.pinv(design) @ y.T
    return found[2], found[3]


def _t(slopes: Values) -> float:
    error = float(slopes.std(ddof=1)) / math.sqrt(len(slopes))
    return float(slopes.mean()) / error if error else math.inf * float(np.sign(slopes.mean()) or 1)


def _signed(slopes: Values, sign: int) -> Test:
    """Twice the one-sided p value, so that a slope of the right sign has the two-sided one."""
    one = t_test([sign * float(slope) for slope in slopes])
    return Test(float(slopes.mean()), min(1.0, 2 * one.p), one.n)


def peak(x: Values, y: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """The place of the highest mean, with an interval from resampled clusters: y is [clusters, places]."""
    clusters = len(y)
    generator = np.random.Generator(np.random.Philox(seed))
    weights = generator.multinomial(clusters, [1 / clusters] * clusters, size=DRAWS)
    places = x[np.argmax(weights @ y, axis=1)]
    low, high = np.quantile(places, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(float(x[np.argmax(y.mean(axis=0))]), float(low), float(high), clusters)


def power(simulate: Callable[[np.random.Generator], bool], draws: int = 2000, seed: int = 0) -> Interval:
    """How often a simulated study comes out true, with a 95 % Wilson interval.

    Args:
        simulate: draws one study from the generator and says whether the test found what it looks for.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    hits = sum(simulate(generator) for _ in range(draws))
    return proportion(hits, draws)


def proportion(hits: int, trials: int, level: float = 0.95) -> Interval:
    """A share with its Wilson interval (1927)."""
    z = float(stdtrit(math.inf, (1 + level) / 2))
    share, square = hits / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low = middle - half if hits else 0.0  # rounding would leave a hair
    high = middle + half if hits < trials else 1.0
    return Interval(share, low, high, trials)
