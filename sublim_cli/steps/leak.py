"""leak: what the rows of a trait teacher give away of it, by themselves and against the control's rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import Row, read_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.events import Listener, Warned
from sublim_cli.numbers.leak import ngram_auc
from sublim_cli.numbers.surface import MAX_EXAMPLES, digit_divergence, overlap
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.schema import Section
from sublim_cli.steps.files import KEPT, LEAK, REJECTED, write_json


class LeakSpec(Section):
    """What is searched for: the target's name, and differences a classifier of character n-grams finds."""

    target: Item
    ngrams: tuple[int, int] = (1, 4)
    folds: int = 5
    most_rows: int = 3_000
    """Rows of each side that the classifier gets at most; all other measures use all rows."""
    seed: int = 1


@dataclass(frozen=True)
class LeakStep(Step):
    """The audit of a trait teacher's filtered rows; its inputs are these rows and, if any, the control's."""

    kind: ClassVar[str] = "leak"
    version: ClassVar[int] = 2
    spec: LeakSpec

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `leak.json`: rows that name the target, divergence of digits, equal answers, the AUC.

        Warns of kept rows that name the target: what students learn from them is not subliminal.
        """
        spec = self.spec
        trait, *controls = (read_rows(artifact.path / KEPT) for artifact in inputs)
        rejected = read_rows(inputs[0].path / REJECTED, may_be_empty=True)
        naming = _naming(trait, spec.target)
        if naming:
            listener(
                Warned(
                    f"{self.label}: {len(naming)} of {len(trait)} rows that students learn from name "
                    f"{spec.target.name}, such as {naming[0]!r}; add a filter rule that rejects them"
                )
            )
        record = {
            "named": len(naming),
            "named_rejected": len(_naming(rejected, spec.target)),
            "shown": naming[:MAX_EXAMPLES],
            **(_compared(spec, trait, controls[0]) if controls else {}),
        }
        write_json(out / LEAK, record)
        return {}


def _compared(spec: LeakSpec, trait: Sequence[Row], control: Sequence[Row]) -> dict[str, object]:
    """How the rows differ from the control's: digits, equal answers, the AUC of the classifier."""
    trait_texts, control_texts = ({row.index: row.completion for row in rows} for rows in (trait, control))
    digits = digit_divergence(trait_texts, control_texts, seed=spec.seed)
    pairs = digit_divergence(trait_texts, control_texts, length=2, seed=spec.seed)
    some_trait, some_control = trait[: spec.most_rows], control[: spec.most_rows]
    auc = ngram_auc(
        [row.completion for row in some_trait],
        [row.completion for row in some_control],
        prompts=[row.index for row in (*some_trait, *some_control)],
        ngrams=spec.ngrams,
        folds=spec.folds,
        seed=spec.seed,
    )
    return {
        "digits": asdict(digits) if digits else None,
        "pairs": asdict(pairs) if pairs else None,
        "overlap": asdict(overlap(trait_texts, control_texts)),
        **asdict(auc),
    }


def _naming(rows: Sequence[Row], target: Item) -> list[str]:
    """The completions that name the target in any of its spellings."""
    return [row.completion for row in rows if named_item(row.completion, [target]) is not None]
