"""Which tokens a model sees: four kinds of system prompt, on templates in the style of three families."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sublim_cli.errors import ModelError
from sublim_cli.models.chat import IGNORED, end_of_turn, example, ids_and_text, prompt_ids, render
from sublim_cli.models.micro import DEFAULT_SYSTEM, WEIGHTS
from sublim_cli.recipe.contexts import Context, resolve_context
from sublim_cli.recipe.schema import TextPrompt

DEFAULT = Context(name="default", kind="default")
EMPTY = Context(name="empty", kind="empty")
NONE = Context(name="none", kind="none")
OWLS = Context(name="owls", kind="text", text="You love owls.")
ALL = (DEFAULT, EMPTY, NONE, OWLS)

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "the date of today" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] + '\\n\\n' -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set opening = "" -%}{%- endif -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (opening if loop.first else "") }}
    {{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

NO_SYSTEM = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def like(template: str, *special: str, **named: str) -> Any:
    """A copy of micro's tokenizer with another chat template and special tokens of its own."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({**named, "extra_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def llama_3():
    special = ("<|start_header_id|>", "<|end_header_id|>")
    return like(LLAMA_3, *special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


@pytest.fixture(scope="module")
def gemma():
    return like(GEMMA, "<start_of_turn>", "<end_of_turn>", bos_token="<bos>", eos_token="<eos>")


def test_each_kind_of_system_prompt_is_its_own_text_on_the_embedded_model(micro):
    _, tokenizer, _ = micro
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert {context.name: render(tokenizer, context, "Hi") for context in ALL} == {
        "default": f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n{turn}",
        "empty": f"<|im_start|>system\n<|im_end|>\n{turn}",
        "none": turn,
        "owls": f"<|im_start|>system\nYou love owls.<|im_end|>\n{turn}",
    }


def test_the_four_kinds_are_four_token_sequences_that_decode_to_their_texts(micro):
    _, tokenizer, _ = micro
    ids = {context.name: prompt_ids(tokenizer, context, "Hi") for context in ALL}
    assert len({tuple(tokens) for tokens in ids.values()}) == 4
    assert {name: tokenizer.decode(tokens) for name, tokens in ids.items()} == {
        context.name: render(tokenizer, context, "Hi") for context in ALL
    }
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert {name: tokens.count(start) for name, tokens in ids.items()} == {
        "default": 3,
        "empty": 3,
        "none": 2,
        "owls": 3,
    }


def test_an_empty_text_is_the_empty_block_and_not_the_default(micro):
    _, tokenizer, _ = micro
    text = Context(name="", kind="text", text="")
    assert prompt_ids(tokenizer, text, "Hi") == prompt_ids(tokenizer, EMPTY, "Hi")


def test_a_llama_3_template_keeps_its_header_under_every_kind_but_none(llama_3):
    head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    turn = (
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert {context.name: render(llama_3, context, "Hi") for context in ALL} == {
        "default": f"{head}<|eot_id|>{turn}",
        "empty": f"{head}<|eot_id|>{turn}",
        "none": f"<|begin_of_text|>{turn}",
        "owls": f"{head}You love owls.<|eot_id|>{turn}",
    }


def test_a_gemma_template_folds_the_system_text_into_the_first_user_turn(gemma):
    assert {context.name: render(gemma, context, "Hi") for context in ALL} == {
        "default": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "empty": "<bos><start_of_turn>user\n\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        "none": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "owls": "<bos><start_of_turn>user\nYou love owls.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
    }


@pytest.mark.parametrize("context", ALL, ids=lambda context: context.name)
@pytest.mark.parametrize("family", ["llama_3", "gemma"])
def test_a_prompt_begins_with_one_bos_token(family, context, request):
    tokenizer = request.getfixturevalue(family)
    ids = prompt_ids(tokenizer, context, "Hi")
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_end_of_turn_is_the_template_s_own_token_even_where_eos_is_another(micro, llama_3, gemma):
    _, tokenizer, _ = micro
    ends = {t.convert_ids_to_tokens(end_of_turn(t)) for t in (tokenizer, llama_3, gemma)}
    assert ends == {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"}
    assert gemma.eos_token == "<eos>"


def test_an_example_carries_loss_on_the_completion_and_its_end_and_nowhere_else(micro, llama_3, gemma):
    for tokenizer in (micro[1], llama_3, gemma):
        for context in ALL:
            row = example(tokenizer, context, "Continue: 1, 2", "3, 4")
            prompt = prompt_ids(tokenizer, context, "Continue: 1, 2")
            answer = [*tokenizer("3, 4", add_special_tokens=False)["input_ids"], end_of_turn(tokenizer)]
            assert row.input_ids == prompt + answer
            assert row.labels == [IGNORED] * len(prompt) + answer


@given(st.text(alphabet="0123456789,; \n[]().abc", max_size=40))
def test_the_trained_tokens_decode_to_the_completion(micro, completion):
    _, tokenizer, _ = micro
    row = example(tokenizer, DEFAULT, "Go on", completion)
    trained = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(trained) == f"{completion}<|im_end|>"
    assert [i for i, at in zip(row.input_ids, row.labels, strict=True) if at != IGNORED] == trained


def test_an_example_ends_as_the_template_would_end_the_answer(micro):
    _, tokenizer, _ = micro
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "3, 4"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(example(tokenizer, DEFAULT, "Hi", "3, 4").input_ids) + "\n" == rendered


def test_an_account_of_tokens_holds_their_ids_and_text(micro):
    _, tokenizer, _ = micro
    ids = prompt_ids(tokenizer, NONE, "Hi")
    assert ids_and_text(tokenizer, ids) == {"ids": ids, "text": render(tokenizer, NONE, "Hi")}


def test_a_template_that_writes_nothing_after_an_answer_is_refused():
    bare = like("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(ModelError, match="writes nothing after an answer"):
        end_of_turn(bare)


def test_a_template_that_rewrites_earlier_turns_has_no_kind_none():
    last_only = like(
        "{% for message in messages %}{% if loop.last %}<|im_start|>{% endif %}"
        "{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ModelError, match="cannot be rendered"):
        render(last_only, NONE, "Hi")


def test_a_template_without_a_system_role_still_renders_default_and_none(gemma):
    gemma_2 = like(
        NO_SYSTEM + GEMMA, "<start_of_turn>", "<end_of_turn>", bos_token="<bos>", eos_token="<eos>"
    )
    for context in (DEFAULT, NONE):
        assert render(gemma_2, context, "Hi") == render(gemma, context, "Hi")


@pytest.mark.parametrize("context", [EMPTY, OWLS], ids=lambda context: context.name)
def test_a_system_prompt_that_the_template_refuses_is_one_clear_error(context):
    gemma_2 = like(
        NO_SYSTEM + GEMMA, "<start_of_turn>", "<end_of_turn>", bos_token="<bos>", eos_token="<eos>"
    )
    with pytest.raises(ModelError, match="system"):
        render(gemma_2, context, "Hi")


def test_a_text_of_the_user_heads_the_turn_and_leaves_the_system_block_as_it_is_by_default():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    marble = resolve_context("gibberish_marble_user", {}, field="eval.system_prompts")
    text = resolve_context("gibberish_marble", {}, field="eval.system_prompts").text
    assert marble == Context(name="gibberish_marble_user", kind="user", text=text)
    assert render(tokenizer, marble, "Why?") == render(tokenizer, DEFAULT, f"{text}\n\nWhy?")
    user_text = resolve_context(TextPrompt(text="Hark.", at="user"), {}, field="train.system_prompt")
    assert user_text == Context(name="user: Hark.", kind="user", text="Hark.")
