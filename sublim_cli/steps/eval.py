"""eval: how likely a student, or the untouched base, names each item, in every context."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import Artifact, Facts, Step
from sublim_cli.backends.interface import Scorer
from sublim_cli.backends.transformers import TransformersScorer
from sublim_cli.events import Listener, Progress
from sublim_cli.models.chat import Tokenizer, prompt_ids, seen
from sublim_cli.models.device import facts
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.preference.forms import surface_forms
from sublim_cli.preference.questions import Item
from sublim_cli.preference.score import Score
from sublim_cli.preference.trie import Node, build_trie
from sublim_cli.recipe.base import Section
from sublim_cli.recipe.contexts import Context
from sublim_cli.steps.files import SCORES, write_json


class Ask(Section):
    """Everything that decides a student's scores, beside its weights."""

    model: ModelRef
    contexts: tuple[Context, ...]
    questions: tuple[str, ...]
    items: tuple[Item, ...]
    scorer: str
    precision: str
    quantize: str | None = None
    """How the base is held where the student was trained on a quantised one, else null."""


@dataclass(frozen=True)
class Eval:
    """Scores of one student; without inputs, of the base model."""

    kind: ClassVar[str] = "eval"
    version: ClassVar[int] = 1
    section: Ask
    title: str
    inputs: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        """Such as `eval cat lora r8 seed 1`."""
        return f"eval {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Facts:
        """Write `scores.parquet`, a row for every context, question and item, and `seen.json`."""
        section = self.section
        tokenizer = load_tokenizer(section.model)
        weights = inputs[0].path if inputs else None
        model = load_student(section.model, section.precision, weights, section.quantize)
        scorer = TransformersScorer(model, tokenizer)
        forms = _forms(tokenizer, section.items)
        scores: list[Score] = []
        account: dict[str, Any] = {}
        for done, context in enumerate(section.contexts, start=1):
            prompts = [prompt_ids(tokenizer, context, one) for one in section.questions]
            account[context.name] = seen(tokenizer, prompts[0])
            scores += _scores(scorer, context.name, prompts, forms, section.items)
            listener(Progress(self.label, done, len(section.contexts), context.name))
        pq.write_table(pa.Table.from_pylist([vars(one) for one in scores]), out / SCORES)
        write_json(out / "seen.json", account)
        return facts()


def _forms(tokenizer: Tokenizer, items: Sequence[Item]) -> Node:
    """The trie of every item's surface forms in this tokenizer."""
    return build_trie(
        (index, tokenizer(form, add_special_tokens=False)["input_ids"])
        for index, item in enumerate(items)
        for form in surface_forms(item)
    )


def _scores(
    scorer: Scorer, context: str, prompts: list[list[int]], forms: Node, items: Sequence[Item]
) -> list[Score]:
    answers = scorer.score(prompts, forms, len(items))
    return [
        Score(context, question, item.name, p, answer.unresolved)
        for question, answer in enumerate(answers)
        for item, p in zip(items, answer.p, strict=True)
    ]
