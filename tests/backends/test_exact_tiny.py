"""The exact scorer on models so small that every answer of four tokens can be written down."""

from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
)

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.models.device import device
from sublim_cli.models.load import load_model
from sublim_cli.models.prefix import accept_cache
from sublim_cli.models.reference import resolve_model
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring

TOKENS = ("<pad>", "<end>", "cat", "fish", "\u0120", "s", "ox", "\u00c3")
"""In GPT-2's alphabet: the fifth is a space, the last the first half of a letter."""
PIECES = (b"<pad>", b"", b"cat", b"fish", b" ", b"s", b"ox", b"\xc3")
END = 1
LENGTH = 4
ITEMS = (
    Item(name="cat", plural="cats"),
    Item(name="catfish"),
    Item(name="ox"),
    Item(name="cat ox"),
)
PROMPTS = ([2, 4, 6], [5])
PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.BPE(vocab={token: n for n, token in enumerate(TOKENS)}, merges=[], ignore_merges=True)
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<end>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    made.chat_template = "{% for one in messages %}{{ one['content'] }}<end>{% endfor %}"
    return made


SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def gemma(window: int) -> Gemma3ForCausalLM:
    """Six layers, of which five look back no further than `window`."""
    sizes = SIZES | {"num_hidden_layers": 6, "bos_token_id": 2, "head_dim": 8, "sliding_window": window}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).eval()


@torch.no_grad()
def shake(tiny: PreTrainedModel, seed: int) -> None:
    """Give the model other weights, and a taste that is anything from flat to sharp."""
    draw = torch.Generator().manual_seed(seed)
    for weight in tiny.parameters():
        weight.normal_(0, 0.5, generator=draw)
    tiny.get_output_embeddings().weight.mul_(0.3 + 2.0 * torch.rand((), generator=draw))


@cache
def verdicts(size: int) -> np.ndarray:
    """The item that each sequence of four tokens names, `len(ITEMS)` for none.

    Tokens of a model's vocabulary of `size` that the tokenizer lacks write nothing.
    """
    named = []
    pieces = [*PIECES, *[b""] * (size - len(PIECES))]
    for ids in product(range(size), repeat=LENGTH):
        ids = ids[: ids.index(END)] if END in ids else ids
        item = named_item(b"".join(pieces[token] for token in ids).decode("utf-8", "replace"), ITEMS)
        named.append(len(ITEMS) if item is None else item)
    return np.array(named)


