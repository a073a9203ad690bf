"""Random sets of tokens: the right number, from the right place, the same whoever asks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.errors import RecipeError
from sublim_cli.models.positions import random_mask_like

PLACES = st.lists(st.booleans(), min_size=1, max_size=30)


@given(eligible=PLACES, seed=st.integers(0, 2**32 - 1), question=st.integers(0, 10_000), data=st.data())
def test_a_control_has_as_many_tokens_as_its_set_and_all_are_eligible(eligible, seed, question, data):
    size = data.draw(st.integers(0, sum(eligible)))
    mask = [True] * size + [False] * (len(eligible) - size)
    drawn = random_mask_like(mask, eligible, seed, question)
    assert (len(drawn), drawn.sum()) == (len(mask), size)
    assert not (drawn & ~np.array(eligible)).any()
    assert np.array_equal(drawn, random_mask_like(mask, eligible, seed, question))
    if size:
        smaller = random_mask_like(
            [*mask[: size - 1], *[False] * (len(mask) - size + 1)], eligible, seed, question
        )
        assert not (smaller & ~drawn).any()


def test_controls_differ_between_questions_and_seeds_and_take_every_token_equally_often():
    mask, eligible = [True] * 3 + [False] * 9, [False] * 2 + [True] * 10
    draws = np.array([random_mask_like(mask, eligible, seed, q) for seed in range(20) for q in range(100)])
    assert len({tuple(one) for one in draws}) > 100  # of 120 there are
    often = draws.mean(axis=0)
    assert (often[:2] == 0).all()
    # 2,000 draws at 3 in 10: a standard error of 0.010
    assert often[2:] == pytest.approx(np.full(10, 0.3), abs=0.045)


def test_a_control_that_does_not_fit_is_refused():
    with pytest.raises(RecipeError) as caught:
        random_mask_like([True, True, False], [True, False, False], 1, 7)
    assert str(caught.value) == "eval.gates: question 7 has 1 tokens to draw a control of 2 from"
    with pytest.raises(RecipeError, match="a mask of 2 tokens and 1 to draw from are not one prompt"):
        random_mask_like([True, False], [True], 1, 0)
