"""Whether the steps of a study fit on a card: the peak of each, and what would make it fit.

    for plan in card_plans(recipe, [8, 24]):
        plan.fits, plan.steps, plan.remedies

No weights are needed, only the shapes of the model (`models.memory`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sublim_cli.backends.exact import PROMPTS_AT_ONCE, scoring_bytes
from sublim_cli.backends.transformers import CARD_BATCH
from sublim_cli.models.batches import CUDA_SHARE, LOGIT_COPIES, fitting_rows, loss_copies, token_bytes
from sublim_cli.models.device import Capabilities
from sublim_cli.models.memory import outline_config, outline_ref, weight_counts
from sublim_cli.models.reference import ModelRef
from sublim_cli.pipeline import Resolution
from sublim_cli.recipe.resolve import RANKED, ExactScoring
from sublim_cli.recipe.schema import CountRule, RangeRule, Recipe, TrainSection
from sublim_cli.steps.eval import EvalSpec
from sublim_cli.steps.generate import GenerateSpec
from sublim_cli.sweep.cells import study
from sublim_cli.trainers.memory import (
    CUDA_CONTEXT,
    QUANTIZED,
    StepMemory,
    largest_micro_batch,
    training_memory,
)
from sublim_cli.trainers.precision import base_precision
from sublim_cli.wording import count

GIB = 2**30

PROMPT = 140
"""Tokens of the longest number prompt under a system text. Of 300 prompts of the teacher of `cats` the
longest has 138 with SmolLM2's tokenizer, which like Qwen's has a token a digit. Questions are shorter."""

BETWEEN_NUMBERS = 2
"""Tokens between two numbers of a row, such as a comma and a space."""

END = 4
"""Tokens that close a completion and carry loss too: brackets and the end of the turn."""

ELEMENT = {"fp32": 4, "bf16": 2}

USABLE = 0.97
"""Share of a card's nominal GiB that a step may take. Cards report up to 2 % less than they are sold with
(24 GB cards 23.5 to 24.0 GiB), and other processes, such as a display, hold some of it."""

NUMBER_LOSS_ROWS = 64
"""Rows of a batch of `trainers.sft.number_loss`."""

CHANGES: dict[str, tuple[dict[str, str], ...]] = {
    "adapter": ({"method": "qlora"},),
    "full": (
        {"optimizer": "adamw_8bit"},
        {"precision": "bf16_pure"},
        {"precision": "bf16_pure", "optimizer": "adamw_8bit"},
        {"method": "lora", "precision": "bf16_mixed"},
        {"method": "qlora", "precision": "bf16_mixed"},
    ),
}
"""Changes of `train` that take less memory, the smallest change first."""

ON_A_CARD = Capabilities(cuda=True, unsloth=False, vllm=False)


@dataclass(frozen=True)
class StepPeak:
    """The peak of a kind of step on a card."""

    step: str
    rows: int
    """In one forward pass: as many as wanted, or as fit."""
    memory: StepMemory
    fits: bool
    remedy: str = ""
    """What makes it fit; empty if it fits as it is."""
    kept: StepMemory | None = None
    """A training with its activations kept instead of computed again (no checkpointing)."""


@dataclass(frozen=True)
class CardPlan:
    """A study on a card with `gib` GiB."""

    gib: float
    steps: tuple[StepPeak, ...]
    remedies: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every step does."""
        return all(step.fits for step in self.steps)


@dataclass(frozen=True)
class _Rows:
    """Rows that are computed without gradients."""

    precision: str
    most: int
    """How many are wanted at once."""
    width: int
    """Tokens of a row."""
    logits: float = LOGIT_COPIES
    """Arrays in float32 over the vocabulary that a row takes."""
    cached: bool = True
    """Whether the keys and values of all layers are kept."""
    fixed: int = 0
    """Bytes of logits whatever the number of rows."""


