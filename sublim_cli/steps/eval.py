"""eval: how likely a student, or the untouched base, names each item, in every context."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import ItemProbs
from sublim_cli.backends.parity import ModelSource, score_with_vllm
from sublim_cli.backends.sampled import SampledScorer, derived_seed
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.events import Listener, Notice, counted
from sublim_cli.models.chat import Tokenizer, ids_and_text, prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import Model, load_student, load_tokenizer
from sublim_cli.models.passes import continues_from_cache
from sublim_cli.models.reference import ModelRef
from sublim_cli.preference.score import ItemScore, QuestionScore, entropy
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring, Scoring
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.files import SCORES, SEEN, SPREADS, write_json


class EvalSpec(Section):
    """Everything that decides a student's scores, apart from its weights."""

    model: ModelRef
    contexts: tuple[Context, ...]
    questions: tuple[str, ...]
    items: tuple[Item, ...]
    scorer: Scoring
    precision: str
    quantize: str | None = None
    """The quantisation of the base under a student that was trained on a quantised one, else null."""


@dataclass(frozen=True)
class EvalStep(Step):
    """Scores of one student; without inputs, of the base model."""

    kind: ClassVar[str] = "eval"
    version: ClassVar[int] = 5
    spec: EvalSpec
    auto_reason: str | None = None
    """Why `eval.engine: auto` chose the spec's engine; None if the recipe names it or nothing is drawn."""

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `scores.parquet`, `questions.parquet` and `seen.json`.

        `scores.parquet` has a row for every context, question and item, `questions.parquet` one for every
        context and question; `seen.json` holds the first question's tokens in every context.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        if self.auto_reason and isinstance(spec.scorer, SampledScoring):
            listener(Notice(f"eval.engine: auto took {spec.scorer.engine}: {self.auto_reason}"))
        prompts = {
            context.name: [prompt_ids(tokenizer, context, question) for question in spec.questions]
            for context in spec.contexts
        }
        answers, parity = self._answers(prompts, inputs, listener)
        scores = [
            ItemScore(context, question, item.name, p, error, answer.uncovered, log_form, answer.samples)
            for context, context_answers in answers.items()
            for question, answer in enumerate(context_answers)
            for item, p, error, log_form in zip(
                spec.items,
                answer.p,
                answer.standard_error,
                answer.log_form or [None] * len(answer.p),
                strict=True,
            )
        ]
        questions = [
            QuestionScore(
                context, question, math.fsum(answer.p), entropy(answer.p), answer.uncovered, answer.nodes
            )
            for context, context_answers in answers.items()
            for question, answer in enumerate(context_answers)
        ]
        pq.write_table(pa.Table.from_pylist([vars(score) for score in scores]), out / SCORES)
        pq.write_table(pa.Table.from_pylist([vars(score) for score in questions]), out / SPREADS)
        write_json(out / SEEN, {name: ids_and_text(tokenizer, ids[0]) for name, ids in prompts.items()})
        return {**device_record(), "engine_chosen": self.auto_reason, "parity": parity}

    def _answers(
        self, prompts: Mapping[str, list[list[int]]], inputs: tuple[Artifact, ...], listener: Listener
    ) -> tuple[dict[str, list[ItemProbs]], Measurements | None]:
        """The answers in every context, and how they were checked if vLLM drew them."""
        spec, scorer = self.spec, self.spec.scorer
        weights = inputs[0].path if inputs else None
        student = inputs[0].digest if inputs else "base"
        report = counted(listener, self.label, sum(map(len, prompts.values())))
        if isinstance(scorer, SampledScoring) and scorer.engine == "vllm":
            return score_with_vllm(
                ModelSource(spec.model, spec.precision, weights),
                prompts,
                spec.items,
                {name: _with_derived_seed(scorer, student, name) for name in prompts},
                _with_derived_seed(scorer, student).sampling,
                report,
            )
        tokenizer = load_tokenizer(spec.model)
        model = load_student(spec.model, spec.precision, weights, spec.quantize)
        if isinstance(scorer, ExactScoring) and not continues_from_cache(model):
            listener(
                Notice(
                    f"{self.label}: this model does not keep keys and values for every token, so each "
                    "beginning of an answer is computed anew: the same scores, only slower"
                )
            )
        answers: dict[str, list[ItemProbs]] = {}
        for name, ids in prompts.items():
            same = next((other for other in answers if prompts[other] == ids), None)
            if same is not None and isinstance(scorer, ExactScoring):
                answers[name] = answers[same]
                report(name, len(ids))
            else:
                context_scorer = make_scorer(model, tokenizer, scorer, student, name)
                answers[name] = context_scorer.score(ids, spec.items, partial(report, name))
        return answers, None


def make_scorer(
    model: Model, tokenizer: Tokenizer, scoring: ExactScoring | SampledScoring, *seed_parts: str
) -> ExactScorer | SampledScorer:
    """The scorer that a recipe asks for.

    Args:
        seed_parts: what is scored (student, context); the noise of draws depends on it and the seed.
    """
    if isinstance(scoring, ExactScoring):
        seed = derived_seed(scoring.seed, *seed_parts)
        return ExactScorer(model, tokenizer, scoring.model_copy(update={"seed": seed}))
    return SampledScorer(TransformersSampler(model, tokenizer), _with_derived_seed(scoring, *seed_parts))


def _with_derived_seed(scoring: SampledScoring, *seed_parts: str) -> SampledScoring:
    seed = derived_seed(scoring.sampling.seed, *seed_parts)
    return scoring.model_copy(update={"sampling": scoring.sampling.model_copy(update={"seed": seed})})
