"""Where a batch does not fit into memory, what is drawn and scored is the same in smaller ones."""

import gc
import weakref

import pytest
import torch

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import BATCH_MEMORY, GIB, token_bytes
from sublim_cli.models.chat import example, prompt_ids
from sublim_cli.models.gate import Gate, gated, masks_by_prompt
from sublim_cli.models.load import load_model
from sublim_cli.models.patch import Patch, patched
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring
from sublim_cli.recipe.schema import AnswerSampling, SamplingSection, TrainSection
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.sft import number_loss

DEFAULT = Context(name="default", kind="default")
ITEMS = load_items("animal").items[:5]
QUESTIONS = load_questions("favourite_animal").questions[:6]


@pytest.fixture(scope="module")
def prompts(micro):
    return [prompt_ids(micro[1], DEFAULT, question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def student(micro):
    """The embedded model with an adapter that was moved at random; the base is restored afterwards."""
    section = TrainSection(backend="plain", precision="fp32", learning_rate=1e-3, rank=2)
    model = add_method(micro[2], section).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    yield model
    model.unload()


class Card:
    """Makes a model run out of memory in passes of more than `rows` rows, and remembers all passes."""

    def __init__(self, model, rows):
        self.rows, self.passes = rows, []
        self.hook = model.get_input_embeddings().register_forward_pre_hook(self.watch)

    def watch(self, module, args):
        self.passes.append(len(args[0]))
        if len(args[0]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.60 GiB.")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


def sampled(model, tokenizer, prompts):
    sampling = SamplingSection(max_tokens=6, seed=3)
    return TransformersSampler(model, tokenizer).draw(prompts, range(len(prompts)), sampling)


def shares(model, tokenizer, prompts):
    settings = SampledScoring(samples=3, sampling=AnswerSampling(max_tokens=4, seed=2))
    return SampledScorer(TransformersSampler(model, tokenizer), settings).score(prompts, ITEMS)


def exact(model, tokenizer, prompts, draws=0):
    answers = ExactScorer(model, tokenizer, ExactScoring(nodes=20, draws=draws)).score(prompts, ITEMS)
    return [torch.tensor([answer.uncovered, *answer.p]) for answer in answers]


def exact_with_draws(model, tokenizer, prompts):
    return exact(model, tokenizer, prompts, draws=4)


def gate(model, tokenizer, prompts):
    masks = masks_by_prompt(prompts, [[0.0] + [1.0] * (len(prompt) - 1) for prompt in prompts])
    with gated(model, Gate(masks, decoding="off")) as switched:
        return exact(switched, tokenizer, prompts)


def patch(model, tokenizer, prompts):
    masks = masks_by_prompt(prompts, [[1.0] * len(prompt) for prompt in prompts])
    with patched(model, Patch(masks, kinds=frozenset({"mlp"}), decoding="on")) as switched:
        return exact(switched, tokenizer, prompts)


def held_out(model, tokenizer, prompts):
    rows = [
        example(tokenizer, DEFAULT, question, "1, 2, 3"[: 1 + i % 7]) for i, question in enumerate(QUESTIONS)
    ]
    return [torch.tensor(number_loss(model, rows, tokenizer.pad_token_id))]


@pytest.mark.parametrize("measure", [sampled, shares, exact, exact_with_draws, gate, patch, held_out])
def test_a_batch_that_runs_out_of_memory_is_halved_and_the_result_is_the_same(
    measure, micro, student, prompts
):
    expected = measure(student, micro[1], prompts)
    rows = 20 if measure is exact_with_draws else 3  # the draws for one question share their passes
    with Card(student, rows) as card:
        computed = measure(student, micro[1], prompts)
    assert max(card.passes) > rows  # it did run out
    if measure in (sampled, shares):
        assert computed == expected
    else:
        for got, wanted in zip(computed, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", [sampled, shares, exact, gate, patch, held_out])
def test_a_single_row_that_does_not_fit_is_a_sentence(measure, micro, student, prompts):
    with Card(student, 0), pytest.raises(ModelError, match="memory runs out with a single"):
        measure(student, micro[1], prompts)


@pytest.mark.parametrize("measure", [sampled, exact, patch, held_out])
def test_batches_are_no_larger_than_the_budget(measure, micro, student, prompts, monkeypatch):
    row = token_bytes(student.config, 4).row(max(map(len, prompts)))  # less than a row of each measurement
    monkeypatch.setenv(BATCH_MEMORY, str(4.5 * row / GIB))
    with Card(student, 100) as card:
        measure(student, micro[1], prompts)
    assert 0 < max(card.passes) <= 4


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_model_is_gone_after_its_last_use(method, micro, prompts):
    section = TrainSection(method=method, backend="plain", precision="fp32", learning_rate=1e-3, rank=2)
    model = add_method(load_model(micro[0], "fp32"), section).eval()
    gone = weakref.ref(model)
    gc.collect()  # PEFT leaves cycles of its own behind
    gc.disable()
    try:
        sampled(model, micro[1], prompts[:2])
        exact(model, micro[1], prompts[:2])
        del model
        assert gone() is None
    finally:
        gc.enable()
