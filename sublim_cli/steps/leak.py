"""leak: whether a plain classifier can tell the trait teacher's rows from the control's."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.step import Artifact, Facts, Step
from sublim_cli.events import Listener
from sublim_cli.numbers.leak import ngram_auc
from sublim_cli.recipe.base import Section
from sublim_cli.steps.files import KEPT, LEAK, write_json


class Classify(Section):
    """The classifier: character n-grams of these lengths, folds, rows of each side at most."""

    ngrams: tuple[int, int] = (1, 4)
    folds: int = 5
    most_rows: int = 3_000
    seed: int = 1


@dataclass(frozen=True)
class Leak:
    """The cross-validated AUC between two filtered data sets."""

    kind: ClassVar[str] = "leak"
    version: ClassVar[int] = 1
    section: Classify
    inputs: tuple[Step, ...]
    title: str

    @property
    def label(self) -> str:
        """Such as `leak cat data seed 1`."""
        return f"leak {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Facts:
        """Write `leak.json`: AUC, its 95 % interval and the number of rows."""
        section = self.section
        trait, control = (read_rows(one.path / KEPT)[: section.most_rows] for one in inputs)
        found = ngram_auc(
            [row.completion for row in trait],
            [row.completion for row in control],
            prompts=[row.index for row in (*trait, *control)],
            ngrams=section.ngrams,
            folds=section.folds,
            seed=section.seed,
        )
        write_json(out / LEAK, asdict(found))
        return {}