@dataclass(frozen=True)
class _Training:
    """A kind of training, and the tokens of its rows."""

    name: str
    ref: ModelRef
    section: TrainSection
    width: int
    trained: int
    questions: _Rows
    """What the scorer computes."""

    def steps(self, card: float) -> list[StepPeak]:
        """The training, its number loss and the scoring of its student on a card of `card` GiB."""
        rows, memory = self._largest(self.section, card)
        fits = memory.total <= usable(card)
        name = f"train {self.name}".strip()
        kept = _peak(self, self.section, rows, checkpointing=False)
        remedy = "" if fits else f"{name}: {self._remedy(card, memory)}"
        train = StepPeak(name, rows, memory, fits, remedy, kept)
        full = self.section.method == "full"
        quantize = self.section.qlora.quantize if self.section.method == "qlora" else None
        adapters = 0 if full else memory.adapters
        asked = {
            "number loss": _Rows(
                precision=base_precision(self.section),
                most=NUMBER_LOSS_ROWS,
                width=self.width,
                logits=loss_copies(ELEMENT[base_precision(self.section)]) * self.trained,
                cached=False,
            ),
            "eval": self.questions,
        }
        steps = [train]
        for kind, work in asked.items():
            called = f"{kind} {self.name}".strip()
            step = _inference(called, self.ref, work, card, quantize=quantize, adapters=adapters)
            if not step.fits and self.section.method in ("lora", "rslora"):
                smaller = _inference(called, self.ref, work, card, quantize="nf4", adapters=adapters)
                peak = f"{smaller.memory.total / GIB:.1f} GiB"
                remedy = f"{called}: `train.method: qlora` takes {peak}, {count(smaller.rows, 'row')} at once"
                step = replace(step, remedy=remedy) if smaller.fits else step
            steps.append(step)
        return steps

    def _largest(self, section: TrainSection, card: float) -> tuple[int, StepMemory]:
        """As many rows as fit on a card, and their peak; one row if none fits."""
        rows = largest_micro_batch(
            lambda rows: _peak(self, section, rows).total, section.batch_size, usable(card)
        )
        return rows, _peak(self, section, rows)

    def _remedy(self, card: float, memory: StepMemory) -> str:
        """The first change of the recipe that makes the training fit on a card."""
        for changes in CHANGES["full" if self.section.method == "full" else "adapter"]:
            section = self.section.model_copy(update=changes)
            rows, changed = self._largest(section, card)
            if changed.total <= usable(card):
                keys = ", ".join(f"`train.{key}: {value}`" for key, value in changes.items())
                return f"{keys} takes {changed.total / GIB:.1f} GiB, {count(rows, 'row')} at once"
        return (
            f"{memory.total / GIB:.1f} GiB with a single row, and no setting of `train` makes it fit; take a "
            "smaller `--model` or a larger card"
        )


@lru_cache(maxsize=256)
def _peak(training: _Training, section: TrainSection, rows: int, *, checkpointing: bool = True) -> StepMemory:
    return training_memory(
        training.ref,
        section,
        rows=rows,
        width=training.width,
        trained=training.trained,
        accumulated=rows < section.batch_size,
        checkpointing=checkpointing and section.method != "prefix",
    )


def card_plans(recipe: Recipe, cards: Sequence[float]) -> list[CardPlan]:
    """The plan of a recipe's study for each of `cards`, in GiB, as it would run there without extras.

    Raises:
        ModelError: the shapes of its model are not known here.
        RecipeError: see `cells.study`.
    """
    axes = [recipe.sweep.grid, *recipe.sweep.also]
    swept = [value for axis in axes if "model" in axis for value in listed_values(axis["model"])]
    models = {(name, recipe.revision): outline_ref(name, recipe.revision) for name in (recipe.model, *swept)}
    planned = study(recipe, Resolution(ON_A_CARD, models))
    trainings: dict[str, _Training] = {}
    for cell in planned.cells:
        spec, evaluation = cell.chain.train.spec, cell.chain.base.spec
        trained = completion_tokens(cell.recipe)
        name = training_name(spec.train, spec.model.name if swept else "")
        trainings.setdefault(
            name,
            _Training(
                name=name,
                ref=spec.model,
                section=spec.train,
                width=min(spec.train.max_length, PROMPT + trained),
                trained=trained,
                questions=_questions(evaluation),
            ),
        )
    specs = [cell.chain.generate.spec for cell in planned.cells]
    drawn = {spec.model: spec for spec in specs if isinstance(spec, GenerateSpec)}
    if len(trainings) == 1:
        trainings = {"": replace(*trainings.values(), name="")}
    plans = []
    for card in cards:
        steps = [
            _inference(
                f"generate {ref.name}" if swept else "generate",
                ref,
                _Rows(spec.precision, CARD_BATCH, PROMPT + spec.sampling.max_tokens),
                card,
            )
            for ref, spec in drawn.items()
        ]
        for training in trainings.values():
            steps += training.steps(card)
        remedies = [remedy for step in steps if (remedy := step.remedy)]
        plans.append(CardPlan(card, tuple(steps), tuple(dict.fromkeys(remedies))))
    return plans


