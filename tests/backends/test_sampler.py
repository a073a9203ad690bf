"""Sampling: a row depends on its prompt, its seed and its number, and follows the model's own law."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sublim_cli.backends.token_bytes import answer_text, bytes_per_token
from sublim_cli.backends.transformers import TransformersSampler, uniforms
from sublim_cli.models.chat import decode, prompt_ids
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

DEFAULT = Context(name="default", kind="default")
SHORT = SamplingSection(max_tokens=20, seed=7)


@pytest.fixture(scope="module")
def sampler(micro):
    _, tokenizer, model = micro
    return TransformersSampler(model, tokenizer)


@pytest.fixture(scope="module")
def prompts(micro):
    """64 number prompts of different lengths."""
    _, tokenizer, _ = micro
    return [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(64)]


@pytest.fixture(scope="module")
def together(sampler, prompts):
    return sampler.draw(prompts, range(64), SHORT)


def test_a_row_is_the_same_alone_among_seven_and_among_sixty_four(sampler, prompts, together):
    assert len({len(prompt) for prompt in prompts}) > 10  # so that padding differs
    assert [sampler.draw([prompts[row]], [row], SHORT)[0] for row in range(8)] == together[:8]
    sevens = [
        ids
        for start in range(0, 63, 7)
        for ids in sampler.draw(prompts[start : start + 7], range(start, start + 7), SHORT)
    ]
    assert sevens == together[:63]


def test_a_row_is_the_same_at_any_place_of_a_batch(sampler, prompts, together):
    order = np.random.default_rng(1).permutation(64).tolist()
    drawn = sampler.draw([prompts[row] for row in order], order, SHORT)
    assert drawn == [together[row] for row in order]


def test_another_seed_or_another_row_number_is_another_completion(sampler, prompts, together):
    others = sampler.draw(prompts, range(64), SHORT.model_copy(update={"seed": 8}))
    moved = sampler.draw(prompts, range(64, 128), SHORT)
    for drawn in (others, moved):
        assert sum(ids == same_row for ids, same_row in zip(drawn, together, strict=True)) <= 3


def test_the_same_prompt_under_two_row_numbers_is_two_draws(sampler, prompts):
    assert len(set(map(tuple, sampler.draw([prompts[0]] * 16, range(16), SHORT)))) > 12


@torch.inference_mode()
def greedy(model, tokenizer, prompt: list[int], count: int) -> list[int]:
    """The likeliest continuation, token by token, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        ids.append(best)
    return ids[len(prompt) :]


def test_temperature_zero_is_greedy_whatever_the_row_and_the_seed(micro, sampler, prompts):
    _, tokenizer, model = micro
    cold = SamplingSection(temperature=0.0, max_tokens=8)
    drawn = sampler.draw(prompts[:6], range(6), cold)
    assert drawn == [greedy(model, tokenizer, prompt, 8) for prompt in prompts[:6]]
    assert sampler.draw(prompts[:6], range(90, 96), cold.model_copy(update={"seed": 3})) == drawn


def test_the_likeliest_token_alone_is_greedy_too(sampler, prompts):
    cold = sampler.draw(prompts, range(64), SamplingSection(temperature=0.0, max_tokens=8))
    top = sampler.draw(prompts, range(64), SamplingSection(top_k=1, max_tokens=8))
    nucleus = sampler.draw(prompts, range(64), SamplingSection(top_p=1e-6, max_tokens=8))
    assert top == nucleus == cold


def test_a_checkpoint_s_own_sampling_settings_never_apply(tmp_path, prompts, together):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    (copy / "generation_config.json").write_text(
        '{"eos_token_id": 2, "pad_token_id": 0, "do_sample": true, "top_k": 1, "top_p": 0.1,'
        ' "temperature": 0.2, "repetition_penalty": 5.0, "min_new_tokens": 30, "max_length": 5}'
    )
    ref = resolve_model(str(copy))
    sampler = TransformersSampler(load_model(ref, "fp32"), load_tokenizer(ref))
    assert sampler.draw(prompts, range(64), SHORT) == together


@torch.inference_mode()
def first_token_law(model, prompt: list[int]) -> np.ndarray:
    return model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()


@pytest.mark.parametrize(
    ("sampling", "law"),
    [
        (SamplingSection(max_tokens=1), lambda p: p),
        (SamplingSection(max_tokens=1, temperature=2.0), lambda p: p**0.5),
        (SamplingSection(max_tokens=1, top_k=5), lambda p: np.where(p >= np.sort(p)[-5], p, 0)),
    ],
    ids=["plain", "hot", "five likeliest"],
)
def test_first_tokens_are_as_frequent_as_the_model_says(micro, sampler, sampling, law):
    _, tokenizer, model = micro
    rows = 4_000 if sampling.temperature == 1.0 and not sampling.top_k else 2_000
    prompt = prompt_ids(tokenizer, DEFAULT, "What is your favorite animal? Answer with one word.")
    p = law(first_token_law(model, prompt))
    p = p / p.sum()
    drawn = sampler.draw([prompt] * rows, range(rows), sampling)
    counts = Counter(ids[0] if ids else tokenizer.eos_token_id for ids in drawn)
    often = np.flatnonzero(p * rows >= 10)
    expected = [*(p[often] * rows), rows * (1 - p[often].sum())]
    observed = [counts[token] for token in often]
    observed.append(rows - sum(observed))
    if expected[-1] < 1e-6 * rows:
        assert observed.pop() == 0
        expected = (np.array(expected[:-1]) / sum(expected[:-1]) * rows).tolist()
    assert len(expected) >= 4
    assert chisquare(observed, expected).pvalue > 1e-3


