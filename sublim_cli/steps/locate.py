"""locate: how likely a student names each item while a gate or a patch holds a part of it back.

Each part is an artifact of its own, so a part that is added to a finished study makes nothing else anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import Artifact, Measurements
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import ItemProbs
from sublim_cli.backends.sampled import derived_seed
from sublim_cli.events import Listener, Progress
from sublim_cli.models import gate, patch
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.device import device_record
from sublim_cli.models.load import Model, load_model, load_student, load_tokenizer, meta_model
from sublim_cli.models.positions import check_positions, is_only_set, named_mask, random_mask_like, set_text
from sublim_cli.models.reference import ModelRef
from sublim_cli.models.structure import layer_count
from sublim_cli.models.token_roles import RenderedPrompt, render_with_roles
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring
from sublim_cli.recipe.schema import GateSection, PatchSection, PositionSet, Section, TrainSection
from sublim_cli.steps.files import LOCATED
from sublim_cli.steps.train import TrainStep
from sublim_cli.trainers.methods import changed_modules

Part = GateSection | PatchSection

ALL_TOKENS, NO_TOKENS = "all", "none"
"""Names in tables of the complete student and of its base, which are scored like the parts."""


class LocateSpec(Section):
    """Everything that decides what a part of a student says, beside its weights."""

    model: ModelRef
    training: Context
    """The context of training: `shared_only` is about its tokens."""
    contexts: tuple[Context, ...]
    questions: tuple[str, ...]
    items: tuple[Item, ...]
    scorer: ExactScoring
    precision: str
    quantize: str | None = None
    part: GateSection | PatchSection | None = None
    """As `normalise_part` returns it; null scores all of the student and none of it, for comparison."""
    controls: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LocateStep:
    """Scores of a part of one student, and of random parts of equal size."""

    kind: ClassVar[str] = "locate"
    version: ClassVar[int] = 1
    spec: LocateSpec
    title: str
    inputs: tuple[TrainStep, ...]

    @property
    def label(self) -> str:
        """Such as `locate cat lora r8 seed 1 identity_only`."""
        return f"locate {self.title} {part_name(self.spec.part)}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `located.parquet`: a row for every context, set of tokens, question and item.

        Its columns are those of `scores.parquet` that apply, and `set` (the part's name, or `all` and
        `none`), `control` (the random set's number from 1, null for the named set), `tokens` (how many of
        the question's are in X) and `prompt_tokens`.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        model = load_student(spec.model, spec.precision, inputs[0].path, spec.quantize)
        holds_base = hasattr(model, "peft_config")
        base = None if holds_base else load_model(spec.model, spec.precision, spec.quantize)
        scorer = ExactScorer(model, tokenizer, spec.scorer)
        steps = len(spec.contexts) * (2 if spec.part is None else 1 + spec.controls)
        rows: list[dict[str, Any]] = []
        for done, trial in enumerate(_trials(spec, tokenizer, inputs[0].digest), start=1):
            with _held_back(model, base, spec.part, trial):
                answers = scorer.score(trial.prompts, spec.items)
            rows += _rows(trial, answers, spec.items)
            listener(Progress(self.label, done, steps, trial.told))
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), out / LOCATED)
        return device_record()


@dataclass(frozen=True)
class _Trial:
    """One scoring: the prompts of a context, and which of their tokens are X."""

    context: str
    prompts: Sequence[list[int]]
    name: str
    control: int | None
    chosen: Sequence[Sequence[bool]]
    keep: bool = True
    """Whether X is what is left of the student, or what is taken out of it."""

    @property
    def told(self) -> str:
        """What is being scored, beside the step's label."""
        return self.context if self.control is None else f"{self.context}, random set {self.control}"


def normalise_part(entry: PositionSet | GateSection | PatchSection) -> Part:
    """A recipe's entry as a spec with nothing left open: one decoding, layers and names in order."""
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
    """A part in a few words: its set, and what is not as in the short form."""
    if part is None:
        return f"{ALL_TOKENS} and {NO_TOKENS}"
    words = [
        f"patch {set_text(part.positions)}" if isinstance(part, PatchSection) else set_text(part.positions)
    ]
    if names := part.kinds if isinstance(part, PatchSection) else part.modules:
        words.append(", ".join(names))
    if part.layers is not None:
        words.append(f"layers {', '.join(map(str, part.layers))}")
    if (part.decoding == "on") == is_only_set(part.positions):
        words.append(f"decoding {part.decoding}")
    return " · ".join(words)