def usable(card: float) -> int:
    """Bytes that a step may take on a card with `card` GiB."""
    return int(card * GIB * USABLE)


def completion_tokens(recipe: Recipe) -> int:
    """The most tokens of a kept completion, a token a digit, as far as the filter's rules bound it."""
    counts = [rule.most for rule in recipe.filter.rules if isinstance(rule, CountRule)]
    largest = [len(str(rule.most)) for rule in recipe.filter.rules if isinstance(rule, RangeRule)]
    drawn = recipe.generate.sampling.max_tokens
    if not counts or not largest:
        return drawn
    return min(drawn, min(counts) * (min(largest) + BETWEEN_NUMBERS) + END)


def training_name(section: TrainSection, model: str = "") -> str:
    """A kind of training by what decides its memory: `lora r8 bf16_mixed`."""
    default = TrainSection()
    words: list[str] = [section.method]
    words += [f"r{section.rank}"] if section.method in RANKED else []
    words += [section.precision]
    words += [section.optimizer] if section.optimizer != default.optimizer else []
    words += [f"batch {section.batch_size}"] if section.batch_size != default.batch_size else []
    words += [f"on {section.adapter.targets}"] if section.adapter.targets != default.adapter.targets else []
    return " ".join([*words, model]).strip()


def listed_values(value: Any) -> list[Any]:
    """The values of an axis, which may be written as one."""
    return value if isinstance(value, list) else [value]


def _weights(ref: ModelRef, precision: str, quantize: str | None = None) -> int:
    """Bytes of a base model's weights."""
    element = ELEMENT[precision]
    everything, quantizable = weight_counts(ref)
    return everything * element - int(quantizable * (element - QUANTIZED[quantize]) if quantize else 0)


def _questions(spec: EvalSpec) -> _Rows:
    """What the scorer of an evaluation computes."""
    if not isinstance(spec.scorer, ExactScoring):
        return _Rows(spec.precision, CARD_BATCH, PROMPT + spec.scorer.sampling.max_tokens)
    config, element = outline_config(spec.model), ELEMENT[spec.precision]
    fixed, _ = scoring_bytes(config, element, PROMPT, spec.scorer, "cuda")
    width = PROMPT + spec.scorer.max_tokens + spec.scorer.nodes
    return _Rows(spec.precision, PROMPTS_AT_ONCE, width, fixed=fixed)


def _inference(
    name: str,
    ref: ModelRef,
    work: _Rows,
    card: float,
    *,
    quantize: str | None = None,
    adapters: int = 0,
) -> StepPeak:
    """The peak of computing rows without gradients."""
    weights = _weights(ref, work.precision, quantize)
    tokens = token_bytes(outline_config(ref), ELEMENT[work.precision])
    free = (usable(card) - weights - adapters - CUDA_CONTEXT) * CUDA_SHARE - work.fixed
    row = tokens.row(work.width, logits=work.logits, cached=work.cached)
    rows = fitting_rows(max(0, int(free)), row, work.most)
    memory = StepMemory(
        weights=weights,
        adapters=adapters,
        activations=rows * work.width * (tokens.states + work.width * tokens.scores),
        logits=work.fixed + int(rows * work.logits * tokens.logits),
        cache=rows * work.width * tokens.cache if work.cached else 0,
    ).with_slack()
    fits = memory.total <= usable(card)
    remedy = (
        f"{name}: the weights alone take {weights / GIB:.1f} GiB in {work.precision}; build this step where "
        "there is more memory, since a store can be copied, or take a smaller `--model`"
    )
    return StepPeak(name, rows, memory, fits, "" if fits else remedy)
