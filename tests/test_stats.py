import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit

from sublim_cli.stats import (
    Interval,
    estimate,
    fall_from_peak,
    fall_interval,
    holm,
    peak,
    power,
    proportion,
    ratio_interval,
    two_lines,
    two_way_interval,
)

values = st.floats(min_value=-1e3, max_value=1e3)


def mean_interval(runs, seeds=(), level=0.95):
    return estimate(runs, seeds).interval(level)


def test_three_runs_have_the_textbook_interval():
    result = mean_interval([0.1, 0.2, 0.3])
    margin = 4.302652729749464 * 0.1 / 3**0.5  # t with two degrees of freedom, 97.5 %
    assert result == Interval(pytest.approx(0.2), pytest.approx(0.2 - margin), pytest.approx(0.2 + margin), 3)


def test_one_run_has_a_mean_and_no_interval():
    assert mean_interval([0.25]) == Interval(0.25, None, None, 1)


def test_equal_runs_have_an_interval_without_width():
    assert mean_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 2)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="no runs"):
        mean_interval([])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_coverage_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([0.1, 0.2], level=level)


@given(st.lists(values, min_size=2, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_the_one_scipy_gives(runs, level):
    result = mean_interval(runs, level=level)
    mean, spread = sum(runs) / len(runs), statistics.stdev(runs) / len(runs) ** 0.5
    margin = stats.t.ppf((1 + level) / 2, len(runs) - 1) * spread
    assert (result.low, result.high) == (
        pytest.approx(mean - margin, abs=1e-6),
        pytest.approx(mean + margin, abs=1e-6),
    )


@given(st.lists(values, min_size=2, max_size=9), values)
def test_moving_every_run_moves_the_interval(runs, by):
    before, after = mean_interval(runs), mean_interval([run + by for run in runs])
    assert after.low == pytest.approx(before.low + by, abs=1e-6)
    assert after.high == pytest.approx(before.high + by, abs=1e-6)


def test_bounds_are_cut_to_what_a_probability_can_be():
    assert Interval(0.1, -0.4, 1.2, 2).within(0, 1) == Interval(0.1, 0, 1, 2)
    assert Interval(0.1, None, None, 1).within(0, 1) == Interval(0.1, None, None, 1)


spread_out = st.lists(st.integers(-100, 100).map(float), min_size=2, max_size=9).filter(
    lambda runs: len(set(runs)) > 1
)


@given(spread_out, st.integers(-50, 50))
def test_the_one_sided_t_tests_are_those_scipy_gives(runs, bound):
    result = estimate(runs)
    for p, alternative in ((result.above(bound), "greater"), (result.below(bound), "less")):
        assert p == pytest.approx(stats.ttest_1samp(runs, bound, alternative=alternative).pvalue, abs=1e-12)
    assert (result.mean, result.n) == (pytest.approx(statistics.fmean(runs)), len(runs))


def test_a_single_run_shows_nothing():
    result = estimate([5.0])
    assert (result.above(), result.below(9.0), result.within(9.0)) == (1.0, 1.0, 1.0)
    assert (result.interval(), result.detectable()) == (Interval(5.0, None, None, 1), math.inf)


def test_runs_without_spread_are_taken_at_their_word():
    result = estimate([0.5, 0.5])
    assert (result.above(0.4), result.above(0.5), result.below(0.6), result.within(0.6)) == (
        0.0,
        1.0,
        0.0,
        0.0,
    )


@given(spread_out, st.floats(0.1, 50))
def test_equivalence_is_the_ninety_percent_interval_inside_the_margin(runs, margin):
    inside = mean_interval(runs, level=0.9)
    assert (estimate(runs).within(margin) < 0.05) == (-margin < inside.low and inside.high < margin)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_detectable_effect_is_found_as_often_as_promised(n):
    result = estimate([1.0, -1.0] * n)
    share = stats.nct.sf(
        stats.t.ppf(0.95, result.freedom), result.freedom, result.detectable() / result.error
    )
    assert share == pytest.approx(0.8, abs=1e-4)


@given(spread_out)
def test_seeds_of_their_own_and_a_seed_that_all_share_change_nothing(runs):
    seeds = [(run, 1) for run in range(len(runs))]
    result, plain = estimate(runs, seeds), estimate(runs)
    assert (result.error, result.freedom) == (pytest.approx(plain.error), pytest.approx(plain.freedom))


@given(spread_out, st.integers(2, 4))
def test_a_run_repeated_under_its_seed_is_no_new_run(runs, times):
    seeds = [(run,) for run in range(len(runs))]
    result, plain = estimate(runs * times, seeds * times), estimate(runs)
    assert (result.error, result.freedom) == (pytest.approx(plain.error), pytest.approx(plain.freedom))


def test_the_interval_of_a_mean_is_clustered_by_shared_seeds():
    runs, seeds = [0.1, 0.12, 0.3, 0.32], [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert mean_interval(runs, seeds) == estimate(runs, seeds).interval()
    assert mean_interval(runs, seeds).high > mean_interval(runs).high


def test_data_sets_that_differ_are_not_made_more_by_training_on_each_again():
    generator = np.random.default_rng(0)
    seeds = [(train, data) for train in range(3) for data in range(3)]
    wrong = {"clustered": 0, "naive": 0}
    for _ in range(2000):
        data = generator.normal(0, 0.03, 3)
        runs = [data[seed] + generator.normal(0, 0.02) for _, seed in seeds]
        wrong["clustered"] += estimate(runs, seeds).above() <= 0.05
        wrong["naive"] += estimate(runs).above() <= 0.05
    assert wrong["clustered"] / 2000 <= 0.06
    assert wrong["naive"] / 2000 > 0.1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_by_step(p_values):
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = 0
        for p in sorted(p_values):
            if p * (len(p_values) - rejected) > alpha:
                break
            rejected += 1
        assert sum(p <= alpha for p in adjusted) == rejected
    assert all(p >= raw for p, raw in zip(adjusted, p_values, strict=True))


def crossed(generator, runs, questions):
    """Runs and questions that move the mean alike, and their interplay."""
    of_runs = generator.normal(0, 0.1, (runs, 1))
    of_questions = generator.normal(0, 0.1 * math.sqrt(questions / runs), (1, questions))
    return of_runs + of_questions + generator.normal(0, 0.1, (runs, questions))


def near_even(values):
    """Answers whose log-odds are nearly these values."""
    return 0.5 + np.asarray(values)[np.newaxis] / 4


def test_the_two_way_interval_covers_new_runs_and_new_questions_where_one_over_runs_does_not():
    generator = np.random.default_rng(0)
    covered = {"two way": 0, "runs": 0}
    for _ in range(100):
        values = crossed(generator, 5, 40)
        for name, run in (
            ("two way", two_way_interval(near_even(values), [1], level=0.9)),
            ("runs", mean_interval(values.mean(axis=1).tolist(), level=0.9)),
        ):
            covered[name] += run.low <= 0 <= run.high
    assert covered["two way"] >= 90
    assert covered["runs"] < 90


def test_the_two_way_interval_takes_runs_that_share_a_seed_together():
    values = np.random.default_rng(0).random((5, 7))
    seeds = [(index, index // 2) for index in range(10)]
    result = two_way_interval(np.repeat(values, 2, axis=0)[np.newaxis], [1], seeds)
    plain = two_way_interval(values[np.newaxis], [1])
    assert (result.mean, result.n) == (pytest.approx(plain.mean), 10)
    assert (result.low, result.high) == (pytest.approx(plain.low), pytest.approx(plain.high))


def test_too_few_runs_or_questions_have_no_two_way_bounds():
    values = np.random.default_rng(0).random((5, 7))
    for few in (values[:1], values[:4], values[:, :1]):
        mean = logit(few.mean(axis=1)).mean()
        expected = Interval(pytest.approx(mean), None, None, len(few))
        assert two_way_interval(few[np.newaxis], [1], level=0.9) == expected
    assert two_way_interval(values[np.newaxis], [1], level=0.9).low is not None


def test_the_two_way_interval_is_the_same_every_time():
    answers = np.random.default_rng(0).random((2, 5, 7))
    assert two_way_interval(answers, [1, -1]) == two_way_interval(answers, [1, -1])
    assert two_way_interval(answers, [1, -1]) != two_way_interval(answers, [1, -1], seed=1)


def test_a_contrast_of_equal_answers_is_nothing():
    answers = np.random.default_rng(0).random((5, 7))
    assert two_way_interval(np.array([answers, answers]), [1, -1]) == Interval(0.0, 0.0, 0.0, 5)


RANKS = np.arange(7.0)


def shaped(mean, seed=0, clusters=5):
    generator = np.random.default_rng(seed)
    return mean + generator.normal(0, 0.03, (clusters, 1)) + generator.normal(0, 0.03, (clusters, len(mean)))


def test_an_inverted_u_is_found_with_its_turn():
    result = two_lines(RANKS, shaped(0.4 - 0.03 * (RANKS - 3) ** 2))
    assert result.p < 0.01
    assert result.rise.mean > 0 > result.fall.mean
    assert 2 <= result.breakpoint <= 4


@pytest.mark.parametrize(
    "mean",
    [
        0.3 * (1 - np.exp(-RANKS)),
        0.3 * (RANKS > 0),
        0.05 * RANKS,
        0 * RANKS,
        0.03 * (RANKS - 3) ** 2,
    ],
    ids=["saturating", "a step", "rising", "flat", "a U"],
)
def test_what_does_not_turn_is_called_an_inverted_u_at_most_one_time_in_twenty(mean):
    result = [two_lines(RANKS, shaped(mean, seed)) for seed in range(400)]
    # 0.05 and two and a half standard errors of 400 draws
    assert np.mean([lines.p < 0.05 for lines in result]) <= 0.077


@given(st.integers(0, 999), st.floats(0.1, 9), st.floats(-5, 5))
def test_the_two_lines_do_not_care_about_units(seed, scale, shift):
    y = shaped(0.4 - 0.03 * (RANKS - 3) ** 2, seed)
    plain, other = two_lines(RANKS, y), two_lines(RANKS, scale * y + shift)
    assert other.p == pytest.approx(plain.p, rel=1e-4, abs=1e-9)
    assert other.rise.mean == pytest.approx(scale * plain.rise.mean, rel=1e-4, abs=1e-9)


def test_too_few_places_or_clusters_have_no_lines():
    assert two_lines(RANKS[:3], shaped(RANKS[:3])) is None
    assert two_lines(RANKS, shaped(RANKS)[:1]) is None


def test_the_peak_has_an_interval_that_holds_it():
    result = peak(RANKS, shaped(0.4 - 0.03 * (RANKS - 3) ** 2))
    assert result.low <= result.mean <= result.high
    assert result.mean in RANKS
    assert (result.low >= 2, result.high <= 4) == (True, True)


def test_the_peak_of_runs_that_share_a_seed_is_no_surer_for_their_number():
    y = shaped(0 * RANKS, clusters=4)
    seeds = [(index, index // 5) for index in range(20)]
    result, plain = peak(RANKS, np.repeat(y, 5, axis=0), seeds), peak(RANKS, y)
    assert (result.mean, result.low, result.high) == (plain.mean, plain.low, plain.high)
    assert result.n == 20


def test_power_is_the_share_of_studies_that_find():
    result = power(lambda generator: bool(generator.random() < 0.3), draws=2000)
    assert result.low < 0.3 < result.high
    assert result.mean == pytest.approx(0.3, abs=0.04)


@given(st.integers(1, 500), st.data())
def test_a_proportion_stays_between_none_and_all(trials, data):
    hits = data.draw(st.integers(0, trials))
    result = proportion(hits, trials)
    assert 0 <= result.low <= result.mean <= result.high <= 1
    reference = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert (result.low, result.high) == (pytest.approx(reference.low), pytest.approx(reference.high))


@given(
    st.lists(st.tuples(st.floats(0.5, 2), st.floats(-1, 1)), min_size=2, max_size=8),
    st.floats(-3, 3).filter(lambda factor: abs(factor) > 0.1),
)
def test_a_ratio_scales_with_its_parts_and_lies_in_its_interval(pairs, factor):
    under, over = [pair for pair, _ in pairs], [two for _, two in pairs]
    result = ratio_interval(over, under)
    if result is None:
        return
    assert result.low <= result.mean <= result.high
    assert result.mean == pytest.approx(sum(over) / sum(under), abs=1e-12)
    scaled = ratio_interval([factor * value for value in over], under)
    ends = sorted((factor * result.low, factor * result.high))
    assert (scaled.low, scaled.high) == pytest.approx(tuple(ends), abs=1e-6)


def test_fieller_s_interval_is_where_the_t_test_of_the_difference_turns():
    """Its bounds by the closed form for independent runs."""
    over, under = [0.02, 0.05, 0.03, 0.06], [0.1, 0.16, 0.12, 0.15]
    result = ratio_interval(over, under)
    (mean_o, mean_u), cov = (np.mean(over), np.mean(under)), np.cov(over, under) / 4
    square = float(stats.t.ppf(0.975, 3)) ** 2
    a, b, c = (
        mean_u**2 - square * cov[1, 1],
        mean_o * mean_u - square * cov[0, 1],
        mean_o**2 - square * cov[0, 0],
    )
    root = np.sqrt(b**2 - a * c)
    assert (result.low, result.high) == pytest.approx(((b - root) / a, (b + root) / a), abs=1e-9)


def test_a_ratio_to_what_cannot_be_told_from_zero_has_no_value():
    assert ratio_interval([0.1, 0.2, 0.1], [0.1, -0.1, 0.02]) is None
    assert ratio_interval([0.1], [0.0]) is None
    assert ratio_interval([0.1], [0.2]) == Interval(0.5, None, None, 1)
    assert ratio_interval([0.1, 0.11], [0.2, 0.22]).mean == pytest.approx(0.5)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        under = rng.normal(0.15, 0.03, 5)
        over = 0.3 * under + rng.normal(0, 0.02, 5)
        result = ratio_interval(over.tolist(), under.tolist())
        hits += result is None or result.low <= 0.3 <= result.high
    assert 0.93 < hits / 1000 < 0.97


def test_the_fall_of_a_flat_curve_is_nothing_and_its_interval_covers_where_the_highest_mean_does_not():
    generator = np.random.default_rng(0)
    seeds = [(run, run) for run in range(5)]
    falls, highest, covered = [], [], 0
    for _ in range(300):
        y = generator.normal(0, 0.3, (5, 10))
        interval = fall_interval(y, seeds, 0.9)
        falls.append(interval.mean)
        highest.append(y.mean(axis=0)[:-1].max() - y.mean(axis=0)[-1])
        covered += interval.low <= 0 <= interval.high
    assert abs(np.mean(falls)) < 0.03  # a standard error of 0.01
    assert np.mean(highest) > 0.15
    assert covered >= 265


def test_a_run_has_no_part_in_choosing_the_peak_it_falls_from():
    y = np.array([[0.0, 9.0, 1.0], [5.0, 0.0, 2.0], [5.0, 0.0, 3.0]])
    assert fall_from_peak(y, [(1, 1), (2, 2), (3, 3)]) == {(1, 1): -1.0, (2, 2): -2.0, (3, 3): -3.0}
    one_data_set = [(1, 1), (2, 1), (3, 1)]
    assert fall_from_peak(y, one_data_set) == {(1, 1): -1.0, (2, 1): -2.0, (3, 1): -3.0}
    # The first two learned from one data set, so the third alone chooses for both.
    assert fall_from_peak(y, [(1, 1), (2, 1), (3, 2)]) == {(1, 1): -1.0, (2, 1): 3.0, (3, 2): -3.0}


def test_fewer_runs_than_two_have_no_interval_of_a_fall():
    assert fall_interval(np.ones((1, 4)), [(1, 1)]) is None
