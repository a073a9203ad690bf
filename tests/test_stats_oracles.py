"""What `stats` computes, recomputed with statsmodels and scipy."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from sublim_cli.stats import estimate, holm, proportion, ratio_interval

STUDIES = range(20)


def runs_of(study: int, count: int = 5) -> list[float]:
    return np.random.default_rng(study).normal(0.1, 0.3, count).tolist()


def bounds(interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize("study", STUDIES)
def test_intervals_and_one_sided_tests_are_those_of_statsmodels(study):
    runs = runs_of(study, 3 + study % 7)
    ours, theirs = estimate(runs), DescrStatsW(runs)
    assert bounds(ours.interval(0.9)) == pytest.approx(theirs.tconfint_mean(alpha=0.1))
    assert ours.above(0.05) == pytest.approx(theirs.ttest_mean(0.05, alternative="larger")[1])
    assert ours.below(0.05) == pytest.approx(theirs.ttest_mean(0.05, alternative="smaller")[1])


@pytest.mark.parametrize("study", STUDIES)
def test_equivalence_is_that_of_statsmodels(study):
    runs = runs_of(study)
    margin = math.log(1.5)
    assert estimate(runs).within(margin) == pytest.approx(DescrStatsW(runs).ttost_mean(-margin, margin)[0])


@pytest.mark.parametrize("n", [3, 5, 9])
def test_the_detectable_effect_is_that_of_statsmodels(n):
    ours = estimate(runs_of(n, n))
    deviation = ours.error * math.sqrt(n)
    theirs = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="larger") * deviation
    assert ours.detectable() == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("study", STUDIES)
def test_holm_is_that_of_statsmodels(study):
    p_values = np.random.default_rng(study).uniform(0, 0.2, 1 + study % 6).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (1, 5), (5, 5), (3, 9), (40, 2000)])
def test_the_wilson_interval_is_that_of_statsmodels(hits, trials):
    theirs = proportion_confint(hits, trials, method="wilson")
    assert bounds(proportion(hits, trials)) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("study", STUDIES)
def test_fieller_s_bounds_are_the_roots_of_its_quadratic(study):
    generator = np.random.default_rng(study)
    under = generator.normal(2, 0.4, 5)
    over = 0.4 * under + generator.normal(0, 0.3, 5)
    covariance = np.cov(over, under, ddof=1) / len(under)
    square = scipy_stats.t.ppf(0.975, len(under) - 1) ** 2
    a = under.mean() ** 2 - square * covariance[1, 1]
    b = over.mean() * under.mean() - square * covariance[0, 1]
    c = over.mean() ** 2 - square * covariance[0, 0]
    roots = sorted(np.roots([a, -2 * b, c]).real)
    assert a > 0
    assert bounds(ratio_interval(over.tolist(), under.tolist())) == pytest.approx(roots, rel=1e-6)
