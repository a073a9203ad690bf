"""eval: how likely a student, or the untouched base, names each item, in every context."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import ItemProbs
from sublim_cli.backends.sampled import SampledScorer, derived_seed
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.backends.vllm_checked import ModelSource, score_with_vllm
from sublim_cli.events import Listener, Notice, Progress
from sublim_cli.models.chat import Tokenizer, ids_and_text, prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import Model, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.preference.score import ItemScore, QuestionScore, entropy
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring, Scoring
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.files import SCORES, SPREADS, write_json


class EvalSpec(Section):
    """Everything that decides a student's scores, beside its weights."""

    model: ModelRef
    contexts: tuple[Context, ...]
    questions: tuple[str, ...]
    items: tuple[Item, ...]
    scorer: Scoring
    precision: str
    quantize: str | None = None
    """How the base is held where the student was trained on a quantised one, else null."""


@dataclass(frozen=True)
class EvalStep:
    """Scores of one student; without inputs, of the base model."""

    kind: ClassVar[str] = "eval"
    version: ClassVar[int] = 3
    spec: EvalSpec
    title: str
    inputs: tuple[Step, ...] = ()
    chosen: str | None = None
    """Why `eval.engine: auto` took the spec's engine; None where nothing is drawn or it is named."""

    @property
    def label(self) -> str:
        """Such as `eval cat lora r8 seed 1`."""
        return f"eval {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write the scores of items, those of questions, and what was asked.

        `scores.parquet` has a row for every context, question and item, `questions.parquet` one for every
        context and question; `seen.json` holds the first question's tokens in every context.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        if self.chosen and isinstance(spec.scorer, SampledScoring):
            listener(Notice(f"eval.engine: auto took {spec.scorer.engine}: {self.chosen}"))
        prompts = {
            context.name: [prompt_ids(tokenizer, context, one) for one in spec.questions]
            for context in spec.contexts
        }
        answers, parity = self._answers(prompts, inputs, listener)
        scores = [one for name, own in answers.items() for one in _scores(name, own, spec.items)]
        spreads = [one for name, own in answers.items() for one in _spreads(name, own)]
        account = {name: ids_and_text(tokenizer, own[0]) for name, own in prompts.items()}
        _write(scores, out / SCORES)
        _write(spreads, out / SPREADS)
        write_json(out / "seen.json", account)
        return {**device_record(), "engine_chosen": self.chosen, "parity": parity}

    def _answers(
        self, prompts: Mapping[str, list[list[int]]], inputs: tuple[Artifact, ...], listener: Listener
    ) -> tuple[dict[str, list[ItemProbs]], Measurements | None]:
        """The answers in every context, and what checked them where vLLM drew them."""
        spec, done = self.spec, count(1)
        weights = inputs[0].path if inputs else None
        who = inputs[0].digest if inputs else "base"

        def report(context: str) -> None:
            listener(Progress(self.label, next(done), len(prompts), context))

        scorer = spec.scorer
        if isinstance(scorer, SampledScoring) and scorer.engine == "vllm":
            scorers = {name: _of(scorer, who, name) for name in prompts}
            student = ModelSource(spec.model, spec.precision, weights)
            return score_with_vllm(student, prompts, spec.items, scorers, _of(scorer, who).sampling, report)
        tokenizer = load_tokenizer(spec.model)
        model = load_student(spec.model, spec.precision, weights, spec.quantize)
        answers = {}
        for name, own in prompts.items():
            answers[name] = open_scorer(model, tokenizer, scorer, who, name).score(own, spec.items)
            report(name)
        return answers, None


def open_scorer(
    model: Model, tokenizer: Tokenizer, scoring: ExactScoring | SampledScoring, *what: str
) -> ExactScorer | SampledScorer:
    """The scorer that a recipe asks for; `what` is scored decides a sampled one's noise beside its seed."""
    if isinstance(scoring, ExactScoring):
        return ExactScorer(model, tokenizer, scoring)
    return SampledScorer(TransformersSampler(model, tokenizer), _of(scoring, *what))


def _of(scoring: SampledScoring, *what: str) -> SampledScoring:
    """The same with noise of its own."""
    seed = derived_seed(scoring.sampling.seed, *what)
    return scoring.model_copy(update={"sampling": scoring.sampling.model_copy(update={"seed": seed})})


def _scores(context: str, answers: Sequence[ItemProbs], items: Sequence[Item]) -> list[ItemScore]:
    return [
        ItemScore(
            context,
            question,
            item.name,
            p=answer.p[place],
            uncovered=answer.uncovered,
            log_form=answer.log_form[place] if answer.log_form else None,
            samples=answer.samples,
        )
        for question, answer in enumerate(answers)
        for place, item in enumerate(items)
    ]


def _spreads(context: str, answers: Sequence[ItemProbs]) -> list[QuestionScore]:
    return [
        QuestionScore(context, question, math.fsum(one.p), entropy(one.p), one.uncovered, one.nodes)
        for question, one in enumerate(answers)
    ]


def _write(rows: Sequence[ItemScore] | Sequence[QuestionScore], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([vars(one) for one in rows]), path)
