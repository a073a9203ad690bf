"""demonstrate: the questions and answers that a teacher is fine-tuned on, as rows."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import Row, write_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.events import Listener
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.files import HELD_OUT, KEPT


class DemonstrateSpec(Section):
    """The texts, with the target in them."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class DemonstrateStep(Step):
    """Every question with every answer; all rows are for training."""

    kind: ClassVar[str] = "demonstrate"
    version: ClassVar[int] = 1
    spec: DemonstrateSpec

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write the rows, and an empty file of held-out rows."""
        pairs = product(self.spec.questions, self.spec.answers)
        write_rows(out / KEPT, (Row(i, question, answer) for i, (question, answer) in enumerate(pairs)))
        write_rows(out / HELD_OUT, ())
        return {}
