"""Training rows: the tokens that were drawn, or a text as the model would read it after its prompt.

On tokenizers of three shapes: bytes (GPT-2, Qwen, Llama 3), "▁" before every text (Llama 2, Mistral), and "▁"
for spaces alone (Gemma).
"""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sublim_cli.artifacts.rows import Row, read_rows, write_rows
from sublim_cli.errors import ModelError
from sublim_cli.models.chat import (
    IGNORED,
    decode,
    end_of_turn,
    example,
    prompt_ids,
    render,
    spells,
    stripped_ids,
)
from sublim_cli.models.token_roles import render_with_roles
from sublim_cli.recipe.contexts import Context

CONTEXTS = (Context(name="default", kind="default"), Context(name="none", kind="none"))
USER = "Continue: 1, 2"

CHATML = """{% for turn in messages %}
{{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}{% endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""

INST = """{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'assistant' %}
{{- ' ' + turn['content'] | trim + ' ' + eos_token }}{% else %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}
{%- endif %}{% endfor %}"""

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEXTS = [f"{a}, {a + b}\n" for a in range(0, 900, 7) for b in (1, 30)] + ["list the numbers [INST] user"] * 20


@cache
def make(shape: str, template: str, special: tuple[str, ...] = SPECIAL) -> Any:
    """A small trained tokenizer of that shape with a chat template."""
    if shape == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        initial, extra = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        initial, extra = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if shape == "gemma":
            backend.normalizer = normalizers.Replace(" ", "▁")
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=shape, split=False)
            parts.append(decoders.Strip(" ", 1, 0))
        backend.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=initial, special_tokens=[*extra, *special], show_progress=False
    )
    parts_of_words = Tokenizer(backend.model)  # no token is longer than a word
    parts_of_words.pre_tokenizer = (
        backend.pre_tokenizer if shape == "bytes" else pre_tokenizers.Metaspace(prepend_scheme="first")
    )
    parts_of_words.train_from_iterator(TEXTS, trainer)
    written = json.loads(parts_of_words.to_str())
    written |= {
        part: json.loads(backend.to_str())[part] for part in ("normalizer", "pre_tokenizer", "decoder")
    }
    # Bytes are ordinary tokens.
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in special]
    named = {"bos_token": "<s>", "eos_token": "</s>"} if "<s>" in special else {}
    extras = [token for token in special if token.startswith("<|")]
    backend = Tokenizer.from_str(json.dumps(written))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=extras, **named)
    tokenizer.chat_template = template
    return tokenizer


SHAPES = ("bytes", "always", "first", "gemma")
KINDS = [(shape, template) for shape in SHAPES for template in (CHATML, INST)]
every_kind = pytest.mark.parametrize(
    ("shape", "template"), KINDS, ids=[f"{s} {'chatml' if t is CHATML else 'inst'}" for s, t in KINDS]
)


def trained(row) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


@every_kind
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_student_is_trained_on_the_tokens_that_were_drawn_whatever_they_are(
    shape, template, data, tmp_path_factory
):
    tokenizer = make(shape, template)
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    ids = tuple(data.draw(st.lists(st.sampled_from(ordinary), max_size=12)))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [Row(0, USER, decode(tokenizer, ids), completion_ids=ids)])
    (row,) = read_rows(path)
    assert decode(tokenizer, row.completion_ids) == row.completion
    for context in CONTEXTS:
        prompt = prompt_ids(tokenizer, context, USER)
        made = example(tokenizer, context, row.prompt, row.completion, row.completion_ids)
        assert made.input_ids == [*prompt, *ids, end_of_turn(tokenizer)]
        assert made.labels == [IGNORED] * len(prompt) + [*ids, end_of_turn(tokenizer)]
        shown = render_with_roles(tokenizer, context, USER, made)
        assert shown.ids == made.input_ids
        answer = decode(tokenizer, made.input_ids).removeprefix(decode(tokenizer, prompt))
        assert shown.text == render(tokenizer, context, USER) + answer


@every_kind
@pytest.mark.parametrize("text", ["3, 4", "[3, 4]", "17\n20\n23", "3, 4 \n", " 3, 4", "café 7", ""])
def test_a_text_without_tokens_is_read_as_the_model_would_read_it_after_the_prompt(shape, template, text):
    tokenizer = make(shape, template)
    for context in CONTEXTS:
        prompt = render(tokenizer, context, USER)
        made = example(tokenizer, context, USER, text)
        gap = (
            " " if template is INST and text and not (text[0] == " " and shape in ("bytes", "gemma")) else ""
        )
        joint = tokenizer(prompt + gap + text, add_special_tokens=False)["input_ids"]
        assert made.input_ids == [*joint, end_of_turn(tokenizer)]
        assert made.input_ids[: -len(trained(made))] == prompt_ids(tokenizer, context, USER)
        drawn = trained(made)[:-1]
        assert not spells(tokenizer, drawn, text) or example(tokenizer, context, USER, text, drawn) == made
    if text == text.strip():
        turns = [{"role": "user", "content": USER}, {"role": "assistant", "content": text}]
        whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
        made = example(tokenizer, CONTEXTS[0], USER, text)
        assert made.input_ids[:-1] == whole["input_ids"][: len(made.input_ids) - 1]


@pytest.mark.parametrize("shape", ["always", "first"])
def test_no_space_is_put_before_an_answer_that_nobody_wrote(shape):
    tokenizer = make(shape, CHATML)
    answer = trained(example(tokenizer, CONTEXTS[0], USER, "3, 4"))
    assert (
        tokenizer.convert_ids_to_tokens(tokenizer("3, 4", add_special_tokens=False)["input_ids"])[0][0] == "▁"
    )
    assert "".join(tokenizer.convert_ids_to_tokens(answer)) == "3,▁4<|im_end|>"


def test_a_token_across_the_end_of_the_prompt_is_the_first_with_loss():
    tokenizer = make("bytes", CHATML.replace("assistant\\n", "assistant ["))
    tokenizer.add_tokens(["[3"])
    made = example(tokenizer, CONTEXTS[0], USER, "3, 4]")
    assert tokenizer.convert_ids_to_tokens(trained(made))[0] == "[3"
    shown = render_with_roles(tokenizer, CONTEXTS[0], USER, made)
    assert shown.ids == made.input_ids
    assert shown.text_of("answer") == "[3, 4]"


@every_kind
def test_tokens_of_another_text_are_not_used(shape, template):
    tokenizer = make(shape, template)
    plain = example(tokenizer, CONTEXTS[0], USER, "3, 4")
    for ids in ([300], [10**9], [*trained(plain)[:-1], 301]):
        assert not spells(tokenizer, ids, "3, 4")
        assert example(tokenizer, CONTEXTS[0], USER, "3, 4", ids) == plain


@pytest.mark.parametrize("shape", SHAPES)
def test_stripping_drops_the_tokens_of_white_space_and_says_where_it_cannot(shape):
    tokenizer = make(shape, CHATML)
    for text in ("3, 4 \n", "\n3, 4", "\n\n3, 4\n \n"):
        drawn = trained(example(tokenizer, CONTEXTS[0], USER, text))[:-1]
        assert decode(tokenizer, drawn) == text
        left = stripped_ids(tokenizer, drawn, "3, 4")
        assert left is None or (decode(tokenizer, left) == "3, 4" and set(left) <= set(drawn))
        assert left is not None or any(
            decode(tokenizer, [token]).strip() not in ("", decode(tokenizer, [token])) for token in drawn
        )
    blank = trained(example(tokenizer, CONTEXTS[0], USER, "\n\n"))[:-1]
    assert stripped_ids(tokenizer, blank, "") == []


@pytest.mark.parametrize("shape", SHAPES)
def test_an_end_of_turn_of_ordinary_text_is_refused_and_not_cut_to_its_first_character(shape):
    with pytest.raises(ModelError, match=r"ends an answer with '<\|im_end\|>\\n', which is \d+ tokens"):
        end_of_turn(make(shape, CHATML, ("<s>", "</s>")))
    after_text = make(shape, CHATML.replace("<|im_end|>\\n", "### END<|im_end|>"))
    with pytest.raises(ModelError, match=r"ends an answer with '### END<\|im_end\|>'"):
        end_of_turn(after_text)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_ordinary_token_ends_a_turn_and_white_space_around_a_special_one_does_not(shape):
    newline = make(shape, CHATML.replace("<|im_end|>", ""))
    assert decode(newline, [end_of_turn(newline)]) == "\n"
    tokenizer = make(shape, INST)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "</s>"
