"""What `stats` computes, recomputed with statsmodels and scipy."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.linalg import fractional_matrix_power
from scipy.optimize import brentq
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from sublim_cli.stats import (
    Estimate,
    clopper_pearson,
    estimate,
    holm,
    proportion,
    random_effects,
    ratio_interval,
)

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


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (1, 5), (5, 5), (3, 9), (0, 14)])
def test_clopper_and_pearson_s_interval_is_that_of_statsmodels(hits, trials):
    theirs = proportion_confint(hits, trials, method="beta")
    assert bounds(clopper_pearson(hits, trials)) == pytest.approx(np.nan_to_num(theirs, nan=hits / trials))


@pytest.mark.parametrize("study", STUDIES)
def test_the_mean_over_traits_is_that_of_statsmodels(study):
    """Paule and Mandel's variance by scipy, the interval of Hartung, Knapp, Sidik and Jonkman by statsmodels.

    In 6 of the 20 studies statsmodels' own iteration for the variance ends at zero, which is no root.
    """
    generator = np.random.default_rng(study)
    traits = 2 + study % 5
    errors = generator.uniform(0.1, 0.4, traits)
    means = generator.normal(1.0, np.hypot(errors, 0.5 * (study % 3)))

    def beyond_chance(between: float) -> float:
        weights = 1 / (errors**2 + between)
        return float(weights @ (means - np.average(means, weights=weights)) ** 2) - (traits - 1)

    between = brentq(beyond_chance, 0, 100) if beyond_chance(0) > 0 else 0.0
    ours = random_effects([Estimate(m, e, 4, 5) for m, e in zip(means, errors, strict=True)])
    assert ours.mean == pytest.approx(np.average(means, weights=1 / (errors**2 + between)))
    theirs = combine_effects(means, errors**2, method_re="iterated", use_t=True, atol=1e-10, maxiter=500)
    if theirs.tau2 or not between:
        fixed, random = theirs.conf_int(use_t=True)[2:]
        assert bounds(ours) == pytest.approx(random if between else fixed)


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


@pytest.mark.parametrize("study", STUDIES)
def test_clusters_of_equal_size_have_the_error_that_statsmodels_gives(study):
    runs, data = runs_of(study, 9), np.repeat([1, 42, 123], 3)
    seeds = [(seed, int(of)) for seed, of in enumerate(data)]
    theirs = OLS(runs, np.ones(9)).fit(cov_type="cluster", cov_kwds={"groups": data}, use_t=True)
    ours = estimate(runs, seeds)
    assert (ours.error, ours.freedom) == (pytest.approx(theirs.bse[0]), 2)
    assert bounds(ours.interval()) == pytest.approx(theirs.conf_int()[0])


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (4, 1), (4, 3, 2), (1, 1, 1, 1)])
def test_clusters_of_unequal_size_have_the_error_and_freedom_of_bell_and_mccaffrey(sizes):
    """By the matrices of the general regression formula, of which the mean is the simplest case."""
    data = np.repeat(np.arange(len(sizes)), sizes)
    n = len(data)
    runs = np.array(runs_of(n + len(sizes), n))
    hat = np.full((n, n), 1 / n)
    residuals = np.eye(n) - hat
    columns, variance = [], 0.0
    for cluster in range(len(sizes)):
        members = data == cluster
        block = np.eye(members.sum()) - hat[np.ix_(members, members)]
        root = fractional_matrix_power(block, -0.5)
        score = np.ones(members.sum()) / n @ root
        variance += float(score @ (residuals @ runs)[members]) ** 2
        columns.append(residuals[:, members] @ score)
    form = np.array(columns) @ np.array(columns).T
    ours = estimate(runs.tolist(), [(seed, int(of)) for seed, of in enumerate(data)])
    assert ours.error == pytest.approx(math.sqrt(variance))
    assert ours.freedom == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))
