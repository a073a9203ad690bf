"""locate: how likely a student names each item while a gate or a patch replaces a part of it by its base.

Each part is an artifact of its own, so adding a part to a finished study leaves the other artifacts valid.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.sampled import derived_seed
from sublim_cli.events import Listener, Progress
from sublim_cli.models import gate, patch
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.device import device_record
from sublim_cli.models.load import Model, load_model, load_student, load_tokenizer, meta_model
from sublim_cli.models.positions import check_positions, is_only_set, named_mask, random_mask_like, set_text
from sublim_cli.models.token_roles import render_with_roles
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import ExactScoring
from sublim_cli.recipe.schema import GateSection, PatchSection, PositionSet, TrainSection
from sublim_cli.steps.architecture import check_architectures
from sublim_cli.steps.eval import EvalSpec
from sublim_cli.steps.files import LOCATED
from sublim_cli.steps.train import TrainStep
from sublim_cli.trainers.methods import changed_modules

Part = GateSection | PatchSection

ALL_TOKENS, NO_TOKENS = "all", "none"
"""How tables name the complete student and its base, which are scored for comparison with the parts."""

_SCHEMA = pa.schema(
    {
        "context": pa.string(),
        "set": pa.string(),
        "control": pa.int64(),
        "question": pa.int64(),
        "item": pa.string(),
        "p": pa.float64(),
        "standard_error": pa.float64(),
        "uncovered": pa.float64(),
        "samples": pa.int64(),
        "tokens": pa.int64(),
        "prompt_tokens": pa.int64(),
    }
)


class LocateSpec(EvalSpec):
    """Everything that decides the scores of a part of a student, apart from the student's weights."""

    scorer: ExactScoring
    training: Context
    """`shared_only` and `no_shared` compare a prompt's tokens with those of this context."""
    part: GateSection | PatchSection | None = None
    """As `normalise_part` returns it; null scores the complete student and its base, for comparison."""
    controls: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LocateStep(Step):
    """Scores of a part of one student, and of random token sets of equal size."""

    kind: ClassVar[str] = "locate"
    version: ClassVar[int] = 3
    spec: LocateSpec
    inputs: tuple[TrainStep, ...] = ()

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `located.parquet`: a row for every context, set of tokens, question and item.

        Its columns are those of `scores.parquet` that apply, and `set` (the part's name, or `all` and
        `none`), `control` (the random set's number from 1, null for the named set), `tokens` (the size of the
        set in this question's prompt) and `prompt_tokens`.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        model = load_student(spec.model, spec.precision, inputs[0].path, spec.quantize)
        is_adapter = hasattr(model, "peft_config")  # and so contains the base
        base = None if is_adapter else load_model(spec.model, spec.precision, spec.quantize)
        seed = derived_seed(spec.scorer.seed, inputs[0].digest)
        scorer = ExactScorer(model, tokenizer, spec.scorer.model_copy(update={"seed": seed}))
        token_sets = list(_token_sets(spec, tokenizer, inputs[0].digest))
        rows: list[dict[str, Any]] = []
        for done, token_set in enumerate(token_sets, start=1):
            with _switched(model, base, spec.part, token_set):
                answers = scorer.score(token_set.prompts, spec.items)
            rows += [
                {
                    "context": token_set.context,
                    "set": token_set.name,
                    "control": token_set.control,
                    "question": question,
                    "item": item.name,
                    "p": p,
                    "standard_error": error,
                    "uncovered": answer.uncovered,
                    "samples": answer.samples,
                    "tokens": sum(mask),
                    "prompt_tokens": len(mask),
                }
                for question, (answer, mask) in enumerate(zip(answers, token_set.masks, strict=True))
                for item, p, error in zip(spec.items, answer.p, answer.standard_error, strict=True)
            ]
            random_set = "" if token_set.control is None else f", random set {token_set.control}"
            listener(Progress(self.label, done, len(token_sets), f"{token_set.context}{random_set}"))
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), out / LOCATED)
        return device_record()


@dataclass(frozen=True)
class _TokenSet:
    """A set of tokens in the prompts of all questions in one context."""

    context: str
    prompts: Sequence[list[int]]
    name: str
    control: int | None
    """The number of a random set; None for the named set."""
    masks: Sequence[Sequence[bool]]
    """For each prompt, which of its tokens are in the set."""


def _token_sets(spec: LocateSpec, tokenizer: Tokenizer, student: str) -> Iterator[_TokenSet]:
    """For each context the named set, then the random ones; nothing for a context without such a token."""
    training = render_with_roles(tokenizer, spec.training, spec.questions[0])
    for context in spec.contexts:
        prompts = [render_with_roles(tokenizer, context, question) for question in spec.questions]
        ids = [prompt.ids for prompt in prompts]
        if spec.part is None:
            yield _TokenSet(context.name, ids, ALL_TOKENS, None, [[True] * len(prompt) for prompt in ids])
            yield _TokenSet(context.name, ids, NO_TOKENS, None, [[False] * len(prompt) for prompt in ids])
            continue
        masks = [named_mask(spec.part.positions, prompt, training) for prompt in prompts]
        if not any(map(any, masks)):
            continue
        yield _TokenSet(context.name, ids, part_name(spec.part), None, masks)
        for control in range(1, spec.controls + 1):
            # Random sets differ between students, so that the spread between runs includes their choice.
            seed = derived_seed(spec.seed, student, str(control))
            random_masks = [random_mask_like(mask, seed, i).tolist() for i, mask in enumerate(masks)]
            yield _TokenSet(context.name, ids, part_name(spec.part), control, random_masks)


