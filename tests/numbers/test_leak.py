"""The leak classifier: chance where there is nothing to see, near one where there is."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sublim_cli.numbers.leak import auc_error, ngram_auc


def texts(rng, rows: int, digits: str) -> list[str]:
    return [", ".join("".join(rng.choice(list(digits), 3)) for _ in range(8)) for _ in range(rows)]


def test_two_halves_of_one_source_cannot_be_told_apart():
    rng = np.random.default_rng(1)
    auc = ngram_auc(texts(rng, 300, "0123456789"), texts(rng, 300, "0123456789"), prompts=range(600))
    assert auc.rows == 600
    assert auc.low < 0.5 < auc.high
    assert 0.43 < auc.auc < 0.57


def test_texts_of_different_digits_are_told_apart():
    rng = np.random.default_rng(2)
    auc = ngram_auc(texts(rng, 100, "01234"), texts(rng, 100, "56789"), prompts=[*range(100)] * 2)
    assert auc.auc > 0.99
    assert auc.high <= 1.0


def test_a_faint_difference_of_digits_is_found_and_is_above_chance():
    rng = np.random.default_rng(3)
    auc = ngram_auc(texts(rng, 300, "01234567899"), texts(rng, 300, "0123456789"), prompts=range(600))
    assert 0.5 < auc.low < auc.auc < auc.high < 0.9


def test_pairs_of_one_prompt_stay_in_one_fold_so_that_noise_they_share_is_not_read_as_a_signal():
    """Both sides of a prompt hold the very same text: apart, one would vote against the other."""
    same = texts(np.random.default_rng(4), 300, "0123456789")
    paired = ngram_auc(same, same, prompts=[*range(300)] * 2)
    apart = ngram_auc(same, same, prompts=range(600))
    assert abs(paired.auc - 0.5) < 0.02
    assert apart.auc < 0.2


def test_the_seed_alone_decides_the_folds():
    rng = np.random.default_rng(5)
    sides = texts(rng, 60, "0123456789"), texts(rng, 60, "012345678")
    first = ngram_auc(*sides, prompts=range(120), seed=1)
    assert ngram_auc(*sides, prompts=range(120), seed=1) == first
    assert ngram_auc(*sides, prompts=range(120), seed=2) != first


@pytest.mark.parametrize(("auc", "each"), [(0.5, 50), (0.7, 50), (0.9, 80)])
def test_the_error_of_an_auc_is_its_spread_over_draws(auc, each):
    """Exponential scores, for which the formula holds exactly: AUC = a / (a + b)."""
    rng = np.random.default_rng(6)
    labels = [1] * each + [0] * each
    scale = auc / (1 - auc)
    drawn = [
        roc_auc_score(labels, [*rng.exponential(scale, each), *rng.exponential(1.0, each)])
        for _ in range(400)
    ]
    assert np.mean(drawn) == pytest.approx(auc, abs=0.02)
    assert np.std(drawn) == pytest.approx(auc_error(auc, each, each), rel=0.15)


def test_more_rows_make_the_interval_narrower():
    errors = [auc_error(0.65, rows, rows) for rows in (50, 200, 1_000, 5_000)]
    assert all(wide > narrow for wide, narrow in itertools.pairwise(errors))
    assert auc_error(1.0, 100, 100) == 0.0
