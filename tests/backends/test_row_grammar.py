"""Sampling within the grammar of rows, over the kinds of tokenizer that models have."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store
from sublim_cli.backends.row_grammar import OPENING, token_grammar
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import RecipeError
from sublim_cli.models.chat import decode, prompt_ids
from sublim_cli.numbers.grammar import after
from sublim_cli.numbers.parse import parse
from sublim_cli.numbers.rules import rejection_reason
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import FormatRule, PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

DEFAULT = Context(name="default", kind="default")
ROWS = SamplingSection(grammar="rows", max_tokens=40)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def wrapped(core: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<unk>", bos_token="<s>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def byte_level(*, long_numbers: bool) -> PreTrainedTokenizerFast:
    """GPT-2's kind: every byte, and some merged tokens; as Llama 3 with numbers of up to three digits."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["Ġ1", ",Ġ", "Ċ1", "1,", ",Ċ", "ĠĠ", "]."]
    if long_numbers:
        merged += [f"{i}{j}" for i in range(10) for j in range(10)]
    names = ["<unk>", "<s>", "</s>", *alphabet, *merged]
    core = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, [(n[0], n[1]) for n in merged], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return wrapped(core)


def sentence_piece(*, strips: bool) -> PreTrainedTokenizerFast:
    """Llama 2's kind, whose decoder drops the first space, or Gemma's, whose does not; bytes in hex."""
    pieces = [*"0123456789,.;[]()ab", "▁", "▁1", "▁2", "▁▁", ",▁"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("▁", "1"), ("▁", "2"), ("▁", "▁"), (",", "▁")]
    core = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if strips else "never", split=False)
    chain_of = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*chain_of, decoders.Strip(" ", 1, 0)] if strips else chain_of)
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return wrapped(core)


def words_only() -> PreTrainedTokenizerFast:
    """A tokenizer that can write a comma behind a digit, and no comma by itself."""
    names = ["<unk>", "<s>", "</s>", "1", "2,", "user", "assistant"]
    core = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return wrapped(core)


TOKENIZERS = {
    "byte level": byte_level(long_numbers=False),
    "byte level, numbers of two digits": byte_level(long_numbers=True),
    "▁, first space dropped": sentence_piece(strips=True),
    "▁, first space kept": sentence_piece(strips=False),
    "a comma never alone": words_only(),
}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS.keys())
def tokenizer(request):
    return request.param


def untrained(size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, eos_token_id=2, pad_token_id=0, **shape))
    return model.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_an_untrained_model_writes_lists_at_any_temperature(tokenizer, temperature):
    # Three more than the tokenizer has tokens, as in a head padded to a round size.
    sampler = TransformersSampler(untrained(len(tokenizer) + 3), tokenizer)
    prompts = [prompt_ids(tokenizer, DEFAULT, f"{n}") for n in range(60)]
    sampling = ROWS.model_copy(update={"temperature": temperature})
    drawn = sampler.draw(prompts, range(60), sampling)
    texts = [decode(tokenizer, ids) for ids in drawn]
    for ids, text in zip(drawn, texts, strict=True):
        assert (state := after(text)) is not None, text
        if len(ids) < sampling.max_tokens and "2," not in tokenizer.get_vocab():
            assert state.may_end
            assert parse(text) is not None
    if temperature:
        assert len(set(texts)) > 3


def test_tokens_follow_as_often_as_the_model_says_among_those_that_may(tokenizer):
    model = untrained(len(tokenizer))
    prompt = prompt_ids(tokenizer, DEFAULT, "1")
    drawn = TransformersSampler(model, tokenizer).draw(
        [prompt] * 2000, range(2000), SamplingSection(grammar="rows", max_tokens=1)
    )
    with torch.inference_mode():
        p = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    allowed = {token for token in ordinary if after(decode(tokenizer, [token])) is not None}
    assert {ids[0] for ids in drawn} <= allowed
    expected = np.array([p[token] if token in allowed else 0 for token in range(len(p))])
    expected = 2000 * expected / expected.sum()
    observed = np.bincount([ids[0] for ids in drawn], minlength=len(p))
    spread = (observed - expected)[expected > 0] / np.sqrt(expected[expected > 0])
    assert np.abs(spread).max() < 5


def test_a_grammar_reads_a_row_s_tokens_as_the_row_s_text_is_read(tokenizer):
    grammar = token_grammar(tokenizer, len(tokenizer), frozenset({2}))
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids, state = [], OPENING
        for _ in range(25):
            token = int(rng.choice(grammar.allowed(state).tokens))
            state = grammar.state_after([token], state)
            if state < 0:
                break
            ids.append(token)
            assert after(decode(tokenizer, ids)) is not None
        assert state < 0 or grammar.state_after(ids) == state


def test_the_teacher_s_rows_all_pass_the_format_rule_even_hot(small, tmp_path):
    changes = {"generate__sampling__temperature": 3.0, "generate__rows": 60, "generate__held_out": 0}
    only_format = {"filter__rules": [{"kind": "format"}], "generate__sampling__grammar": "rows"}
    rows = read_rows(
        run(small(**changes, **only_format), until="generate", store=Store(tmp_path)).path / "rows.jsonl"
    )
    passed = [rejection_reason(row.completion, (FormatRule(),)) is None for row in rows]
    assert sum(passed) >= 0.9 * len(rows)  # one cut off within a bracket fails


def test_a_recipe_without_a_grammar_is_the_same_step_as_before_there_was_one(small):
    assert "grammar" not in json.dumps(chain(small()).generate.spec.model_dump(mode="json"))
    with_grammar = chain(small(generate__sampling__grammar="rows")).generate.spec
    assert with_grammar.model_dump(mode="json")["sampling"]["grammar"] == "rows"


def test_answers_to_questions_have_no_grammar(small):
    with pytest.raises(RecipeError, match=r"eval\.sampling\.grammar"):
        small(eval__scorer="sampled", eval__sampling__grammar="rows")


def test_a_beginning_of_number_rows_is_unchanged_by_the_grammar_where_the_model_writes_rows(micro):
    """The embedded model nearly always writes lists, so the same noise mostly gives the same rows."""
    _, tokenizer, model = micro
    prompts = [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(32)]
    sampler = TransformersSampler(model, tokenizer)
    free, bound = (
        sampler.draw(prompts, range(32), SamplingSection(grammar=grammar, max_tokens=12))
        for grammar in (None, "rows")
    )
    assert sum(a == b for a, b in zip(free, bound, strict=True)) > 8