def _switched(
    model: Model, base: Model | None, part: Part | None, token_set: _TokenSet
) -> AbstractContextManager[Model]:
    """A context: the student acts at the set's tokens, the base at the others; reversed for `no_X`."""
    student_inside = part is None or is_only_set(part.positions)
    student_on = [[in_set == student_inside for in_set in mask] for mask in token_set.masks]
    masks = gate.masks_by_prompt(token_set.prompts, student_on)
    if part is None:
        decoding: gate.Policy = "on" if token_set.name == ALL_TOKENS else "off"
        return gate.gated(model, gate.Gate(masks, decoding), base)
    layers = frozenset(part.layers) if part.layers is not None else None
    decoding = "on" if part.decoding == "on" else "off"
    if isinstance(part, PatchSection):
        return patch.patched(model, patch.Patch(masks, frozenset(part.kinds), decoding, layers), base)
    modules = frozenset(part.modules) if part.modules is not None else None
    elsewhere: gate.Policy = "off" if student_inside else "on"
    return gate.gated(model, gate.Gate(masks, decoding, modules, layers, elsewhere), base)


def normalise_part(entry: PositionSet | GateSection | PatchSection) -> Part:
    """A recipe's entry in full: `decoding` is on or off, layers and names are sorted and unique."""
    part = entry if isinstance(entry, GateSection | PatchSection) else GateSection(positions=entry)
    names = "modules" if isinstance(part, GateSection) else "kinds"
    changes: dict[str, object] = {
        key: tuple(sorted(set(value)))
        for key in (names, "layers")
        if (value := getattr(part, key)) is not None
    }
    if part.decoding == "follow":
        changes["decoding"] = "off" if is_only_set(part.positions) else "on"
    return part.model_copy(update=changes)


def part_name(part: Part | None) -> str:
    """A part in a few words: its set of tokens, and every setting that differs from the default."""
    if part is None:
        return f"{ALL_TOKENS} and {NO_TOKENS}"
    is_patch = isinstance(part, PatchSection)
    words = [f"patch {set_text(part.positions)}" if is_patch else set_text(part.positions)]
    if names := part.kinds if isinstance(part, PatchSection) else part.modules:
        words.append(", ".join(names))
    if part.layers is not None:
        words.append(f"layers {', '.join(map(str, part.layers))}")
    if (part.decoding == "on") == is_only_set(part.positions):
        words.append(f"decoding {part.decoding}")
    return " · ".join(words)


def check_parts(missing: Iterable[Step]) -> None:
    """Refuse what the models lack before anything is built, as far as that needs no weights.

    These are gates and patches of tokens, modules or layers that do not exist, and `check_architectures`.
    Tokenizers and models without weights are loaded, which takes seconds, so it is not in `pipeline.chain`;
    `plan`, `sweep` and `run` call it.

    Raises:
        RecipeError: a set without tokens, an unknown module or layer; the message lists what exists.
        ModelError: the model is not there, a context cannot be rendered, or see `check_architectures`.
    """
    missing = list(missing)
    check_architectures(missing)
    by_spec: dict[LocateSpec, dict[tuple[Part, str], TrainSection]] = {}
    for step in missing:
        if isinstance(step, LocateStep) and (part := step.spec.part) is not None:
            train = step.inputs[0].spec.train
            without_part = step.spec.model_copy(update={"part": None, "controls": 0, "seed": 0})
            trained = train.model_dump_json(include={"method", "adapter"})  # these decide the trained modules
            by_spec.setdefault(without_part, {})[part, trained] = train
    for spec, trains in by_spec.items():
        tokenizer, question = load_tokenizer(spec.model), spec.questions[0]
        prompts = {context.name: render_with_roles(tokenizer, context, question) for context in spec.contexts}
        training = render_with_roles(tokenizer, spec.training, question)
        for section, key in ((GateSection, "gates"), (PatchSection, "patches")):
            sets = tuple(dict.fromkeys(part.positions for part, _ in trains if isinstance(part, section)))
            check_positions(sets, prompts, training, field=f"eval.{key}")
        for (part, _), train in trains.items():
            if train.method == "full":
                model = meta_model(spec.model)
                gate.check_switchable(model, changed_modules(model, train))
            if isinstance(part, PatchSection):
                patch.patched_modules(meta_model(spec.model), part.kinds, part.layers)
            elif part.modules or part.layers:
                model = meta_model(spec.model)
                gate.select_modules(model, changed_modules(model, train), part.modules, part.layers)
