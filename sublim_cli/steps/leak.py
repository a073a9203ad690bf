"""leak: what of the trait can be seen in a teacher's rows, by themselves and beside the control's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import Row, read_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.events import Listener, Warned
from sublim_cli.numbers.leak import ngram_auc
from sublim_cli.numbers.surface import MAX_EXAMPLES, Divergence, digit_divergence, overlap, pair_divergence
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.files import KEPT, LEAK, REJECTED, write_json


class LeakSpec(Section):
    """What is looked for: the target in words, and what a classifier of character n-grams finds."""

    target: Item
    ngrams: tuple[int, int] = (1, 4)
    folds: int = 5
    most_rows: int = 3_000
    """Rows of each side that the classifier is given at most; everything else looks at all."""
    seed: int = 1


@dataclass(frozen=True)
class LeakStep:
    """The audit of a trait teacher's filtered rows; its inputs are they and the control's."""

    kind: ClassVar[str] = "leak"
    version: ClassVar[int] = 2
    spec: LeakSpec
    inputs: tuple[Step, ...]
    title: str

    @property
    def label(self) -> str:
        """Such as `leak cat data seed 1`."""
        return f"leak {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `leak.json`: rows that name the target, how digits differ, equal answers, the AUC.

        Kept rows that name the target are warned of: what students learn from them is not subliminal.
        """
        spec = self.spec
        trait, control = (read_rows(one.path / KEPT) for one in inputs)
        said = spoken(trait, spec.target)
        if said:
            listener(
                Warned(
                    f"{self.label}: {len(said)} of {len(trait)} rows that students learn from name "
                    f"{spec.target.name}, such as {said[0]!r}; add a filter rule that rejects them"
                )
            )
        of_trait, of_control = by_prompt(trait), by_prompt(control)
        found = {
            "named": len(said),
            "named_rejected": len(spoken(_rejected(inputs[0].path), spec.target)),
            "shown": said[:MAX_EXAMPLES],
            "digits": _plain(digit_divergence(of_trait, of_control, spec.seed)),
            "pairs": _plain(pair_divergence(of_trait, of_control, spec.seed)),
            "overlap": asdict(overlap(of_trait, of_control)),
            **self._separation(trait, control),
        }
        write_json(out / LEAK, found)
        return {}

    def _separation(self, trait: Sequence[Row], control: Sequence[Row]) -> dict[str, object]:
        spec = self.spec
        trait, control = trait[: spec.most_rows], control[: spec.most_rows]
        found = ngram_auc(
            [row.completion for row in trait],
            [row.completion for row in control],
            prompts=[row.index for row in (*trait, *control)],
            ngrams=spec.ngrams,
            folds=spec.folds,
            seed=spec.seed,
        )
        return asdict(found)


def spoken(rows: Sequence[Row], target: Item) -> list[str]:
    """The completions that name the target in any of its spellings."""
    return [row.completion for row in rows if named_item(row.completion, [target]) is not None]


def by_prompt(rows: Sequence[Row]) -> dict[int, str]:
    """Completions by the number of the prompt they answer."""
    return {row.index: row.completion for row in rows}


def _plain(found: Divergence | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def _rejected(path: Path) -> list[Row]:
    """The rows the filter took out; a file without any is empty."""
    file = path / REJECTED
    return read_rows(file) if file.stat().st_size else []
