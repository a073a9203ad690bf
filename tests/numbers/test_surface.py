"""The surface of a data set: what is counted, and a divergence that chance explains or does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.numbers.surface import (
    Overlap,
    Surface,
    digit_divergence,
    overlap,
    surface,
)

ANSWERS = st.dictionaries(st.integers(0, 40), st.from_regex(r"[0-9]{1,3}(, [0-9]{1,3}){0,3}", fullmatch=True))


def answers(rng, rows, digits):
    return {n: ", ".join("".join(rng.choice(list(digits), 3)) for _ in range(8)) for n in range(rows)}


def test_rows_that_repeat_or_hold_a_letter_are_counted_and_shown():
    assert surface(["11, 22", "7", "11, 22", "one 3", "три", "11, 22"]) == Surface(
        rows=6,
        duplicates=2,
        letters=2,
        shown=("one 3", "три"),
        digits=(0, round(6 / 14, 6), round(6 / 14, 6), round(1 / 14, 6), 0, 0, 0, round(1 / 14, 6), 0, 0),
    )


def test_no_rows_are_a_surface_too():
    assert surface([]) == Surface(0, 0, 0, (), (0.0,) * 10)


def test_answers_are_compared_prompt_by_prompt():
    assert overlap({1: "5", 2: "6", 3: "7"}, {2: "6", 3: "8", 4: "5"}) == Overlap(prompts=2, same=1)


def test_digits_that_never_meet_are_one_bit_apart_and_equal_ones_none():
    apart = digit_divergence(dict.fromkeys(range(20), "123"), dict.fromkeys(range(20), "456"))
    assert (apart.bits, apart.p) == (pytest.approx(1.0), pytest.approx(0.001))
    assert apart.chance < 0.5
    same = digit_divergence(dict.fromkeys(range(20), "123"), dict.fromkeys(range(20), "321"))
    assert (same.bits, same.p) == (0.0, 1.0)


def test_the_order_of_digits_shows_in_pairs_alone():
    divergence = digit_divergence(dict.fromkeys(range(20), "123"), dict.fromkeys(range(20), "321"), length=2)
    assert (divergence.bits, divergence.p) == (pytest.approx(1.0), pytest.approx(0.001))


def test_pairs_do_not_reach_across_numbers():
    divergence = digit_divergence(
        dict.fromkeys(range(9), "12, 34"), dict.fromkeys(range(9), "34, 12"), length=2
    )
    assert (divergence.bits, divergence.p) == (0.0, 1.0)


def test_a_faint_tilt_of_digits_is_more_than_chance():
    rng = np.random.default_rng(3)
    divergence = digit_divergence(answers(rng, 300, "01234567899"), answers(rng, 300, "0123456789"))
    assert divergence.bits > divergence.chance
    assert divergence.p < 0.05


def test_teachers_alike_are_called_different_about_as_often_as_chance_says():
    rng = np.random.default_rng(4)
    drawn = [
        digit_divergence(answers(rng, 40, "0123456789"), answers(rng, 40, "0123456789")) for _ in range(200)
    ]
    assert np.mean([each.p <= 0.05 for each in drawn]) < 0.09
    assert np.mean([each.bits > each.chance for each in drawn]) < 0.09


def test_the_same_answers_with_a_tilt_that_all_share_are_not_called_different():
    """Both draw with the same noise: answers of one prompt are near copies, and prompts differ much."""
    rng = np.random.default_rng(5)
    base = {n: str(rng.integers(1, 10)) * 9 for n in range(200)}
    nearly = {n: text[:-1] + str(rng.integers(0, 10)) for n, text in base.items()}
    again = {n: text[:-1] + str(rng.integers(0, 10)) for n, text in base.items()}
    divergence = digit_divergence(nearly, again)
    assert divergence.chance < 0.001  # mixed across prompts, chance alone would allow much more


@given(ANSWERS, ANSWERS)
def test_a_divergence_lies_between_nothing_and_one_bit_and_is_the_same_both_ways(trait, control):
    if not (trait and control):
        return
    divergence, back = digit_divergence(trait, control), digit_divergence(control, trait)
    assert 0.0 <= divergence.bits <= 1.0 + 1e-12
    assert divergence.bits == pytest.approx(back.bits, abs=1e-12)
    assert 0.001 <= divergence.p <= 1.0


def test_without_numbers_of_two_digits_there_are_no_pairs_to_compare():
    assert digit_divergence({1: "1, 2"}, {1: "12"}, length=2) is None
