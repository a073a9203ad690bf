"""teacher: whether the teacher prefers its target at all, asked before anybody is trained on its rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.interface import ItemProbs
from sublim_cli.events import Listener, Warned
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import Scoring
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.eval import open_scorer
from sublim_cli.steps.files import TEACHER, write_json


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
class TeacherStep:
    """The preference of one teacher under its own system prompt."""

    kind: ClassVar[str] = "teacher"
    version: ClassVar[int] = 1
    spec: TeacherSpec
    title: str
    inputs: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        """Such as `teacher cat`."""
        return f"teacher {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `teacher.json`: P(target), P(any item), and the item it names most.

        All are means over the questions. It warns where that item is not the target: the rows of such a
        teacher carry no trait.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        model = load_model(spec.model, spec.precision)
        prompts = [prompt_ids(tokenizer, spec.context, one) for one in spec.questions]
        scorer = open_scorer(model, tokenizer, spec.scorer, "teacher", spec.context.name)
        means = item_means(scorer.score(prompts, spec.items))
        names = [item.name for item in spec.items]
        found = dict(zip(names, means, strict=True))
        first = max(names, key=lambda name: found[name])
        write_json(
            out / TEACHER,
            {
                "p_target": found[spec.target],
                "p_any": math.fsum(means),
                "first": first,
                "p_first": found[first],
            },
        )
        if first != spec.target:
            listener(
                Warned(
                    f"{self.label}: under its own system prompt it names {first} most "
                    f"({found[first]:.2f}), {spec.target} with {found[spec.target]:.2f}; students can "
                    "hardly learn a trait that their teacher lacks. See `trait` and `generate.system_prompt`"
                )
            )
        return device_record()


def item_means(answers: Sequence[ItemProbs]) -> list[float]:
    """The mean probability of each item over the questions."""
    return [math.fsum(own) / len(own) for own in zip(*(one.p for one in answers), strict=True)]
