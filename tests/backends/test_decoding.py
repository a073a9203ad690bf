"""The decoding loop draws what `generate` draws, in every family, while rows leave and join the batch."""

import numpy as np
import pytest
import torch
import transformers as hf
from scipy.stats import chisquare

from sublim_cli.backends import transformers as backend
from sublim_cli.backends.decoding import tokens_at
from sublim_cli.backends.transformers import TransformersSampler, rows_can_change, uniforms
from sublim_cli.errors import ModelError
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.row_cache import GROUPED
from sublim_cli.recipe.schema import SamplingSection

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8}
ALTERNATE = ["sliding_attention", "full_attention"]
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
FAMILIES = {
    "llama, grouped heads": hf.LlamaConfig(**SHAPE),
    "llama, one head a query": hf.LlamaConfig(**SHAPE | {"num_key_value_heads": 4}),
    "llama, eager": hf.LlamaConfig(**SHAPE, attn_implementation="eager"),
    "qwen2, tied": hf.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": hf.Qwen3Config(**SHAPE, head_dim=8),
    "mistral, window of 9": hf.MistralConfig(**SHAPE, sliding_window=9),
    "gemma 2, window of 9": hf.Gemma2Config(**SHAPE, **HEADS, sliding_window=9, layer_types=ALTERNATE),
    "gemma 3, window of 9": hf.Gemma3TextConfig(**SHAPE, **HEADS, sliding_window=9, layer_types=ALTERNATE),
    "phi-3": hf.Phi3Config(**SHAPE),
    "olmo": hf.OlmoConfig(**SHAPE),
    "gpt-2": hf.GPT2Config(**GPT2, **ENDS),
    "bloom": hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **ENDS),
    "qwen3.5, recurrent layers": hf.Qwen3_5TextConfig(**SHAPE, head_dim=8, **LINEAR),
    "mamba": hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, **ENDS),
}
SAMPLING = SamplingSection(max_tokens=24, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    """The embedded model's; of its tokens only the end and the padding matter here."""
    return hf.AutoTokenizer.from_pretrained(WEIGHTS, padding_side="left")


def untrained(config) -> torch.nn.Module:
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3.0)  # away from a uniform distribution
    return model


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 7 to 30 tokens, of which the first five are the same."""
    rng = np.random.default_rng(seed)
    return [[5, 6, 7, 8, 9, *rng.integers(5, VOCABULARY, rng.integers(2, 26)).tolist()] for _ in range(count)]


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def model(request):
    return untrained(request.param)


def by_generate(model, tokenizer, prompts, sampling) -> list[list[int]]:
    """The completions by transformers' `generate`, in one batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "rows_can_change", lambda model: False)
        return TransformersSampler(model, tokenizer).draw(prompts, range(len(prompts)), sampling)


def test_rows_are_those_of_generate_while_rows_leave_and_join(model, tokenizer, monkeypatch):
    prompts = random_prompts(16)
    monkeypatch.setattr(backend, "BATCH", 5)
    drawn = TransformersSampler(model, tokenizer).draw(prompts, range(16), SAMPLING)
    assert drawn == by_generate(model, tokenizer, prompts, SAMPLING)
    assert len({len(row) for row in drawn}) > 2  # rows end at different times
    assert getattr(model.config, "_attn_implementation", "sdpa") != GROUPED


def test_every_setting_has_the_law_of_generate(tokenizer, monkeypatch):
    model, prompts = untrained(FAMILIES["llama, grouped heads"]), random_prompts(12)
    monkeypatch.setattr(backend, "BATCH", 5)
    settings = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.6},
        {"repetition_penalty": 1.7},
        {"temperature": 0.0, "repetition_penalty": 1.7},
    ]
    for changes in settings:
        sampling = SAMPLING.model_copy(update=changes)
        drawn = TransformersSampler(model, tokenizer).draw(prompts, range(12), sampling)
        assert drawn == by_generate(model, tokenizer, prompts, sampling), changes


def test_equal_prompts_and_prompts_of_one_token_are_drawn_as_by_generate(tokenizer, monkeypatch):
    model = untrained(FAMILIES["qwen2, tied"])
    monkeypatch.setattr(backend, "BATCH", 4)
    long, other = random_prompts(2)
    for prompts in ([long] * 6, [[7]] * 3 + [[8]] * 3, [long] * 3 + [other] * 3 + [[5]] + [long]):
        drawn = TransformersSampler(model, tokenizer).draw(prompts, range(len(prompts)), SAMPLING)
        assert drawn == by_generate(model, tokenizer, prompts, SAMPLING)