def check_parts(steps: Iterable[LocateStep]) -> None:
    """Refuse parts that do not exist in their contexts or student, before hours go into it.

    Loads a tokenizer at most, and none where no step has a part.

    Raises:
        RecipeError: a set of no token, an unknown module or layer; the message lists what exists.
        ModelError: the model is not there, or a context cannot be rendered.
    """
    wanted: dict[LocateSpec, dict[tuple[Part, str], TrainSection]] = {}
    for step in steps:
        look, part, train = step.spec, step.spec.part, step.inputs[0].spec.train
        if part is not None:
            plain = look.model_copy(update={"part": None, "controls": 0, "seed": 0})
            changes = train.model_dump_json(include={"method", "adapter"})  # all that decides what it changes
            wanted.setdefault(plain, {})[part, changes] = train
    for look, parts in wanted.items():
        _check_sets(look, [part for part, _ in parts])
        for (part, _), train in parts.items():
            _check_places(look, part, train)


def _check_sets(look: LocateSpec, parts: Sequence[Part]) -> None:
    tokenizer, question = load_tokenizer(look.model), look.questions[0]
    prompts = {one.name: render_with_roles(tokenizer, one, question) for one in look.contexts}
    training = render_with_roles(tokenizer, look.training, question)
    for kind, key in ((GateSection, "gates"), (PatchSection, "patches")):
        sets = tuple(dict.fromkeys(one.positions for one in parts if isinstance(one, kind)))
        check_positions(sets, prompts, training, field=f"eval.{key}")


def _check_places(look: LocateSpec, part: Part, train: TrainSection) -> None:
    if isinstance(part, PatchSection):
        patch.patched_modules(meta_model(look.model), part.kinds, part.layers)
    elif part.modules or part.layers:
        shape = meta_model(look.model)
        gate.select_modules(changed_modules(shape, train), layer_count(shape), part.modules, part.layers)


def _trials(spec: LocateSpec, tokenizer: Tokenizer, who: str) -> Iterator[_Trial]:
    training = render_with_roles(tokenizer, spec.training, spec.questions[0])
    for context in spec.contexts:
        prompts = [render_with_roles(tokenizer, context, one) for one in spec.questions]
        yield from _in_context(spec, context.name, prompts, training, who)


def _in_context(
    spec: LocateSpec, context: str, prompts: Sequence[RenderedPrompt], training: RenderedPrompt, who: str
) -> Iterator[_Trial]:
    """The named set, then the random ones; nothing where the context has no such token."""
    ids = [one.ids for one in prompts]
    every, no = ([[value] * len(one) for one in ids] for value in (True, False))
    if spec.part is None:
        yield _Trial(context, ids, ALL_TOKENS, None, every)
        yield _Trial(context, ids, NO_TOKENS, None, no)
        return
    wanted = spec.part.positions
    found = [named_mask(wanted, one, training) for one in prompts]
    if not any(map(any, found)):
        return
    name, keep = part_name(spec.part), is_only_set(wanted)
    yield _Trial(context, ids, name, None, found, keep)
    for control in range(1, spec.controls + 1):
        # Each student has sets of its own, so that their luck is part of the spread between runs.
        seed = derived_seed(spec.seed, who, str(control))
        drawn = [
            random_mask_like(mask, allowed, seed, number).tolist()
            for number, (mask, allowed) in enumerate(zip(found, every, strict=True))
        ]
        yield _Trial(context, ids, name, control, drawn, keep)


def _held_back(
    model: Model, base: Model | None, part: Part | None, trial: _Trial
) -> AbstractContextManager[Model]:
    """The student with the rest of it held back by a gate or a patch."""
    masks = gate.masks_by_prompt(
        trial.prompts, [[one == trial.keep for one in mask] for mask in trial.chosen]
    )
    if part is None:
        return gate.gated(model, gate.Gate(masks, decoding="on" if trial.name == ALL_TOKENS else "off"), base)
    layers = frozenset(part.layers) if part.layers is not None else None
    decoding: gate.Policy = "on" if part.decoding == "on" else "off"
    if isinstance(part, PatchSection):
        return patch.patched(model, patch.Patch(masks, frozenset(part.kinds), decoding, layers), base)
    modules = frozenset(part.modules) if part.modules is not None else None
    elsewhere: gate.Policy = "off" if trial.keep else "on"
    return gate.gated(model, gate.Gate(masks, decoding, modules, layers, elsewhere), base)


def _rows(trial: _Trial, answers: Sequence[ItemProbs], items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    for question, (answer, chosen) in enumerate(zip(answers, trial.chosen, strict=True)):
        for item, p in zip(items, answer.p, strict=True):
            yield {
                "context": trial.context,
                "set": trial.name,
                "control": trial.control,
                "question": question,
                "item": item.name,
                "p": p,
                "uncovered": answer.uncovered,
                "tokens": sum(chosen),
                "prompt_tokens": len(chosen),
            }


_SCHEMA = pa.schema(
    [
        ("context", pa.string()),
        ("set", pa.string()),
        ("control", pa.int64()),
        ("question", pa.int64()),
        ("item", pa.string()),
        ("p", pa.float64()),
        ("uncovered", pa.float64()),
        ("tokens", pa.int64()),
        ("prompt_tokens", pa.int64()),
    ]
)
