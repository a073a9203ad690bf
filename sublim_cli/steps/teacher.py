"""teacher: whether a teacher prefers its target at all, measured before a student is trained on its rows."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.events import Listener, Warned, counted
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring, Scoring
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.eval import make_scorer
from sublim_cli.steps.files import TEACHER, write_json

DRAWS = 16
"""Answers drawn to a question at most. A teacher's P(target) is a mean over questions and read to two digits;
with fifty questions even plain draws would give it a standard error below 0.02: sqrt(0.25 / 800)."""


def check_scoring(scoring: Scoring) -> Scoring:
    """The scorer of a study's evaluations, with fewer draws where it draws from a tree of answers."""
    if isinstance(scoring, ExactScoring):
        return scoring.model_copy(update={"draws": min(scoring.draws, DRAWS)})
    return scoring


class TeacherSpec(Section):
    """Everything that decides what a teacher answers."""

    model: ModelRef
    context: Context
    """The teacher's system prompt."""
    target: str
    questions: tuple[str, ...]
    items: tuple[Item, ...]
    scorer: Scoring
    precision: str


@dataclass(frozen=True)
class TeacherStep(Step):
    """The preference of one teacher under its own system prompt.

    Its input is the training of a fine-tuned teacher; a prompted one has none.
    """

    kind: ClassVar[str] = "teacher"
    version: ClassVar[int] = 2
    spec: TeacherSpec

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `teacher.json`: P(target), P(any item), and the most likely item with its probability.

        All are means over the questions. Warns if the most likely item is not the target: the rows of such a
        teacher carry no trait.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        model = load_student(spec.model, spec.precision, inputs[0].path if inputs else None)
        prompts = [prompt_ids(tokenizer, spec.context, question) for question in spec.questions]
        scorer = make_scorer(model, tokenizer, spec.scorer, "teacher", spec.context.name)
        report = partial(counted(listener, self.label, len(prompts)), spec.context.name)
        answers = scorer.score(prompts, spec.items, report)
        p = {
            item.name: math.fsum(answer.p[i] for answer in answers) / len(answers)
            for i, item in enumerate(spec.items)
        }
        first = max(p, key=lambda name: p[name])
        record = {
            "p_target": p[spec.target],
            "p_any": math.fsum(p.values()),
            "first": first,
            "p_first": p[first],
        }
        write_json(out / TEACHER, record)
        if first != spec.target:
            remedy = "generate.teacher" if inputs else "generate.system_prompt"
            listener(
                Warned(
                    f"{self.label}: under its own system prompt it names {first} most "
                    f"({p[first]:.2f}), {spec.target} with {p[spec.target]:.2f}; students can "
                    f"hardly learn a trait that their teacher lacks. See `trait` and `{remedy}`"
                )
            )
        return device_record()
