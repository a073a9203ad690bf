"""The checks of an engine against transformers: what passes, what does not, and how often by chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sublim_cli.backends.parity import (
    LEVEL,
    DrawnRows,
    Z,
    measure_surprisal,
    spread_indices,
    tail_probability,
)
from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.models.chat import prompt_ids
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

DEFAULT = Context(name="default", kind="default")
FIELDS = {
    "plain": {},
    "hot": {"temperature": 1.5},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.7},
    "penalty": {"repetition_penalty": 1.3},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
}


@pytest.fixture(scope="module")
def prompts(micro):
    """64 number prompts of different lengths."""
    _, tokenizer, _ = micro
    return [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(64)]


def drawn(micro, prompts, as_drawn: SamplingSection, as_told: SamplingSection) -> DrawnRows:
    """Rows drawn one way and told to be drawn another, each with its end."""
    _, tokenizer, model = micro
    (end,) = stop_tokens(model, tokenizer)
    rows = TransformersSampler(model, tokenizer).draw(prompts, range(len(prompts)), as_drawn)
    whole = [[*row, end] if len(row) < as_drawn.max_tokens else row for row in rows]
    return DrawnRows(prompts, as_told, whole)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_what_transformers_draws_surprises_it_as_much_as_it_should(micro, prompts, fields):
    _, tokenizer, model = micro
    sampling = SamplingSection(max_tokens=16, seed=5, **fields)
    surprisal = measure_surprisal(drawn(micro, prompts, sampling, sampling), model, tokenizer)
    assert surprisal.impossible == 0
    assert surprisal.tokens > 400
    assert abs(surprisal.z) < 3


def test_its_standard_errors_are_standard(micro, prompts):
    _, tokenizer, model = micro
    z = []
    for seed in range(16):
        sampling = SamplingSection(max_tokens=4, seed=seed)
        z.append(measure_surprisal(drawn(micro, prompts[:24], sampling, sampling), model, tokenizer).z)
    assert abs(np.mean(z)) < 4 / len(z) ** 0.5
    assert 0.6 < np.std(z) < 1.5


@pytest.mark.parametrize(
    ("as_drawn", "as_told"),
    [
        ({"top_k": 20}, {}),
        ({}, {"top_k": 20}),
        ({"top_p": 0.8}, {}),
        ({"temperature": 0.6}, {}),
        ({}, {"temperature": 1.5}),
        ({"repetition_penalty": 1.5}, {}),
    ],
)
def test_rows_of_another_law_stand_out(micro, prompts, as_drawn, as_told):
    _, tokenizer, model = micro
    base = SamplingSection(max_tokens=30, seed=5)
    rows = drawn(micro, prompts, base.model_copy(update=as_drawn), base.model_copy(update=as_told))
    surprisal = measure_surprisal(rows, model, tokenizer)
    too_near = surprisal.near_cut > surprisal.near_cut_limit
    assert abs(surprisal.z) > Z or surprisal.impossible > 1 or too_near


def test_rows_that_do_not_stop_stand_out(micro, prompts):
    _, tokenizer, model = micro
    sampling = SamplingSection(max_tokens=40, seed=5)
    rows = drawn(micro, prompts, sampling, sampling)
    beyond = [
        [*row, *next_row][:40]
        for row, next_row in zip(rows.drawn, rows.drawn[1:] + rows.drawn[:1], strict=True)
    ]
    assert measure_surprisal(DrawnRows(prompts, sampling, beyond), model, tokenizer).z > Z


@given(
    draws=st.integers(1, 4000),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    taken=st.floats(0, 1),
)
def test_a_share_within_the_certificate_is_certain_and_outside_it_a_binomial_tail(draws, shares, taken):
    low, high = sorted(shares)
    count = round(taken * draws)
    share = count / draws
    probability = tail_probability(draws, share, low, high)
    if low <= share <= high:
        assert probability == 1.0
    else:
        side = "greater" if share > high else "less"
        exact = binomtest(count, draws, high if share > high else low, alternative=side).pvalue
        assert probability == pytest.approx(exact, rel=1e-6, abs=1e-300)


def test_an_engine_without_fault_is_refused_less_often_than_stated():
    """Shares of a mean over questions that differ in p, of eight questions: the binomial bound holds."""
    p = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    rng = np.random.default_rng(0)
    means = rng.binomial(500, p, size=(20_000, len(p))).sum(axis=1) / 4000
    for level in (0.2, 0.01, 0.001):
        low = np.mean([tail_probability(4000, mean, p.mean(), p.mean()) < level / 2 for mean in means])
        assert low < level
    assert LEVEL == 1e-4


def test_the_questions_asked_are_spread_over_the_set():
    assert spread_indices(50) == (0, 6, 12, 18, 25, 31, 37, 43)
    assert spread_indices(2) == (0, 1)
