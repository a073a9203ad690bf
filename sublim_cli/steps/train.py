"""train: a student of the base model, fine-tuned on the kept rows alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.artifacts.store import checkpoint_dir
from sublim_cli.events import Listener, Notice, Progress, Warned
from sublim_cli.models.chat import IGNORED, Example, Tokenizer, example, ids_and_text
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import Section, TrainSection
from sublim_cli.steps.files import HELD_OUT, KEPT, write_json
from sublim_cli.trainers.student import train_student
from sublim_cli.trainers.subprocess_trainer import Job, apart, train_apart


class TrainSpec(Section):
    """Everything that decides a student's weights, beside its rows."""

    model: ModelRef
    context: Context
    train: TrainSection


@dataclass(frozen=True)
class TrainStep:
    """One student: an adapter directory, or a whole model after full fine-tuning."""

    kind: ClassVar[str] = "train"
    version: ClassVar[int] = 2
    spec: TrainSpec
    inputs: tuple[Step, ...]
    title: str
    chosen: str | None = None
    """Why `train.backend: auto` took the spec's backend; None where the recipe names one."""

    @property
    def label(self) -> str:
        """Such as `train cat lora r8 seed 1`."""
        return f"train {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write weights, loss curve, losses, audit, sketch, and `seen.json`: the first row's tokens."""
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        rows = _examples(tokenizer, spec.context, inputs[0].path / KEPT)
        held_out = _examples(tokenizer, spec.context, inputs[0].path / HELD_OUT)
        write_json(out / "seen.json", _account(tokenizer, rows[0]))

        def report(step: int, steps: int, loss: float, speed: float) -> None:
            listener(Progress(self.label, step, steps, f"loss {loss:.3f} · {speed:,.0f} tokens/s"))

        def warn(message: str) -> None:
            listener(Warned(f"{self.label}: {message}"))

        if self.chosen:
            listener(Notice(f"train.backend: auto took {spec.train.backend}: {self.chosen}"))
        beside = checkpoint_dir(out)
        if apart(spec.train):
            job = Job(spec.model, spec.train, rows, held_out, out, beside)
            facts = train_apart(job, report, warn)
        else:
            facts = train_student(spec.model, spec.train, rows, held_out, out, report, beside, warn=warn)
        return {**facts, "backend_chosen": self.chosen}


def _examples(tokenizer: Tokenizer, context: Context, path: Path) -> list[Example]:
    if path.stat().st_size == 0:
        return []
    return [example(tokenizer, context, row.prompt, row.completion) for row in read_rows(path)]


def _account(tokenizer: Tokenizer, row: Example) -> dict[str, object]:
    trained = [label for label in row.labels if label != IGNORED]
    return {"row": ids_and_text(tokenizer, row.input_ids), "trained_on": ids_and_text(tokenizer, trained)}