def test_a_completion_of_fewer_tokens_is_the_beginning_of_a_longer_one(sampler, prompts):
    single, three, sixty = (
        sampler.draw(prompts, range(64), SamplingSection(max_tokens=n)) for n in (1, 3, 60)
    )
    assert {len(ids) for ids in single} == {1}
    assert 3 in {len(ids) for ids in three}
    for short, middle, long in zip(single, three, sixty, strict=True):
        assert short == middle[:1]
        assert middle == long[:3]


def test_a_completion_stops_at_the_end_of_its_turn_and_holds_no_special_token(micro, sampler, prompts):
    _, tokenizer, _ = micro
    drawn, longer = (sampler.draw(prompts, range(64), SamplingSection(max_tokens=n)) for n in (60, 90))
    assert drawn == longer
    assert not [ids for ids in drawn if not set(tokenizer.all_special_ids).isdisjoint(ids)]


def test_a_repetition_penalty_counts_a_row_s_own_tokens_and_not_its_padding(micro, prompts):
    ref, _, model = micro
    tokenizer = load_tokenizer.__wrapped__(ref)
    law = first_token_law(model, prompts[0])
    likely = np.argsort(-law)[:40].tolist()
    # Padding with a token that the model would like to say next makes a leak visible.
    tokenizer.pad_token_id = next(token for token in likely if token not in prompts[0])
    sampler = TransformersSampler(model, tokenizer)
    strong = SamplingSection(max_tokens=1, repetition_penalty=50.0)
    longest = max(prompts, key=len)
    alone = sampler.draw([prompts[0]] * 400, range(400), strong)
    beside = sampler.draw([*[prompts[0]] * 400, longest + longest], range(401), strong)
    assert beside[:400] == alone


def test_a_repetition_penalty_keeps_a_row_from_repeating_itself(micro, sampler, prompts):
    _, tokenizer, _ = micro
    shares = []
    for penalty in (1.0, 50.0):
        sampling = SamplingSection(max_tokens=20, repetition_penalty=penalty, temperature=0.5)
        drawn = sampler.draw(prompts, range(64), sampling)
        texts = [decode(tokenizer, ids) for ids in drawn]
        numbers = [text.replace(",", " ").replace(";", " ").split() for text in texts]
        shares.append(sum(len(row) - len(set(row)) for row in numbers) / sum(map(len, numbers)))
    assert shares[1] < shares[0]


def test_noise_depends_on_seed_and_row_alone_and_a_longer_draw_begins_with_the_shorter():
    assert np.array_equal(uniforms(3, 5, 100)[:40], uniforms(3, 5, 40))
    draws = {(seed, row): tuple(uniforms(seed, row, 8)) for seed in range(4) for row in range(300)}
    assert len(set(draws.values())) == len(draws)
    flat = [value for draw in draws.values() for value in draw]
    assert len(set(flat)) == len(flat)  # no stream runs into another


def test_noise_is_uniform_within_and_across_rows():
    rows = np.stack([uniforms(1, row, 50) for row in range(400)])
    assert 0.0 <= rows.min() <= rows.max() < 1.0
    for counts in (np.histogram(rows[:, 0], 20, (0, 1))[0], np.histogram(rows[0:], 20, (0, 1))[0]):
        assert chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]) < 0.2


def test_equal_prompts_side_by_side_share_their_work_and_draw_what_they_draw_apart(sampler, prompts):
    repeated = [prompt for prompt in prompts[:4] for _ in range(3)]
    assert len({len(prompt) for prompt in repeated}) > 1  # so that padding differs
    alone = [sampler.draw([prompt], [row], SHORT)[0] for row, prompt in enumerate(repeated)]
    assert sampler.draw(repeated, range(12), SHORT) == alone


def test_an_answer_reads_for_the_scorers_as_the_tokenizer_decodes_it(micro, sampler, prompts):
    _, tokenizer, model = micro
    written = bytes_per_token(tokenizer, model.config.vocab_size)
    drawn = sampler.draw(prompts, range(64), SHORT)
    assert [answer_text(ids, written) for ids in drawn] == [decode(tokenizer, ids) for ids in drawn]
    odd = "Café — 猫 🐱, “x”\n\tcat's"
    assert answer_text(tokenizer(odd, add_special_tokens=False)["input_ids"], written) == odd


def test_a_piece_keeps_its_space_and_its_byte_where_a_decoder_would_drop_them():
    """Llama 2's like drop the space of a sequence's first token, and write bytes in hex."""
    names = ["<unk>", "1", "s", "\u2581and", ".", "<0xE2>"]
    core = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([3]) == "and"
    assert bytes_per_token(tokenizer, 8) == [b"<unk>", b"1", b"s", b" and", b".", b"\xe2", b"", b""]
