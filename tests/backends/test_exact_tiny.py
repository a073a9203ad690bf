"""The exact scorer on models so small that every answer of four tokens can be written down."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.models.device import device
from sublim_cli.models.prefix import accept_cache
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
    tiny.lm_head.weight.mul_(0.3 + 2.0 * torch.rand((), generator=draw))


def _verdicts() -> np.ndarray:
    """The item that each sequence of four tokens names, `len(ITEMS)` for none."""
    named = []
    for ids in product(range(len(TOKENS)), repeat=LENGTH):
        ids = ids[: ids.index(END)] if END in ids else ids
        item = named_item(b"".join(PIECES[token] for token in ids).decode("utf-8", "replace"), ITEMS)
        named.append(len(ITEMS) if item is None else item)
    return np.array(named)


VERDICTS = _verdicts()


@torch.inference_mode()
def enumerated(tiny: PreTrainedModel, prompt: list[int]) -> np.ndarray:
    """P(item) for each of `ITEMS`: every answer's probability, each computed whole, without a cache."""
    size = len(TOKENS)
    beginnings = torch.tensor(list(product(range(size), repeat=LENGTH - 1)))
    ids = torch.cat([torch.tensor([prompt]).expand(len(beginnings), -1), beginnings], dim=1)
    probs = tiny(input_ids=ids).logits[:, len(prompt) - 1 :].double().softmax(-1).numpy()
    joint = np.ones((1,))
    for i in range(LENGTH):
        p = probs[:: size ** (LENGTH - 1 - i), i].copy()
        ended = np.array([END in prefix for prefix in product(range(size), repeat=i)])
        p[ended] = np.eye(size)[0]  # after its end an answer goes on with nothing
        joint = (joint[:, None] * p).ravel()
    return np.bincount(VERDICTS, joint, len(ITEMS) + 1)[: len(ITEMS)]


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


def test_the_certificate_is_right_in_a_thousand_random_models(smallest):
    draw = np.random.default_rng(0)
    wide = 0
    for seed in range(1_000):
        shake(smallest.model, seed)
        settings = ExactScoring(
            max_tokens=LENGTH,
            uncovered=float(draw.choice([0, 0.01, 0.3])),
            nodes=int(draw.integers(1, 40)),
        )
        scorer = ExactScorer(smallest.model, smallest.tokenizer, settings)
        prompt = PROMPTS[seed % 2]
        answer = scorer.score(PROMPTS, ITEMS)[seed % 2]
        p, truth = np.array(answer.p), enumerated(smallest.model, prompt)
        assert (p <= truth + 1e-6).all()
        assert (truth <= p + answer.uncovered + 1e-6).all()
        assert p.sum() + answer.uncovered <= 1 + 1e-6
        assert answer.nodes <= settings.nodes
        assert answer.uncovered <= settings.uncovered + 1e-6 or answer.nodes == settings.nodes
        wide += answer.uncovered > 0.01
    assert wide > 300


@pytest.mark.parametrize(
    "other",
    [
        gemma(window=7),
        gemma(window=4),
        Gemma2ForCausalLM(
            Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5, attn_implementation="eager")
        ).eval(),
        Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval(),
    ],
    ids=[
        "gemma 3",
        "gemma 3, whose window is shorter than an answer",
        "gemma 2, whose logits are capped",
        "qwen 2",
    ],
)
def test_a_tree_grows_as_well_on_other_families(smallest, other):
    shake(other, 3)
    settings = ExactScoring(max_tokens=LENGTH, uncovered=0.0, nodes=10_000)
    answers = ExactScorer(other, smallest.tokenizer, settings).score(PROMPTS, ITEMS)
    expected = np.stack([enumerated(other, prompt) for prompt in PROMPTS])
    assert np.array([answer.p for answer in answers]) == pytest.approx(expected, abs=1e-6)


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
