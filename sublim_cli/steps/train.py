"""train: a student of the base model, fine-tuned on the kept rows alone."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.artifacts.store import checkpoint_dir
from sublim_cli.events import Listener, Notice, Progress, Warned
from sublim_cli.models.chat import IGNORED, example, ids_and_text, spells
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import Section, TrainSection
from sublim_cli.steps.demonstrate import DemonstrateStep
from sublim_cli.steps.files import HELD_OUT, KEPT, SEEN, write_json
from sublim_cli.trainers.student import TrainingJob, train_student
from sublim_cli.trainers.subprocess_trainer import needs_subprocess, train_in_subprocess


class TrainSpec(Section):
    """Everything that decides a student's weights, apart from its rows."""

    model: ModelRef
    context: Context
    train: TrainSection


@dataclass(frozen=True)
class TrainStep(Step):
    """One student: an adapter directory, or a complete model after full fine-tuning."""

    kind: ClassVar[str] = "train"
    version: ClassVar[int] = 3
    spec: TrainSpec
    auto_reason: str | None = None
    """Why `train.backend: auto` chose the spec's backend; None if the recipe names one."""

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write weights, loss curve, losses, audit, and `seen.json`: the first row's tokens."""
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        files = [read_rows(inputs[0].path / file, may_be_empty=True) for file in (KEPT, HELD_OUT)]
        rows, held_out = (
            [example(tokenizer, spec.context, row.prompt, row.completion, row.completion_ids) for row in file]
            for file in files
        )
        from_text = sum(
            row.completion_ids is None or not spells(tokenizer, row.completion_ids, row.completion)
            for row in chain.from_iterable(files)
        )
        if from_text and not isinstance(self.inputs[0], DemonstrateStep):  # which no model has drawn
            total = len(rows) + len(held_out)
            message = "token ids are missing, or are another text to this tokenizer"
            listener(Notice(f"{self.label}: {from_text} of {total} rows are read as text: their {message}"))
        trained = [label for label in rows[0].labels if label != IGNORED]
        tokens = {"row": rows[0].input_ids, "trained_on": trained}
        write_json(out / SEEN, {name: ids_and_text(tokenizer, ids) for name, ids in tokens.items()})

        def report(step: int, steps: int, loss: float, speed: float) -> None:
            listener(Progress(self.label, step, steps, f"loss {loss:.3f} · {speed:,.0f} tokens/s"))

        def warn(message: str) -> None:
            listener(Warned(f"{self.label}: {message}"))

        if self.auto_reason:
            listener(Notice(f"train.backend: auto took {spec.train.backend}: {self.auto_reason}"))
        job = TrainingJob(spec.model, spec.train, rows, held_out, out, checkpoint_dir(out))
        train = train_in_subprocess if needs_subprocess(spec.train) else train_student
        measured = train(job, report, warn)
        return {**measured, "backend_chosen": self.auto_reason}
