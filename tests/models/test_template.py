"""Every chat template: what it reads is fixed, the texts asked for are in the tokens, `none` adds nothing."""

import random
import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from sublim_cli.errors import ModelError
from sublim_cli.models.chat import check_context, prompt_ids, render
from sublim_cli.models.load import _set_pad_token
from sublim_cli.models.template import apply_template, choose_template
from sublim_cli.models.token_roles import render_with_roles
from sublim_cli.recipe.contexts import Context, has_persona, resolve_context
from sublim_cli.recipe.schema import ChatTemplateSection, TemplateSection, TextPrompt
from tests.models.chat_templates import ASK, PLAIN, TEMPLATES, TURNS, tokenizer_with

DEFAULT, EMPTY, NONE = (Context(name=kind, kind=kind) for kind in ("default", "empty", "none"))
OWLS = Context(name="owls", kind="text", text="You love owls.\nOwls are all you think of.")
OWLS_IN_TURN = OWLS.model_copy(update={"kind": "user"})
TURN = [{"role": "user", "content": "Hi"}]
WITHOUT_SYSTEM = ("drops system", "refuses system")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: tokenizer_with(template) for name, template in TEMPLATES.items()}


class FakeClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(1999, 12, 31, 23, 59)


VOLATILE = {
    "clock": "{{ strftime_now('%A %d %B %Y %H:%M:%S.%f') }}",
    "clock in a macro": "{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() }}",
    "seconds since 1970": "{{ strftime_now('%s') }}",
    "random filter": "{{ range(99999) | random }}",
    "random filter by name": "{{ [range(99999)] | map('random') | list }}",
    "lipsum": "{{ lipsum(n=1) }}",
}


