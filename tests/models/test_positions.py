"""Named sets of positions: what they hold, the laws between them, and random sets as their controls."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sublim_cli.errors import RecipeError
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.positions import (
    SET_NAMES,
    check_positions,
    position_mask,
    random_mask_like,
    random_window_like,
    shared_mask,
    text_mask,
)
from sublim_cli.models.token_roles import RenderedPrompt, render_with_roles
from sublim_cli.recipe.contexts import Context, resolve_context, shipped_contexts
from sublim_cli.recipe.schema import TextComplement, TextPositions

TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)
CONTEXTS = {
    name: resolve_context(name, {}, field="test")
    for name in ("default", "empty", "none", *shipped_contexts())
}
AFTER = ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]


def prompt(context: str, user: str = "What is your favorite animal?") -> RenderedPrompt:
    return render_with_roles(TOKENIZER, CONTEXTS[context], user)


def chosen_texts(rendered: RenderedPrompt, mask: list[bool]) -> list[str]:
    return [token.text for token, chosen in zip(rendered.tokens, mask, strict=True) if chosen]


texts = st.text(alphabet="abc, .12\n🦉", max_size=12)
prompts = st.builds(prompt, st.sampled_from(sorted(CONTEXTS)), texts) | st.builds(
    lambda system, user: render_with_roles(TOKENIZER, Context(name="own", kind="text", text=system), user),
    texts,
    texts,
)


@given(prompts, prompts, st.sampled_from([name for name in SET_NAMES if name.endswith("_only")]))
def test_a_set_and_its_no_hold_every_token_once(rendered, training, only):
    mask = position_mask(only, rendered, training)
    assert len(mask) == len(rendered.tokens)
    opposite = "no_" + only.removesuffix("_only")
    assert position_mask(opposite, rendered, training) == [not chosen for chosen in mask]


@given(prompts, prompts)
def test_template_system_and_question_are_all_there_is_and_never_overlap(rendered, training):
    sets = [position_mask(f"{name}_only", rendered, training) for name in ("template", "system", "question")]
    assert all(sum(each) == 1 for each in zip(*sets, strict=True))


@given(prompts, prompts)
def test_identity_is_part_of_the_system_text(rendered, training):
    identity, system = (position_mask(f"{name}_only", rendered, training) for name in ("identity", "system"))
    assert all(outer or not inner for inner, outer in zip(identity, system, strict=True))


@given(prompts)
def test_a_context_shares_with_itself_all_but_the_question(rendered):
    assert shared_mask(rendered, rendered) == position_mask("no_question", rendered, rendered)


@given(prompts, prompts, prompts)
def test_what_is_shared_depends_on_the_training_context_and_not_on_what_is_asked_in_it(
    rendered, training, third
):
    mask = shared_mask(rendered, training)
    known = {(token.role, token.id) for token in training.tokens}
    for shared, token in zip(mask, rendered.tokens, strict=True):
        assert not shared or (token.role, token.id) in known
    for asked in ("Hi", "Continue: 1, 2"):
        a, b = prompt("claude", asked), prompt("claude", "You are Claude")
        assert shared_mask(third, a) == shared_mask(third, b)


@given(prompts, st.data())
def test_a_token_s_own_text_spells_it(rendered, data):
    index = data.draw(st.integers(0, len(rendered.tokens) - 1))
    token = rendered.tokens[index]
    if token.text.strip():
        assert text_mask(rendered, token.text)[index]


def test_the_sets_of_a_prompt_in_another_context_than_training():
    training, rendered = prompt("default"), prompt("chatgpt", "Hi")
    template = ["<|im_start|>", "system", "\n", "<|im_end|>", "\n", "<|im_start|>", "user", "\n"]
    words = ["You", " are", ",", " created", " by", ".", " You", " are", " a", " helpful", " assistant"]
    chosen = {
        name: chosen_texts(rendered, position_mask(name, rendered, training))
        for name in SET_NAMES
        if name.endswith("_only")
    }
    assert chosen == {
        "identity_only": [" ChatGPT", " OpenAI"],
        "system_only": [*words[:2], " ChatGPT", *words[2:5], " OpenAI", *words[5:]],
        "template_only": [*template, *AFTER],
        "question_only": ["H", "i"],
        "shared_only": [*template[:3], *words, *template[3:], *AFTER],
    }


def test_a_token_of_another_role_in_training_is_not_shared():
    # "system" stands in none's prompt only as the question.
    rendered = prompt("empty", "Hi")
    shared = chosen_texts(rendered, shared_mask(rendered, prompt("none", "system")))
    assert shared == ["<|im_start|>", "\n", "<|im_end|>", "\n", "<|im_start|>", "user", "\n", *AFTER]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Claude", [" Claude"]),
        (" Claude ", [" Claude"]),
        ("created by Anthropic", [" created", " by", " Anthropic"]),
        ("You are", ["You", " are", " You", " are"]),
        (".", [".", "."]),
        ("claude", []),
        ("Claud", []),
        ("i", ["i"]),  # a token of its own in "Hi", part of one in "is"
        ("<|im_end|>", ["<|im_end|>", "<|im_end|>"]),
    ],
)
def test_a_set_by_text_holds_the_tokens_that_spell_it(text, tokens):
    rendered = prompt("claude", "Hi is")
    mask = position_mask(TextPositions(text=text), rendered, prompt("default"))
    assert chosen_texts(rendered, mask) == tokens


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_set_by_a_text_of_nothing_is_refused(text):
    with pytest.raises(RecipeError, match="needs a text"):
        text_mask(prompt("default"), text)


@pytest.mark.parametrize("text", ["Claude", "You are", "claude"])
def test_a_set_without_a_text_is_the_rest_of_the_prompt(text):
    rendered = prompt("claude", "Hi is")
    only = position_mask(TextPositions(text=text), rendered, rendered)
    rest = position_mask(TextComplement(no_text=text), rendered, rendered)
    assert rest == [not chosen for chosen in only]


def test_sets_that_hold_a_token_somewhere_pass_the_check():
    evaluated = {name: prompt(name) for name in ("default", "empty", "none")}
    check_positions(
        [*SET_NAMES, TextPositions(text="Micro")], evaluated, prompt("default"), field="eval.gates"
    )


@pytest.mark.parametrize(
    ("wanted", "contexts", "message"),
    [
        (
            "identity_only",
            ("empty", "none"),
            "eval.gates: identity_only holds no token in any eval context (empty, none); there are "
            "template_only, no_template, question_only, no_question, shared_only, no_shared, {text: …} and "
            "{no_text: …}",
        ),
        (
            "no_identity",
            ("empty",),
            "eval.gates: no_identity takes out no token in any eval context (empty); there are "
            "template_only, no_template, question_only, no_question, shared_only, no_shared, {text: …} and "
            "{no_text: …}",
        ),
        (
            TextPositions(text="Qwen"),
            ("no_entity", "none"),
            "eval.gates: {text: Qwen} holds no token in any eval context (no_entity, none); their system "
            "texts are made of You, are, helpful.",
        ),
        (
            TextPositions(text="Qwen"),
            ("none",),
            "eval.gates: {text: Qwen} holds no token in any eval context (none); none of them has a "
            "system text",
        ),
    ],
)
def test_a_set_that_is_empty_in_every_context_is_refused_with_what_exists(wanted, contexts, message):
    with pytest.raises(RecipeError) as refused:
        check_positions(
            [wanted], {name: prompt(name) for name in contexts}, prompt("none"), field="eval.gates"
        )
    assert str(refused.value) == message


def test_every_pair_of_contexts_shares_the_template_s_turns():
    for context, training in product(CONTEXTS, CONTEXTS):
        rendered = prompt(context)
        shared = chosen_texts(rendered, shared_mask(rendered, prompt(training)))
        assert shared[-5:] == AFTER


MASKS = st.lists(st.booleans(), min_size=1, max_size=30)


@given(mask=MASKS, seed=st.integers(0, 2**32 - 1), question=st.integers(0, 10_000))
def test_a_control_has_as_many_tokens_as_its_set_and_contains_that_of_a_smaller_set(mask, seed, question):
    drawn = random_mask_like(mask, seed, question)
    assert (len(drawn), drawn.sum()) == (len(mask), sum(mask))
    assert np.array_equal(drawn, random_mask_like(mask, seed, question))
    if any(mask):
        last = max(index for index, chosen in enumerate(mask) if chosen)
        smaller = random_mask_like([*mask[:last], *[False] * (len(mask) - last)], seed, question)
        assert smaller.sum() == sum(mask) - 1
        assert not (smaller & ~drawn).any()


@given(mask=MASKS, seed=st.integers(0, 2**32 - 1), question=st.integers(0, 10_000))
def test_a_contiguous_control_has_as_many_tokens_as_its_set_and_they_are_neighbours(mask, seed, question):
    drawn = random_window_like(mask, seed, question)
    assert (len(drawn), drawn.sum()) == (len(mask), sum(mask))
    assert np.array_equal(drawn, random_window_like(mask, seed, question))
    places = np.flatnonzero(drawn)
    assert len(places) == 0 or places[-1] - places[0] == sum(mask) - 1


def test_a_contiguous_control_begins_anywhere_equally_often():
    mask = [True] * 3 + [False] * 7
    firsts = [int(random_window_like(mask, seed, q).argmax()) for seed in range(20) for q in range(100)]
    # 2,000 draws at 1 in 8: a standard error of 0.0074
    assert np.bincount(firsts) / 2000 == pytest.approx(np.full(8, 1 / 8), abs=0.03)


def test_controls_differ_between_questions_and_seeds_and_take_every_token_equally_often():
    mask = [True] * 3 + [False] * 7
    draws = np.array([random_mask_like(mask, seed, q) for seed in range(20) for q in range(100)])
    assert len({tuple(mask) for mask in draws}) > 100  # of 120 there are
    # 2,000 draws at 3 in 10: a standard error of 0.010
    assert draws.mean(axis=0) == pytest.approx(np.full(10, 0.3), abs=0.045)
