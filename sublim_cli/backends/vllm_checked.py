"""Answers and completions drawn by vLLM, and what checked them against transformers before they are used.

The two take turns on the card: while transformers computes, the engine sleeps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.parity import check_rows, check_shares, draw_rows, draw_shares, select_questions
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.vllm import VllmSampler, engine_config, max_model_length
from sublim_cli.backends.vllm_server import running_engine
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.device import free_gpu_memory
from sublim_cli.models.load import load_model_shape, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import SampledScoring
from sublim_cli.recipe.schema import SamplingSection

Found = Mapping[str, Any]
"""What a check measured, for the record."""


@dataclass(frozen=True)
class ModelSource:
    """A model that answers: see `load_student`."""

    ref: ModelRef
    precision: str
    weights: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's."""
        return load_tokenizer(self.ref)

    @contextmanager
    def on_vllm(self, prompts: Sequence[Ids], max_tokens: int) -> Iterator[VllmSampler]:
        """A sampler on an engine that is awake meanwhile."""
        shape = load_model_shape(self.ref, self.weights)
        held = engine_config(self.ref, self.weights, max_model_length(prompts, max_tokens, shape))
        free_gpu_memory()
        with running_engine(held) as engine:
            yield VllmSampler(engine, self.tokenizer, shape, self.weights)


def score_with_vllm(
    who: ModelSource,
    prompts: Mapping[str, Sequence[Ids]],
    items: Sequence[Item],
    scorers: Mapping[str, SampledScoring],
    sampling: SamplingSection,
    report: Callable[[str], None],
) -> tuple[dict[str, list[ItemProbs]], Found]:
    """An `ItemProbs` to each prompt of every context, and what the checks found.

    Args:
        who: the model.
        prompts: by context.
        items: what answers may name.
        scorers: how each context's answers are drawn.
        sampling: how they are drawn in the checks; its seed is the model's own.
        report: told of every context that is done.

    Raises:
        ModelError: vLLM fails, or a check does.
    """
    few = select_questions(prompts, items)
    questions = [one for own in few.prompts.values() for one in own]
    with who.on_vllm([one for own in prompts.values() for one in own], sampling.max_tokens) as sampler:
        shares = draw_shares(sampler, few, sampling)
        rows = draw_rows(sampler, questions, sampling)
        answers = {}
        for name, own in prompts.items():
            answers[name] = SampledScorer(sampler, scorers[name]).score(own, items)
            report(name)
    model = load_student(who.ref, who.precision, who.weights)
    return answers, {
        "shares": check_shares("eval.engine", shares, model, who.tokenizer),
        "law": check_rows("eval.engine", rows, model, who.tokenizer),
    }


@contextmanager
def checked_sampler(
    who: ModelSource, prompts: Sequence[Ids], sampling: SamplingSection
) -> Iterator[tuple[VllmSampler, Found]]:
    """A sampler whose law of rows has been checked on `prompts`, and what the check found.

    Raises:
        ModelError: vLLM fails, or the check does.
    """
    with who.on_vllm(prompts, sampling.max_tokens) as sampler:
        rows = draw_rows(sampler, prompts, sampling)
    model = load_student(who.ref, who.precision, who.weights)
    law = check_rows("generate.engine", rows, model, who.tokenizer)
    with who.on_vllm(prompts, sampling.max_tokens) as sampler:
        yield sampler, {"law": law}
