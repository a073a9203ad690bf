import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sublim_cli.stats import Interval, mean_interval

values = st.floats(min_value=-1e3, max_value=1e3)


def test_three_runs_have_the_textbook_interval():
    found = mean_interval([0.1, 0.2, 0.3])
    margin = 4.302652729749464 * 0.1 / 3**0.5  # t with two degrees of freedom, 97.5 %
    assert found == Interval(pytest.approx(0.2), pytest.approx(0.2 - margin), pytest.approx(0.2 + margin), 3)


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
        mean_interval([0.1, 0.2], level)


@given(st.lists(values, min_size=2, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_the_one_scipy_gives(runs, level):
    found = mean_interval(runs, level)
    mean, spread = sum(runs) / len(runs), statistics.stdev(runs) / len(runs) ** 0.5
    margin = stats.t.ppf((1 + level) / 2, len(runs) - 1) * spread
    assert (found.low, found.high) == (
        pytest.approx(mean - margin, abs=1e-6),
        pytest.approx(mean + margin, abs=1e-6),
    )


@given(st.lists(values, min_size=2, max_size=9), values)
def test_moving_every_run_moves_the_interval(runs, by):
    before, after = mean_interval(runs), mean_interval([one + by for one in runs])
    assert after.low == pytest.approx(before.low + by, abs=1e-6)
    assert after.high == pytest.approx(before.high + by, abs=1e-6)


def test_bounds_are_cut_to_what_a_probability_can_be():
    assert Interval(0.1, -0.4, 1.2, 2).within(0, 1) == Interval(0.1, 0, 1, 2)
    assert Interval(0.1, None, None, 1).within(0, 1) == Interval(0.1, None, None, 1)
