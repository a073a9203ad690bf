"""Intervals and tests over training runs. Pure.

The unit is the training run: a run's P(target) is its mean over questions, and n counts runs. Pooling the
answers of a few runs instead would take their questions for independent runs and find effects that are none.
Effects are differences of log-odds, the logarithms of odds ratios.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.special import (
    betaincinv,
    logit,
    nctdtrinc,
    stdtr,
    stdtrit,
)  # what scipy.stats.t is made of, without its import

Values = NDArray[np.float64]

DRAWS = 4000
"""Resamples of a bootstrap. A bound of a 95 % interval has a standard error of 1 % of its width:
sqrt(0.025 · 0.975 / 4000) / 0.058, the normal density there, against 3.92."""


LEAST_GUARD = 1e-6
"""The probability below which log-odds are not told apart, where nothing else limits them."""


def log_odds(p: float, guard: float = LEAST_GUARD) -> float:
    """The natural logarithm of p / (1 - p), with p cut to [guard, 1 - guard].

    Raises:
        ValueError: `guard` is not between 0 and 1/2.
    """
    if not 0 < guard <= 0.5:
        raise ValueError(f"guard must lie between 0 and 1/2, not {guard}")
    p = min(max(p, guard), 1 - guard)
    return math.log(p / (1 - p))


@dataclass(frozen=True)
class Interval:
    """A mean over `n` runs with the bounds of its interval, None for one run."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def within(self, least: float, most: float) -> "Interval":
        """The same interval with its bounds cut to what the quantity can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def exponential(self) -> "Interval":
        """The same of exp(quantity): of log-odds that of the odds ratio, whose `mean` is a geometric one."""
        if self.low is None or self.high is None:
            return replace(self, mean=math.exp(self.mean))
        return replace(self, mean=math.exp(self.mean), low=math.exp(self.low), high=math.exp(self.high))


Seeds = tuple[Hashable, ...]
"""A run's seeds, one for each source of randomness: runs that share one are not independent."""


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` runs, its standard error and that error's degrees of freedom.

    Its p values are those of one-sided Student t tests. Fewer than two runs have an infinite error and p
    values of 1. Runs that are all equal have an error of 0 and p values of 0 or 1.
    """

    mean: float
    error: float
    freedom: float
    n: int

    def above(self, bound: float = 0.0) -> float:
        """The p value of the null that the mean is at most `bound`."""
        if math.isinf(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > bound else 1.0
        return float(stdtr(self.freedom, -(self.mean - bound) / self.error))

    def below(self, bound: float = 0.0) -> float:
        """The p value of the null that the mean is at least `bound`."""
        return replace(self, mean=-self.mean).above(-bound)

    def within(self, margin: float) -> float:
        """The p value of the null that the mean is `margin` or more away from zero.

        It is the larger of two one-sided tests (TOST, Schuirmann 1987).
        """
        return max(self.above(-margin), self.below(margin))

    def interval(self, level: float = 0.95) -> Interval:
        """The t interval with this coverage, between 0 and 1; fewer than two runs have none."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        if math.isinf(self.error):
            return Interval(self.mean, None, None, self.n)
        margin = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return Interval(self.mean, self.mean - margin, self.mean + margin, self.n)

    def with_error(self, error: float) -> "Estimate":
        """The same mean minus a quantity that is known with this standard error and is common to all runs.

        The variances add up; the degrees of freedom are Satterthwaite's (1946).
        """
        if not error or math.isinf(self.error):
            return self
        variance = self.error**2 + error**2
        freedom = self.freedom * (variance / self.error**2) ** 2 if self.error else math.inf
        return replace(self, error=math.sqrt(variance), freedom=freedom)

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """The smallest true mean that a test at `alpha` finds above zero with `power`, this error given.

        From the noncentral t distribution; infinite with fewer than two runs.
        """
        if math.isinf(self.error):
            return math.inf
        critical = stdtrit(self.freedom, 1 - alpha)
        return float(nctdtrinc(self.freedom, 1 - power, critical)) * self.error


def estimate(values: Sequence[float], seeds: Sequence[Seeds] = ()) -> Estimate:
    """The mean of runs, its error clustered by every seed that several of them share.

    Runs that share no seed are independent: Student's s / sqrt(n). Runs that share one, such as nine from
    three data sets and three initialisations, vary less than as many new ones would: the error is taken over
    the clusters of that seed, with the correction CR2 and the degrees of freedom of Bell and McCaffrey (2002)
    for clusters of unequal size; those of equal size have the usual ones. Where two sources are shared, the
    two variances are added. Two-way clustering (Cameron, Gelbach and Miller 2011) subtracts their overlap;
    here it stays in, so that the sum is never negative and with few clusters too large rather than too small.
    Its degrees of freedom are Satterthwaite's (1946).

    Simulated, whichever source varies, a one-sided test at 0.05 rejects a true null 0.03 to 0.053 of the time
    with clusters of 3 + 1 + 1, 2 + 2 + 1 and 3 + 2 + 1 + 1 (up to 0.075 without the correction) and 0.063
    with 4 + 1; with 3 × 3 crossed seeds 0.013 to 0.051, and 0.014 to 0.065 with one to four of the nine
    missing.

    Args:
        values: one number per run, at least one.
        seeds: for every run its seeds; a seed that all runs share is ignored.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("the mean of no runs is not defined")
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Estimate(mean, math.inf, 0, n)
    variances, weights = [], []
    for source in _shared(seeds, n) or [tuple(range(n))]:
        sums: dict[Hashable, float] = {}  # of the residuals of each cluster
        sizes = Counter(source)
        for value, seed in zip(values, source, strict=True):
            sums[seed] = sums.get(seed, 0.0) + (value - mean)
        variance = math.fsum(sums[seed] ** 2 / (1 - sizes[seed] / n) for seed in sums) / n**2
        variances.append(variance)
        weights.append(variance**2 / _cluster_freedom(tuple(sizes.values())))
    total, weight = math.fsum(variances), math.fsum(weights)
    return Estimate(mean, math.sqrt(total), total**2 / weight if weight else n - 1, n)


@cache
def _cluster_freedom(sizes: tuple[int, ...]) -> float:
    """Bell and McCaffrey's degrees of freedom of a mean's CR2 variance, by the sizes of its clusters.

    They are tr(M)² / tr(M²) of the quadratic form M that the variance is for independent runs.
    """
    if len(set(sizes)) == 1:
        return len(sizes) - 1
    shares = [size / sum(sizes) for size in sizes]
    weights = [share**2 / (1 - share) for share in shares]
    between = math.fsum(weights) ** 2 - math.fsum(weight**2 for weight in weights)
    return 1 / (math.fsum(share**2 for share in shares) + between)


def mean_of(values: Mapping[Seeds, float]) -> Estimate:
    """The mean over runs by their seeds, see `estimate`; of no runs NaN with an infinite error.

    The runs are sorted first, so that the last digit does not depend on the order of a table's rows.
    """
    ordered = sorted(values)
    if not ordered:
        return Estimate(float("nan"), float("inf"), 0, 0)
    return estimate([values[seeds] for seeds in ordered], ordered)


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where there is no such value."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _shared(seeds: Sequence[Seeds], n: int) -> list[tuple[Hashable, ...]]:
    """The sources of which some runs share a seed and not all do."""
    return [source for source in zip(*seeds, strict=True) if 1 < len(set(source)) < n]


def ratio_interval(
    over: Sequence[float], under: Sequence[float], seeds: Sequence[Seeds] = (), level: float = 0.95
) -> Interval | None:
    """The ratio of two means over runs, with Fieller's interval (1954).

    It contains the ratios r for which a t test does not reject that the mean of `over` - r `under` is zero. A
    small mean of `under` makes it wide, and a single run with a small `under` cannot make it infinite, as it
    could a mean of ratios.

    Args:
        over, under: one number of each per run, at least one run.
        seeds: for every run its seeds, as for `estimate`.

    Returns:
        None where the mean of `under` does not differ from zero at this level: then no ratio is rejected. One
        run has a ratio without bounds, or None where it divides by zero.
    """
    n, total = len(over), math.fsum(under)
    divisor = estimate(under, seeds)
    if total == 0 or (n > 1 and 2 * min(divisor.above(), divisor.below()) > 1 - level):
        return None
    ratio = math.fsum(over) / total
    if n == 1:
        return Interval(ratio, None, None, 1)

    def rejected(bound: float) -> bool:
        rest = estimate([o - bound * u for o, u in zip(over, under, strict=True)], seeds)
        return 2 * min(rest.above(), rest.below()) <= 1 - level

    def nearest_rejected(outside: float) -> float:
        """To that side of the ratio, by doubling and bisection."""
        inside = 0.0
        while not rejected(ratio + outside):
            inside, outside = outside, 2 * outside
        for _ in range(30):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(ratio + middle) else (middle, outside)
        return ratio + outside

    return Interval(ratio, nearest_rejected(-1e-4), nearest_rejected(1e-4), n)


def _clusters(n: int, seeds: Sequence[Seeds]) -> Values:
    """Membership of 0 and 1, [clusters, runs]: runs that share a seed of the source with the fewest seeds."""
    source = min(_shared(seeds, n), key=lambda source: len(set(source)), default=tuple(range(n)))
    return np.array([[other == seed for other in source] for seed in dict.fromkeys(source)], dtype=float)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted for the family-wise error rate (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def two_way_interval(
    answers: Values, signs: Sequence[float], seeds: Sequence[Seeds] = (), level: float = 0.95, seed: int = 0
) -> Interval:
    """A contrast of log-odds with an interval that holds for new runs and new questions.

    The contrast of one run is a signed sum of log-odds of its mean answers, such as those of a student minus
    those of its control. Runs and questions are resampled independently (the pigeonhole bootstrap, Owen
    2007); runs that share a seed are resampled together, by the source that has the fewest seeds. A bootstrap
    of a handful of runs is too narrow, so its quantiles are taken as far out as those of the t distribution
    (the expanded percentile, Hesterberg 2015, arXiv 1411.5279).

    Args:
        answers: a probability for every term, run and question: [terms, runs, questions].
        signs: what the log-odds of each term are multiplied by, 1 or -1: [terms].
        seeds: for every run its seeds, as for `estimate`.

    Returns:
        An interval without bounds for fewer than two questions, and for too few clusters of runs: where even
        the resample of a single cluster is more probable than the tail, at 0.9 with fewer than five.
    """
    _, runs, questions = answers.shape
    members = _clusters(runs, seeds)
    clusters = len(members)
    mean = float(_contrast(answers.mean(axis=2), signs).mean())
    tail = 0.0  # the share of resamples beyond each bound that the t interval of as many clusters leaves
    if clusters > 1:
        reach = stdtrit(clusters - 1, (1 + level) / 2) * math.sqrt(clusters / (clusters - 1))
        tail = float(stdtr(math.inf, -reach))
    if questions < 2 or tail < clusters**-clusters:
        return Interval(mean, None, None, runs)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.multinomial(clusters, [1 / clusters] * clusters, size=DRAWS) @ members  # [draws, runs]
    asked = generator.multinomial(questions, [1 / questions] * questions, size=DRAWS) / questions
    contrasts = _contrast(np.einsum("trq,dq->tdr", answers, asked), signs)  # [draws, runs]
    means = (drawn * contrasts).sum(axis=1) / drawn.sum(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), runs)


def _contrast(p: Values, signs: Sequence[float]) -> Values:
    """The signed sum of log-odds over the first axis."""
    odds = logit(np.clip(p, LEAST_GUARD, 1 - LEAST_GUARD))
    contrast: Values = np.tensordot(np.asarray(signs), odds, axes=1)
    return contrast


@dataclass(frozen=True)
class TwoLines:
    """The two-lines test of an inverted U: a rise up to `breakpoint` and a fall from there.

    `rise` and `fall` are mean slopes over runs, per unit of x.
    """

    breakpoint: float
    rise: Estimate
    fall: Estimate

    @property
    def p(self) -> float:
        """The larger of the two slopes' two-sided p values, as in the original: both must be significant.

        A slope of the wrong sign has p 1.
        """
        return min(1.0, 2 * max(self.rise.above(), self.fall.below()))


def two_lines(x: Values, y: Values, seeds: Sequence[Seeds] = ()) -> TwoLines | None:
    """Simonsohn's two-lines test of an inverted U (doi 10.1177/2515245918805755), over runs.

    The breakpoint is his Robin Hood: among the inner x whose mean lies within a standard error of the highest
    inner mean, a quantile nearer to the line with the larger t value, so that the other gets more points. It
    belongs to both lines. Each run is fitted by itself, and the test is a t test over the runs' slopes
    (Ibragimov and Müller 2010), which holds with few runs and any correlation within a run.

    Args:
        x: ascending, four or more: [points]. Here log2 of the rank.
        y: one value for every run and x: [runs, points].
        seeds: the seeds of each run, see `estimate`.

    Returns:
        None for fewer than four points or two runs.
    """
    runs, points = y.shape
    if runs < 2 or points < 4:
        return None
    means = y.mean(axis=0)
    errors = y.std(axis=0, ddof=1) / math.sqrt(runs)
    inner = np.arange(1, points - 1)
    top = inner[int(np.argmax(means[inner]))]
    flat = x[inner][means[inner] >= means[top] - errors[top]]
    rise_t, fall_t = (
        abs(slope.mean) / max(slope.error, 1e-9)  # slopes that are all equal have an error of 0
        for slope in _slopes(x, y, float(np.median(flat)), seeds)
    )
    toward_end = fall_t / (rise_t + fall_t) if rise_t + fall_t else 0.5
    breakpoint = float(np.quantile(flat, toward_end))
    return TwoLines(breakpoint, *_slopes(x, y, breakpoint, seeds))


def _slopes(x: Values, y: Values, breakpoint: float, seeds: Sequence[Seeds]) -> tuple[Estimate, Estimate]:
    """The mean least-squares slopes up to the breakpoint and from there: an interrupted regression."""

    def slope(side: NDArray[np.bool_]) -> Estimate:
        centred = x[side] - x[side].mean()
        return estimate((y[:, side] @ centred / (centred @ centred)).tolist(), seeds)

    return slope(x <= breakpoint), slope(x >= breakpoint)


def fall_from_peak(y: Values, seeds: Sequence[Seeds]) -> dict[Seeds, float]:
    """By how much each run lies lower at the last point than at the highest point of the other runs.

    The highest mean of a curve minus its end is above zero even where the curve is flat, because the highest
    is chosen by the same noise. Here each run is left out of the choice, with all runs that share a seed with
    it.

    Args:
        y: one value for every run and point, two points or more: [runs, points].
        seeds: the seeds of each run.

    Returns:
        The falls by seeds, of the runs that have another to choose by.
    """
    sources = _shared(seeds, len(y)) or [tuple(range(len(y)))]
    falls = {}
    for run, of_run in enumerate(seeds):
        others = [o for o in range(len(y)) if all(source[o] != source[run] for source in sources)]
        if others:
            highest = int(np.argmax(y[others, :-1].mean(axis=0)))
            falls[of_run] = float(y[run, highest] - y[run, -1])
    return falls


def fall_interval(y: Values, seeds: Sequence[Seeds], level: float = 0.95) -> Interval | None:
    """The fall from the highest true mean before the last point to that point.

    The estimate is the mean of `fall_from_peak`. The upper bound is the largest of those of all points, since
    one of them is the highest; the lower one is the largest lower bound, corrected for the number of points
    (Bonferroni), since the highest lies above each. Simulated at 0.9 with ten points and runs that differ by
    0.3: it covers the fall of flat and peaked curves 0.94 to 0.99 of the time with five runs, 0.98 to 1.00
    with 3 × 3 crossed seeds, and the estimate is off by 0.01 on a flat curve, where the difference from the
    highest mean is by 0.19.

    Args:
        y: one value for every run and point, two points or more: [runs, points].
        seeds: the seeds of each run.

    Returns:
        None where there are fewer than two runs to choose by.
    """
    falls = fall_from_peak(y, seeds)
    if len(falls) < 2:
        return None
    points = y.shape[1] - 1
    differences = [estimate((y[:, point] - y[:, -1]).tolist(), seeds) for point in range(points)]
    lows = [difference.interval(1 - (1 - level) / points).low for difference in differences]
    highs = [difference.interval(level).high for difference in differences]
    mean = mean_of(falls).mean
    low = max(low for low in lows if low is not None)
    high = max(high for high in highs if high is not None)
    return Interval(mean, min(low, mean), max(high, mean), len(falls))


def peak(x: Values, y: Values, seeds: Sequence[Seeds] = (), level: float = 0.95, seed: int = 0) -> Interval:
    """The x of the highest mean, with a percentile interval from resampled runs.

    Args:
        x: [points].
        y: one value for every run and x: [runs, points].
        seeds: for every run its seeds; runs that share one are resampled together, as in `two_way_interval`.
    """
    members = _clusters(len(y), seeds)
    # The sum over resampled runs has its maximum where the mean has: all points have the same divisor.
    peaks = x[np.argmax(_resamples(len(members), seed) @ (members @ y), axis=1)]
    low, high = np.quantile(peaks, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(float(x[np.argmax(y.mean(axis=0))]), float(low), float(high), len(y))


@cache
def _resamples(clusters: int, seed: int) -> Values:
    """How often each cluster is drawn in each resample: [draws, clusters]."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.multinomial(clusters, [1 / clusters] * clusters, size=DRAWS).astype(float)


def power(simulate: Callable[[np.random.Generator], bool], draws: int = 2000, seed: int = 0) -> Interval:
    """How often a simulated study reaches a result, with a 95 % Wilson interval.

    Args:
        simulate: draws one study from the generator and returns whether it reaches the result.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    return proportion(sum(simulate(generator) for _ in range(draws)), draws)


def proportion(hits: int, trials: int, level: float = 0.95) -> Interval:
    """A share with its Wilson interval (1927)."""
    z = float(stdtrit(math.inf, (1 + level) / 2))
    share, square = hits / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low = middle - half if hits else 0.0  # exactly 0 and 1, which rounding would miss
    high = middle + half if hits < trials else 1.0
    return Interval(share, low, high, trials)


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> Interval:
    """A share with the interval of Clopper and Pearson (1934), whose coverage is at least `level`.

    Raises:
        ValueError: there are no trials.
    """
    if trials < 1:
        raise ValueError("the share of no trials is not defined")
    tail = (1 - level) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return Interval(hits / trials, low, high, trials)


def random_effects(estimates: Sequence[Estimate], level: float = 0.95) -> Interval | None:
    """The mean of a random-effects model over groups, such as traits, with an interval for new groups.

    The variance between groups is that of Paule and Mandel (1982), the interval that of Hartung and Knapp
    (2001) and Sidik and Jonkman (2002): a t interval with one degree of freedom fewer than groups.

    Args:
        estimates: of each group the mean and its standard error; groups without an error are left out.

    Returns:
        None for fewer than two groups; `n` counts groups.
    """
    known = [estimate for estimate in estimates if math.isfinite(estimate.error)]
    groups = len(known)
    if groups < 2:
        return None
    means = np.array([estimate.mean for estimate in known])
    variances = np.maximum([estimate.error**2 for estimate in known], 1e-12)

    def weighted(between: float) -> tuple[float, float, float]:
        """The mean, the weighted sum of squares around it and the sum of the weights."""
        weights = 1 / (variances + between)
        mean = float(weights @ means / weights.sum())
        return mean, float(weights @ (means - mean) ** 2), float(weights.sum())

    low, high = 0.0, float(np.var(means) * groups + 1e-12)  # at `high` the sum of squares is below groups - 1
    if weighted(low)[1] > groups - 1:
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if weighted(middle)[1] > groups - 1 else (low, middle)
        between = high
    else:
        between = 0.0
    mean, squares, total = weighted(between)
    reach = float(stdtrit(groups - 1, (1 + level) / 2)) * math.sqrt(squares / (groups - 1) / total)
    return Interval(mean, mean - reach, mean + reach, groups)