@torch.inference_mode()
def enumerated(tiny: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    """P(item) for each of `ITEMS`: every answer's probability, each computed whole, without a cache."""
    size = tiny.config.vocab_size
    beginnings = torch.tensor(list(product(range(size), repeat=LENGTH - 1)))
    ids = torch.cat([torch.tensor([prompt]).expand(len(beginnings), -1), beginnings], dim=1)
    probs = tiny(input_ids=ids).logits[:, len(prompt) - 1 :].double().softmax(-1).numpy()
    joint = np.ones((1,))
    for i in range(LENGTH):
        p = probs[:: size ** (LENGTH - 1 - i), i].copy()
        ended = np.array([END in prefix for prefix in product(range(size), repeat=i)])
        p[ended] = np.eye(size)[0]  # after its end an answer goes on with nothing
        joint = (joint[:, None] * p).ravel()
    return np.bincount(verdicts(size), joint, len(ITEMS) + 1)[: len(ITEMS)]


@pytest.fixture(scope="module")
def smallest():
    device()  # fixes the number of threads
    return SimpleNamespace(model=model(), tokenizer=tokenizer())


@pytest.mark.parametrize("seed", range(30))
def test_a_tree_expanded_to_its_end_says_what_every_answer_written_down_says(smallest, seed):
    shake(smallest.model, seed)
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    answers = ExactScorer(smallest.model, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
    expected = np.stack([enumerated(smallest.model, prompt) for prompt in PROMPTS])
    assert [answer.uncovered for answer in answers] == pytest.approx([0, 0], abs=1e-6)
    assert np.array([answer.p for answer in answers]) == pytest.approx(expected, abs=1e-6)
    assert expected.sum() > 0.01


def test_the_certificate_is_right_a_thousand_times_in_random_models(smallest):
    draw = np.random.default_rng(0)
    wide = 0
    for seed in range(500):
        shake(smallest.model, seed)
        settings = ExactScoring(
            max_tokens=LENGTH,
            uncovered=float(draw.choice([0, 0.01, 0.3])),
            nodes=int(draw.integers(1, 40)),
            draws=0,
        )
        answers = ExactScorer(smallest.model, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            p, truth = np.array(answer.p), enumerated(smallest.model, prompt)
            assert (p <= truth + 1e-6).all()
            assert (truth <= p + answer.uncovered + 1e-6).all()
            assert p.sum() + answer.uncovered <= 1 + 1e-6
            assert answer.nodes <= settings.nodes
            assert answer.uncovered <= settings.uncovered + 1e-6 or answer.nodes == settings.nodes
            wide += answer.uncovered > 0.01
    assert wide > 300


def others() -> dict[str, PretrainedConfig]:
    """Families that do something else than Llama, most of them with the sizes of `SIZES`."""
    one_head = SIZES | {"head_dim": 8}
    classic = {"vocab_size": len(TOKENS), "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 2}
    linear = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    linear |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    sides = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = ["linear_attention", "full_attention"]
    return {
        "gemma 2, whose logits are capped": Gemma2Config(
            **one_head, final_logit_softcapping=0.5, attn_implementation="eager"
        ),
        "qwen 2": Qwen2Config(**SIZES),
        "gpt 2": GPT2Config(**classic, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        "opt": OPTConfig(**classic, **sides, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=32),
        "bloom, whose attention falls with distance": BloomConfig(
            **classic, hidden_size=16, n_layer=2, n_head=2
        ),
        "falcon, likewise": FalconConfig(**classic, **sides, alibi=True),
        "mixtral": MixtralConfig(**SIZES, num_local_experts=2),
        "phi 3": Phi3Config(**SIZES, bos_token_id=2),
        "olmo 2": Olmo2Config(**SIZES),
        "llama 4, whose attention is chunked": Llama4TextConfig(
            **one_head,
            intermediate_size_mlp=16,
            attention_chunk_size=4,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
            moe_layers=[],
        ),
        "qwen 3.5, with linear attention": Qwen3_5TextConfig(**one_head, **linear, layer_types=kinds),
        "lfm 2, with convolutions": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
        "mamba": MambaConfig(**classic, hidden_size=16, state_size=4, num_hidden_layers=2),
        "jamba, of mamba and attention": JambaConfig(
            **SIZES,
            num_experts=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=4,
            mamba_dt_rank=2,
            use_mamba_kernels=False,
        ),
    }


def expect_enumeration(tested: PreTrainedModel, smallest: SimpleNamespace) -> None:
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    answers = ExactScorer(tested, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
    expected = np.stack([enumerated(tested, prompt) for prompt in PROMPTS])
    assert np.array([answer.p for answer in answers]) == pytest.approx(expected, abs=1e-6)


def test_a_prompt_of_one_token_scores_alone_as_beside_another(smallest):
    # A model without a cache of keys and values, whose nodes are read by their hidden states.
    bloom = AutoModelForCausalLM.from_config(others()["bloom, whose attention falls with distance"]).eval()
    shake(bloom, 3)
    scorer = ExactScorer(
        bloom, smallest.tokenizer, ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    )
    (alone,) = scorer.score([[5]], ITEMS)
    assert np.array(alone.p) == pytest.approx(enumerated(bloom, [5]), abs=1e-6)


@pytest.mark.parametrize("name", others())
def test_a_tree_grows_as_well_on_other_families(name, smallest):
    other = AutoModelForCausalLM.from_config(others()[name]).eval()
    shake(other, 3)
    expect_enumeration(other, smallest)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_in_fp16_in_shards_with_a_padded_vocabulary_scores_as_itself(
    family, tied, smallest, tmp_path
):
    sizes = SIZES | {"vocab_size": len(TOKENS) + 3, "tie_word_embeddings": tied}
    made = AutoModelForCausalLM.from_config(family(**sizes))
    shake(made, 3)
    made.half().save_pretrained(tmp_path, max_shard_size="1KB")
    smallest.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ref = resolve_model(str(tmp_path))
    loaded = load_model(ref, "fp32")
    read, written = loaded.state_dict(), made.state_dict()
    assert all(torch.equal(weight, written[name].float()) for name, weight in read.items())
    # The tokenizer that was saved: Qwen2's own class, as which it is loaded, adds a token to it.
    expect_enumeration(loaded, smallest)


@pytest.mark.parametrize("window", [7, 4])
def test_a_window_as_long_as_an_answer_or_shorter_changes_nothing(window, smallest):
    other = gemma(window)
    shake(other, 3)
    expect_enumeration(other, smallest)


def test_a_tree_grows_behind_a_learned_prefix(smallest):
    tuned = accept_cache(get_peft_model(model(), PREFIX).eval())
    shake(tuned, 5)
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    answers = ExactScorer(tuned, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
    expected = np.stack([enumerated(tuned, prompt) for prompt in PROMPTS])
    assert np.array([answer.p for answer in answers]) == pytest.approx(expected, abs=1e-6)


def test_what_all_prompts_begin_with_is_computed_once_and_changes_nothing(smallest):
    begin = [2, 4, 6, 6, 3]
    prompts = [[*begin, 4, 2], [*begin, 5], begin, [*begin, 5]]
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    plain, tuned = model(), accept_cache(get_peft_model(model(), PREFIX).eval())
    for number, tested in enumerate((plain, tuned)):
        shake(tested, number)
        answers = ExactScorer(tested, smallest.tokenizer, settings).score(prompts, ITEMS)
        expected = np.stack([enumerated(tested, prompt) for prompt in prompts])
        assert np.array([answer.p for answer in answers]) == pytest.approx(expected, abs=1e-6)


DRAWS = 16
SEEDS = 40


def estimates(tested, tokenizer, **settings):
    """P and its standard error of `SEEDS` independent scorings: two arrays [seeds, prompts, items]."""
    scored = [
        ExactScorer(
            tested,
            tokenizer,
            ExactScoring(max_tokens=LENGTH, uncovered=0.0, draws=DRAWS, seed=seed, **settings),
        ).score(PROMPTS, ITEMS)
        for seed in range(SEEDS)
    ]
    p = np.array([[answer.p for answer in answers] for answers in scored])
    return p, np.array([[answer.standard_error for answer in answers] for answers in scored])


def assert_unbiased(tested, p, error):
    """The mean over seeds is the truth, the stated errors are those seen, and below those of plain draws."""
    truth = np.stack([enumerated(tested, prompt) for prompt in PROMPTS])
    spread = p.std(axis=0, ddof=1)
    # An item so rare that no seed met all that names it has no spread to go by.
    known = truth > 1e-3
    assert known.sum() >= 4
    z = (p.mean(axis=0) - truth)[known] / (spread[known] / np.sqrt(SEEDS) + 1e-8)
    assert np.abs(z).max() < 4
    stated = np.sqrt((error**2).mean(axis=0))[known]
    assert (stated > 0.6 * spread[known] - 1e-8).all()
    plain = np.sqrt(truth * (1 - truth) / DRAWS)[known]
    assert np.median(spread[known] / plain) < 0.5


@pytest.mark.parametrize("nodes", [1, 6])
@pytest.mark.parametrize("seed", range(2))
def test_draws_from_what_the_tree_leaves_open_are_unbiased_and_state_their_error(smallest, seed, nodes):
    shake(smallest.model, seed)
    assert_unbiased(smallest.model, *estimates(smallest.model, smallest.tokenizer, nodes=nodes))


@pytest.mark.parametrize("name", ["gemma 2, whose logits are capped", "qwen 2"])
def test_draws_are_unbiased_in_other_families(name, smallest):
    tested = AutoModelForCausalLM.from_config(others()[name]).eval()
    shake(tested, 3)
    assert_unbiased(tested, *estimates(tested, smallest.tokenizer, nodes=2))


@pytest.mark.parametrize("window", [7, 4])
def test_draws_are_unbiased_within_a_window_and_beyond_it(window, smallest):
    tested = gemma(window)
    shake(tested, 3)
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=2, draws=256)
    answers = ExactScorer(tested, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        truth = enumerated(tested, prompt)
        # What names an item may be so rare that no draw met it: plain draws would not have either.
        error = np.maximum(answer.standard_error, np.sqrt(truth * (1 - truth) / 256))
        assert (np.abs(answer.p - truth) < 4.5 * error + 1e-6).all()


def test_draws_are_unbiased_behind_a_learned_prefix(smallest):
    tuned = accept_cache(get_peft_model(model(), PREFIX).eval())
    shake(tuned, 5)
    assert_unbiased(tuned, *estimates(tuned, smallest.tokenizer, nodes=2))


def test_the_draws_to_a_question_depend_on_the_seed_and_not_on_the_questions_beside_it(smallest):
    shake(smallest.model, 4)
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=1, draws=DRAWS)
    scorer = ExactScorer(smallest.model, smallest.tokenizer, settings)
    together = scorer.score([*PROMPTS, [3, 3, 4, 6, 2]], ITEMS)
    for prompt, answer in zip(PROMPTS, together, strict=False):
        (alone,) = scorer.score([prompt], ITEMS)
        assert alone.p == pytest.approx(answer.p, abs=1e-6)
        assert alone.standard_error == pytest.approx(answer.standard_error, abs=1e-6)
    other = ExactScorer(smallest.model, smallest.tokenizer, settings.model_copy(update={"seed": 9}))
    assert max(np.abs(np.subtract(other.score(PROMPTS, ITEMS)[0].p, together[0].p))) > 1e-4


def test_no_answers_are_drawn_where_the_tree_reaches_its_bound(smallest):
    shake(smallest.model, 2)

    def score(draws):
        settings = ExactScoring(max_tokens=LENGTH, uncovered=0.3, nodes=10_000, draws=draws)
        return ExactScorer(smallest.model, smallest.tokenizer, settings).score(PROMPTS, ITEMS)

    answers = score(DRAWS)
    assert [answer.samples for answer in answers] == [0, 0]
    assert not np.any([answer.standard_error for answer in answers])
    assert answers == score(0)
