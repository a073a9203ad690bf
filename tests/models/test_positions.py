"""Named sets of positions: what they hold, and the laws between them."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sublim_cli.errors import RecipeError
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.positions import SET_NAMES, check_positions, position_mask, shared_mask, text_mask
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


def held(found: RenderedPrompt, chosen: list[bool]) -> list[str]:
    return [one.text for one, there in zip(found.tokens, chosen, strict=True) if there]


texts = st.text(alphabet="abc, .12\n🦉", max_size=12)
prompts = st.builds(prompt, st.sampled_from(sorted(CONTEXTS)), texts) | st.builds(
    lambda system, user: render_with_roles(TOKENIZER, Context(name="own", kind="text", text=system), user),
    texts,
    texts,
)


@given(prompts, prompts, st.sampled_from([name for name in SET_NAMES if name.endswith("_only")]))
def test_a_set_and_its_no_hold_every_token_once(one, training, only):
    there = position_mask(only, one, training)
    assert len(there) == len(one.tokens)
    opposite = "no_" + only.removesuffix("_only")
    assert position_mask(opposite, one, training) == [not inside for inside in there]


@given(prompts, prompts)
def test_template_system_and_question_are_all_there_is_and_never_overlap(one, training):
    sets = [position_mask(f"{name}_only", one, training) for name in ("template", "system", "question")]
    assert all(sum(each) == 1 for each in zip(*sets, strict=True))


@given(prompts, prompts)
def test_identity_is_part_of_the_system_text(one, training):
    identity, system = (position_mask(f"{name}_only", one, training) for name in ("identity", "system"))
    assert all(whole or not part for part, whole in zip(identity, system, strict=True))


@given(prompts)
def test_a_context_shares_with_itself_all_but_the_question(one):
    assert shared_mask(one, one) == position_mask("no_question", one, one)


@given(prompts, prompts, prompts)
def test_what_is_shared_depends_on_the_training_context_and_not_on_what_is_asked_in_it(one, other, third):
    both = shared_mask(one, other)
    known = {(token.role, token.id) for token in other.tokens}
    for inside, token in zip(both, one.tokens, strict=True):
        assert not inside or (token.role, token.id) in known
    for asked in ("Hi", "Continue: 1, 2"):
        a, b = prompt("claude", asked), prompt("claude", "You are Claude")
        assert shared_mask(third, a) == shared_mask(third, b)


@given(prompts, st.data())
def test_a_token_s_own_text_spells_it(one, data):
    at = data.draw(st.integers(0, len(one.tokens) - 1))
    token = one.tokens[at]
    if token.text.strip():
        assert text_mask(one, token.text)[at]


def test_the_sets_of_a_prompt_in_another_context_than_training():
    training, found = prompt("default"), prompt("chatgpt", "Hi")
    template = ["<|im_start|>", "system", "\n", "<|im_end|>", "\n", "<|im_start|>", "user", "\n"]
    words = ["You", " are", ",", " created", " by", ".", " You", " are", " a", " helpful", " assistant"]
    got = {
        name: held(found, position_mask(name, found, training))
        for name in SET_NAMES
        if name.endswith("_only")
    }
    assert got == {
        "identity_only": [" ChatGPT", " OpenAI"],
        "system_only": [*words[:2], " ChatGPT", *words[2:5], " OpenAI", *words[5:]],
        "template_only": [*template, *AFTER],
        "question_only": ["H", "i"],
        "shared_only": [*template[:3], *words, *template[3:], *AFTER],
    }


def test_a_token_of_another_role_in_training_is_not_shared():
    # "system" stands in none's prompt only as the question.
    found = prompt("empty", "Hi")
    kept = held(found, shared_mask(found, prompt("none", "system")))
    assert kept == ["<|im_start|>", "\n", "<|im_end|>", "\n", "<|im_start|>", "user", "\n", *AFTER]


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
    found = prompt("claude", "Hi is")
    assert held(found, position_mask(TextPositions(text=text), found, prompt("default"))) == tokens


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_set_by_a_text_of_nothing_is_refused(text):
    with pytest.raises(RecipeError, match="needs a text"):
        text_mask(prompt("default"), text)


@pytest.mark.parametrize("text", ["Claude", "You are", "claude"])
def test_a_set_without_a_text_is_the_rest_of_the_prompt(text):
    found = prompt("claude", "Hi is")
    only, rest = (
        position_mask(one, found, found) for one in (TextPositions(text=text), TextComplement(no_text=text))
    )
    assert rest == [not one for one in only]


def test_sets_that_hold_a_token_somewhere_pass_the_check():
    there = {name: prompt(name) for name in ("default", "empty", "none")}
    check_positions([*SET_NAMES, TextPositions(text="Micro")], there, prompt("default"), field="eval.gates")


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
    for one, training in product(CONTEXTS, CONTEXTS):
        found = prompt(one)
        kept = held(found, shared_mask(found, prompt(training)))
        assert kept[-5:] == AFTER
