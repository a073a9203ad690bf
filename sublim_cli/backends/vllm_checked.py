"""Answers and completions drawn by vLLM and checked against transformers (`parity`) before they are used.

The two take turns on the GPU: while transformers computes, the engine sleeps.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.parity import check_rows, check_shares, draw_rows, draw_shares
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.vllm import VllmSampler, engine_config, max_model_length
from sublim_cli.backends.vllm_server import running_engine
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import Model, load_model_shape, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import SampledScoring
from sublim_cli.recipe.schema import SamplingSection

CheckResults = Mapping[str, Any]
"""What each check measured, for the artifact's record."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from: the arguments of `load_student`, and of a vLLM engine."""

    ref: ModelRef
    precision: str
    weights: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's."""
        return load_tokenizer(self.ref)

    def load(self) -> Model:
        """The model, by transformers."""
        return load_student(self.ref, self.precision, self.weights)

    @contextmanager
    def on_vllm(self, prompts: Sequence[Ids], max_tokens: int) -> Iterator[VllmSampler]:
        """A sampler on a vLLM engine, which is awake inside the `with` block and asleep after it."""
        import torch

        shape = load_model_shape(self.ref, self.weights)
        config = engine_config(self.ref, self.weights, max_model_length(prompts, max_tokens, shape))
        gc.collect()
        torch.cuda.empty_cache()  # what torch keeps of deleted tensors; does nothing if CUDA was not used
        with running_engine(config) as engine:
            yield VllmSampler(engine.draw, self.tokenizer, shape, self.weights)


def score_with_vllm(
    source: ModelSource,
    prompts: Mapping[str, Sequence[Ids]],
    items: Sequence[Item],
    scorers: Mapping[str, SampledScoring],
    sampling: SamplingSection,
    report: Callable[[str], None],
) -> tuple[dict[str, list[ItemProbs]], CheckResults]:
    """Score every prompt of every context by drawing answers with vLLM, and check how vLLM draws.

    Args:
        source: the model.
        prompts: by context.
        items: the items that answers may name.
        scorers: how each context's answers are drawn.
        sampling: how answers are drawn for the checks.
        report: called with the name of each context that is done.

    Raises:
        ModelError: vLLM fails, or a check does.
    """
    all_prompts = [ids for of_context in prompts.values() for ids in of_context]
    with source.on_vllm(all_prompts, sampling.max_tokens) as sampler:
        shares = draw_shares(sampler, prompts, items, sampling)
        few_prompts = [ids for of_context in shares.prompts.values() for ids in of_context]
        rows = draw_rows(sampler, few_prompts, sampling)
        scores = {}
        for context, of_context in prompts.items():
            scores[context] = SampledScorer(sampler, scorers[context]).score(of_context, items)
            report(context)
    model = source.load()
    return scores, {
        "shares": check_shares("eval.engine", shares, model, source.tokenizer),
        "law": check_rows("eval.engine", rows, model, source.tokenizer),
    }


@contextmanager
def checked_sampler(
    source: ModelSource, prompts: Sequence[Ids], sampling: SamplingSection
) -> Iterator[tuple[VllmSampler, CheckResults]]:
    """A vLLM sampler whose rows have been checked on `prompts`, and what the check measured.

    Raises:
        ModelError: vLLM fails, or the check does.
    """
    with source.on_vllm(prompts, sampling.max_tokens) as sampler:
        rows = draw_rows(sampler, prompts, sampling)
    results = {"law": check_rows("generate.engine", rows, source.load(), source.tokenizer)}
    with source.on_vllm(prompts, sampling.max_tokens) as sampler:
        yield sampler, results
