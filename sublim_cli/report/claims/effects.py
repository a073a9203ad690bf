"""The effects of runs in log-odds, and tests of their mean that hold wherever broken runs would lie. Pure.

    effects = RunEffects(measured, low, high, broken)
    effects.above(math.log(1.5))
    PValue(bounded=0.004, left_out=0.001)

Two things keep an effect from being known: answers that were neither computed nor drawn, and runs that broke.
A test of a mean above a bound takes the lowest values that the answers allow, one of a mean below it the
highest. Runs do not break at random: a collapse may be what a high rank does. So a p value is the largest of
three, with the broken runs left out, at no effect, and at the largest effect seen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from sublim_cli.stats import Estimate, Seeds, mean_of

Values = Mapping[Seeds, float]

LEAST_KINDS = 5
"""Runs below which two kinds cannot be told from one."""


class PValue(NamedTuple):
    """A p value over the three places of broken runs, and that with these runs left out."""

    bounded: float
    left_out: float

    def times(self, number: int) -> "PValue":
        """Bonferroni's correction for as many tests."""
        return PValue(min(1.0, number * self.bounded), min(1.0, number * self.left_out))

    def plus(self, beta: float) -> "PValue":
        """With the error probability `beta` of a confidence set added (Berger and Boos 1994)."""
        return PValue(min(1.0, self.bounded + beta), min(1.0, self.left_out + beta))


NEVER = PValue(1.0, 1.0)


def largest(*p_values: PValue) -> PValue:
    """The p value of an intersection-union test: all must be rejected (Berger 1982)."""
    return PValue(max(p.bounded for p in p_values), max(p.left_out for p in p_values))


def smallest(*p_values: PValue) -> PValue:
    """The p value of rejecting any, before a correction for their number."""
    return PValue(min(p.bounded for p in p_values), min(p.left_out for p in p_values))


@dataclass(frozen=True)
class RunEffects:
    """The effect of each run that did not break, by seeds, and the seeds of those that did.

    `low` and `high` are what the answers allow that were neither computed nor drawn; where there are none
    both are `measured`. `error` is the standard error of what is common to all effects, such as the base's
    log-odds.
    """

    measured: Values
    low: Values
    high: Values
    broken: frozenset[Seeds] = field(default=frozenset())
    error: float = 0.0

    @property
    def mean(self) -> Estimate:
        """The mean of what was measured."""
        return mean_of(self.measured).with_error(self.error)

    def above(self, bound: float = 0.0) -> PValue:
        """Of the null that the mean is at most `bound`."""
        return PValue(
            max(self._mean(way).above(bound) for way in self.ways(self.low)),
            self._mean(self.low).above(bound),
        )

    def below(self, bound: float = 0.0) -> PValue:
        """Of the null that the mean is at least `bound`."""
        return PValue(
            max(self._mean(way).below(bound) for way in self.ways(self.high)),
            self._mean(self.high).below(bound),
        )

    def within(self, margin: float) -> PValue:
        """Of the null that the mean is `margin` or more away from zero (TOST, Schuirmann 1987)."""
        return largest(self.above(-margin), self.below(margin))

    def only(self, seeds: Set[Seeds]) -> "RunEffects":
        """Those of these seeds."""
        measured, low, high = (
            {s: value for s, value in values.items() if s in seeds}
            for values in (self.measured, self.low, self.high)
        )
        return RunEffects(measured, low, high, self.broken & seeds, self.error)

    def minus(self, other: "RunEffects") -> "RunEffects":
        """The differences of the runs of the same seeds."""
        return combined([(1.0, self), (-1.0, other)])

    def ways(self, values: Values) -> Iterator[Values]:
        """The values with the broken runs left out, at no effect and at the largest effect seen."""
        yield values
        if self.broken:
            yield {**values, **dict.fromkeys(self.broken, 0.0)}
        if self.broken and self.measured:
            yield {**values, **dict.fromkeys(self.broken, max(self.measured.values()))}

    def _mean(self, values: Values) -> Estimate:
        return mean_of(values).with_error(self.error)


def combined(parts: Sequence[tuple[float, RunEffects]]) -> RunEffects:
    """The weighted sums of the effects of the same seeds; broken where a part is, and known where all are."""
    known = set.intersection(*(set(effects.measured) for _, effects in parts))
    planned = set.intersection(*(set(effects.measured) | effects.broken for _, effects in parts))

    def total(lower: str, upper: str) -> Values:
        return {
            seeds: math.fsum(w * getattr(e, lower if w > 0 else upper)[seeds] for w, e in parts)
            for seeds in known
        }

    return RunEffects(
        total("measured", "measured"),
        total("low", "high"),
        total("high", "low"),
        frozenset(planned - known),
        math.hypot(*(weight * effects.error for weight, effects in parts)),
    )


def are_of_two_kinds(values: Sequence[float], margin: float) -> bool:
    """Whether some runs lie within the margin and others above it, far apart.

    The gap between the two groups must be wider than twice the margin and than four standard deviations of
    the runs around the mean of their group. Simulated with runs of one kind, it is seen in 0.01 to 0.12 of
    five runs and up to 0.02 of nine; where one or two of five transmit by 2 and runs differ by 0.3, in 0.6.
    Fewer than five runs show nothing.
    """
    below = [value for value in values if value <= margin]
    above = [value for value in values if value > margin]
    if not below or not above or len(values) < LEAST_KINDS:
        return False
    squares = math.fsum((value - fmean(group)) ** 2 for group in (below, above) for value in group)
    gap = min(above) - max(below)
    return gap > max(2 * margin, 4 * math.sqrt(squares / (len(values) - 2)))