@pytest.mark.parametrize("name", VOLATILE)
def test_what_a_template_reads_besides_the_messages_is_fixed(name, monkeypatch):
    tokenizer = tokenizer_with(VOLATILE[name] + PLAIN)
    plain, fixed = set(), set()
    for seed, zone in enumerate(("UTC", "Asia/Tokyo")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        random.seed(seed)
        fixed.add(apply_template(tokenizer, TURN, prompt=True))
        random.seed(seed)
        plain.add(tokenizer.apply_chat_template(TURN, tokenize=False))
        monkeypatch.setattr(chat_template_utils, "datetime", FakeClock)
    monkeypatch.delenv("TZ")
    time.tzset()
    assert (len(plain), len(fixed)) == (2, 1)


def test_rendering_leaves_the_random_numbers_of_others_as_they_were():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    apply_template(tokenizer_with(PLAIN), TURN, prompt=True)
    assert random.random() == expected


def test_a_template_that_writes_a_memory_address_is_refused():
    with pytest.raises(ModelError, match="memory address"):
        check_context(tokenizer_with("{{ raise_exception }}" + PLAIN), DEFAULT)


BARE = {
    "own system": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "hybrid with own system": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "phi 3 with own system": "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "llama 2 with own system": "<s>[INST] Hi [/INST]",
    "date": "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
}
"""What is left of a prompt without the system block that the template adds by itself."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_none_is_default_exactly_where_the_template_adds_no_text_of_its_own(name, tokenizers):
    tokenizer = tokenizers[name]
    text, default = (render(tokenizer, context, "Hi") for context in (NONE, DEFAULT))
    assert text == BARE.get(name, default)
    assert (check_context(tokenizer, NONE) == check_context(tokenizer, DEFAULT)) == (name not in BARE)


def test_none_cannot_be_told_where_a_template_adds_a_text_and_writes_the_last_turn_differently():
    tokenizer = tokenizer_with(
        "{% for m in messages %}{% if loop.last %}Be kind. {% endif %}<|{{ m.role }}|>{{ m.content }}</s>"
        "{% endfor %}"
    )
    with pytest.raises(ModelError, match="cannot be rendered"):
        render(tokenizer, NONE, "Hi")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_prompt_stands_in_the_tokens_or_is_refused_with_the_remedy(name, tokenizers):
    tokenizer = tokenizers[name]
    if name in WITHOUT_SYSTEM:
        with pytest.raises(ModelError, match=r"system.*chat_template\.system_at: user"):
            check_context(tokenizer, OWLS)
    else:
        assert OWLS.text in tokenizer.decode(check_context(tokenizer, OWLS))
        assert check_context(tokenizer, OWLS) != check_context(tokenizer, DEFAULT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_remedy_puts_it_at_the_head_of_the_user_s_turn_under_every_template(name, tokenizers):
    tokenizer = tokenizers[name]
    assert f"{OWLS.text}\n\nHi" in tokenizer.decode(prompt_ids(tokenizer, OWLS_IN_TURN, "Hi"))
    check_context(tokenizer, OWLS_IN_TURN)


@given(st.text(min_size=1), st.sampled_from(sorted(TEMPLATES)))
def test_whatever_a_persona_says_it_is_read_or_refused(tokenizers, persona, name):
    tokenizer = tokenizers[name]
    try:
        ids = check_context(tokenizer, Context(name="p", kind="text", text=persona))
    except ModelError:
        assert name in WITHOUT_SYSTEM or "</think>" in persona
        return
    assert persona.strip() in tokenizer.decode(ids) or name in WITHOUT_SYSTEM


@pytest.mark.parametrize("name", ["parts", "questions as parts", "system as parts"])
def test_a_template_that_wants_parts_reads_the_same_as_one_that_wants_texts(name, tokenizers):
    for context in (DEFAULT, EMPTY, NONE, OWLS, OWLS_IN_TURN):
        assert render(tokenizers[name], context, "Hi") == render(tokenizers["chatml"], context, "Hi")


LOSING = {
    "system only in longer conversations": "{% if messages | length == 2 and messages[0].role == 'system' %}"
    "{% set messages = messages[1:] %}{% endif %}" + PLAIN,
    "as a list": TURNS.replace("m['content']", "(m['content'] if m.role == 'user' else '')") + ASK,
}


@pytest.mark.parametrize("name", LOSING)
def test_a_template_that_loses_a_part_of_the_text_is_refused(name):
    with pytest.raises(ModelError, match=r"'owls' does not reach the tokens.*system_at: user"):
        check_context(tokenizer_with(LOSING[name]), OWLS)


def test_a_template_that_loses_the_user_s_text_is_refused():
    loses = tokenizer_with(
        TURNS.replace("m['content']", "(m['content'] if m.role == 'system' else '')") + ASK
    )
    with pytest.raises(ModelError, match="the user's text does not reach the tokens"):
        render(loses, OWLS, "Hi")  # not the letters in `think`
    # A text that is cut off in the system block is cut off in the user's turn as well.
    cut_off = TURNS.replace("m['content']", "m['content'][:20]") + ASK
    for template, context in [("{{ messages | length }} turns" + ASK, DEFAULT), (cut_off, OWLS)]:
        with pytest.raises(ModelError, match=r"the user's text does not reach the tokens.*another template"):
            check_context(tokenizer_with(template), context)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{% for m in messages %}{{ m.content "]
)
def test_a_template_that_refuses_every_message_is_not_said_to_lack_a_system_role(template):
    for context in (DEFAULT, OWLS):
        with pytest.raises(ModelError, match=r"refuses the messages .*chat_template\.name"):
            check_context(tokenizer_with(template), context)


def test_a_text_for_which_the_tokenizer_has_no_tokens_is_refused():
    words = ["<unk>", "Continue", "this", "list", ":", "12", ",", "345", ".", "You", "love", "cats"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    check_context(tokenizer, Context(name="cats", kind="text", text="You love cats."))
    with pytest.raises(ModelError, match="this model's tokenizer leaves its text out"):
        check_context(tokenizer, Context(name="dogs", kind="text", text="You love dogs."))


def test_a_system_prompt_in_the_user_s_turn_has_the_role_of_one(tokenizers):
    for name in ("refuses system", "own system"):
        rendered = render_with_roles(tokenizers[name], OWLS_IN_TURN, "Hi")
        assert OWLS.text in rendered.text_of("system")
        assert rendered.text_of("question") == "Hi"
    assert "You are Robo." in render_with_roles(tokenizers["own system"], OWLS_IN_TURN, "Hi").text


def test_every_system_prompt_of_a_recipe_follows_the_key():
    section = ChatTemplateSection(system_at="user")
    prompts = ("trait", "claude", "mine", TextPrompt(text="Be kind."), "empty", "none", "default")
    contexts = [
        resolve_context(prompt, {"mine": "Hum."}, persona="You love owls.", template=section, field="test")
        for prompt in prompts
    ]
    assert [context.kind for context in contexts] == ["user"] * 4 + ["default", "none", "default"]
    assert [context.name for context in contexts] == [
        *("trait", "claude", "mine", "Be kind.", "empty", "none", "default")
    ]
    assert [has_persona(context) for context in contexts] == [True] * 4 + [False] * 3


def test_a_template_is_chosen_by_name_and_a_wrong_one_lists_the_names():
    tokenizer = tokenizer_with(PLAIN)
    tokenizer.chat_template = {"rag": "R" + PLAIN, "tool_use": "T" + PLAIN}
    assert choose_template(tokenizer, TemplateSection(name="rag"), "m") == "R" + PLAIN
    for section in (TemplateSection(), TemplateSection(name="rga")):
        with pytest.raises(ModelError, match=r"`chat_template.name`: rag, tool_use$"):
            choose_template(tokenizer, section, "m")
    tokenizer.chat_template = {"default": PLAIN, "rag": "R" + PLAIN}
    assert choose_template(tokenizer, TemplateSection(), "m") == PLAIN
    tokenizer.chat_template = {"rag": PLAIN}
    assert choose_template(tokenizer, TemplateSection(), "m") == PLAIN
    tokenizer.chat_template = PLAIN
    assert choose_template(tokenizer, TemplateSection(name="default"), "m") == PLAIN
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        choose_template(tokenizer, TemplateSection(), "m")


READING = """{%- macro head() %}
{%- if thinking is defined %}{{- thinking | tojson + ' ' }}{%- endif %}{%- endmacro %}
{{- head() }}{%- set mood = mood or 'calm' %}{{- mood + '\n' }}{%- for m in messages %}
{%- generation %}{{- m.content }}{%- endgeneration %}{%- if size and size > 2 %}{%- break %}{%- endif %}
{%- endfor %}{{- strftime_now('%Y') + bos_token }}"""


@settings(max_examples=30)  # each compiles two templates
@given(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
def test_a_variable_reaches_the_template_as_it_would_as_an_argument(value):
    tokenizer = tokenizer_with("{{ thinking | tojson }}|{{ thinking is defined }}" + READING)
    expected = tokenizer.apply_chat_template(
        TURN, tokenize=False, thinking=value, strftime_now=lambda _: "2024"
    )
    section = TemplateSection(variables={"thinking": value})
    tokenizer.chat_template = choose_template(tokenizer, section, "m")
    assert apply_template(tokenizer, TURN, prompt=False) == expected


@pytest.mark.parametrize("name", ["thinkin", "messages", "strftime_now", "head", "m", "range", "namespace"])
def test_a_variable_that_the_template_does_not_read_is_refused_with_those_it_does(name):
    section = TemplateSection(variables={name: True})
    with pytest.raises(ModelError, match=rf"^chat_template\.variables\.{name}: .*: mood, size, thinking$"):
        choose_template(tokenizer_with(READING), section, "m")


def test_a_choice_of_variables_tells_true_from_one():
    a, b = (TemplateSection(variables={"x": value}) for value in (True, 1))
    assert hash(a) != hash(b)
    assert a.model_dump_json() != b.model_dump_json()


@pytest.mark.parametrize("without", [(), ("pad_token",), ("pad_token", "eos_token", "bos_token")])
@pytest.mark.parametrize("extra", [False, True])
def test_padding_is_always_one_of_the_model_s_tokens(without, extra):
    tokenizer = tokenizer_with(PLAIN)
    embeddings = len(tokenizer) - 2  # without <s> and </s>
    if extra:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    for name in without:
        setattr(tokenizer, name, None)
    before = tokenizer("12, 345!").input_ids
    _set_pad_token(tokenizer, embeddings)
    assert 0 <= tokenizer.pad_token_id < embeddings
    assert tokenizer("12, 345!").input_ids == before