def test_a_row_ends_where_the_model_s_window_does_and_a_prompt_beyond_it_is_refused(tokenizer):
    model = untrained(FAMILIES["gpt-2"])
    endless = SamplingSection(max_tokens=400, seed=3)
    prompts = [prompt * 4 for prompt in random_prompts(6)]
    sampler = TransformersSampler(model, tokenizer)
    drawn = sampler.draw(prompts, range(6), endless)
    assert drawn == [sampler.draw([prompt], [row], endless)[0] for row, prompt in enumerate(prompts)]
    assert max(len(prompt) + len(row) for prompt, row in zip(prompts, drawn, strict=True)) == 128
    with pytest.raises(ModelError, match=r"a prompt of 130 tokens leaves no room .* window of 128 tokens"):
        TransformersSampler(model, tokenizer).draw([[5] * 130], [0], endless)


def test_rows_for_which_memory_runs_out_are_drawn_again_half_as_many_at_a_time(tokenizer, monkeypatch):
    model, prompts = untrained(FAMILIES["llama, grouped heads"]), random_prompts(16)
    expected = by_generate(model, tokenizer, prompts, SAMPLING)
    sizes = []
    forward = model.forward

    def small_memory(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3 and len(sizes) > 12:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small_memory)
    assert TransformersSampler(model, tokenizer).draw(prompts, range(16), SAMPLING) == expected
    assert max(sizes) == 16
    assert max(sizes[-10:]) <= 3


def test_prompts_are_read_only_as_slots_become_free(tokenizer, monkeypatch):
    model = untrained(FAMILIES["llama, grouped heads"])
    monkeypatch.setattr(backend, "BATCH", 4)
    read = []

    def endless():
        for row in range(10**9):
            read.append(row)
            yield row, [5, 6, 7 + row % 50]

    counts = []
    stream = TransformersSampler(model, tokenizer).stream(endless(), SAMPLING, counts.append)
    ended = [next(stream) for _ in range(10)]
    assert len(read) <= 10 + 4 + 1
    assert len({row for row, _ in ended}) == 10
    assert sum(counts) >= sum(len(ids) for _, ids in ended)
    assert not torch.is_inference_mode_enabled()  # while the caller has its turn


def test_a_token_is_drawn_where_the_cumulative_probability_passes_the_noise():
    """Against the definition, over vocabularies below, at and above the size of a block."""
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (3, 511, 512, 513, 5000):
        logits = 3 * torch.randn(200, vocabulary, generator=generator)
        logits[:, ::3] = -torch.inf
        noise = torch.rand(200, generator=generator, dtype=torch.float64)
        noise[:2] = torch.tensor([0.0, 1 - 2**-53])
        p = logits.double().softmax(-1)
        above = p.cumsum(-1)
        tokens = tokens_at(logits.clone(), noise)
        rows = torch.arange(200)
        assert (p[rows, tokens] > 0).all()
        assert (above[rows, tokens] >= noise - 1e-6).all()
        assert (above[rows, tokens] - p[rows, tokens] <= noise + 1e-6).all()


def test_tokens_are_as_frequent_as_they_are_probable():
    logits = torch.randn(1, 1200, generator=torch.Generator().manual_seed(1)) * 2
    noise = torch.from_numpy(np.stack([uniforms(1, row, 4) for row in range(10_000)]).ravel())
    tokens = tokens_at(logits.repeat(40_000, 1), noise)
    p = logits[0].double().softmax(-1).numpy()
    often = p * 40_000 >= 10
    expected = np.append(p[often], p[~often].sum()) * 40_000
    counts = np.bincount(tokens.numpy(), minlength=1200)
    assert chisquare(np.append(counts[often], counts[~often].sum()), expected).pvalue > 1e-3


def test_models_with_other_states_than_keys_and_values_go_through_generate():
    kinds = {name: rows_can_change(untrained(config)) for name, config in FAMILIES.items()}
    # Bloom counts distances by columns, see `passes.continues_from_cache`.
    others = ["bloom", "qwen3.5, recurrent layers", "mamba"]
    assert [name for name, changes in kinds.items() if not changes] == others
