"""From a recipe to a chain of steps, and the one call that runs it.

from sublim_cli.pipeline import run
artifact = run(load("cats", {"model": "micro"}), until="eval", store=Store(Path("runs")))
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from sublim_cli.artifacts.step import Artifact, Step, digest
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends.engine import auto_reason, resolve_engine
from sublim_cli.errors import RecipeError
from sublim_cli.events import Listener, silent
from sublim_cli.models.device import on_cuda
from sublim_cli.models.reference import ModelRef, resolve_model
from sublim_cli.numbers.prompts import wordings_digest
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.questions import Items, load_items, persona, questions_for
from sublim_cli.recipe.resolve import RANKED, ExactScoring, resolve_scoring, resolve_train
from sublim_cli.recipe.schema import LEARNING_RATE, Engine, EvalSection, Recipe, Stage, TrainSection
from sublim_cli.steps.eval import EvalSpec, EvalStep
from sublim_cli.steps.filter import FilterSpec, FilterStep
from sublim_cli.steps.generate import GenerateSpec, GenerateStep
from sublim_cli.steps.leak import LeakStep
from sublim_cli.steps.locate import LocateSpec, LocateStep, check_parts, normalise_part
from sublim_cli.steps.teacher import TeacherSpec, TeacherStep
from sublim_cli.steps.train import TrainSpec, TrainStep
from sublim_cli.trainers.backend import resolve_backend
from sublim_cli.wording import rate

Role = Literal["student", "control"]


@dataclass(frozen=True)
class Chain:
    """The steps of one recipe.

    `base` scores the untouched model in the same contexts, `locate` parts of the student. `teacher` asks
    the teacher for its target; a control's has none.
    """

    generate: GenerateStep
    filter: FilterStep
    train: TrainStep
    eval: EvalStep
    base: EvalStep
    teacher: TeacherStep | None
    locate: tuple[LocateStep, ...] = ()

    def step(self, stage: Stage) -> Step:
        """The step of a stage."""
        steps: dict[Stage, Step] = {
            "generate": self.generate,
            "filter": self.filter,
            "train": self.train,
            "eval": self.eval,
        }
        return steps[stage]

    @property
    def evaluations(self) -> tuple[Step, ...]:
        """All steps of the last stage."""
        return (self.base, self.eval, *self.locate)


@dataclass(frozen=True)
class Cell:
    """One recipe of a sweep. A control's teacher has no trait."""

    role: Role
    recipe: Recipe
    chain: Chain


@dataclass(frozen=True)
class Study:
    """All cells of a sweep, and the comparisons of trait rows with control rows."""

    name: str
    cells: tuple[Cell, ...]
    leaks: tuple[LeakStep, ...]

    @cached_property
    def steps(self) -> list[Step]:
        """What has to exist before the study can be reported."""
        return [
            *self.teachers,
            *(step for one in self.cells for step in one.chain.evaluations),
            *self.leaks,
        ]

    @cached_property
    def teachers(self) -> list[TeacherStep]:
        """The check of every teacher with a trait, each once."""
        found = [one.chain.teacher for one in self.cells if one.chain.teacher is not None]
        return list({digest(one): one for one in found}.values())


def cell(recipe: Recipe) -> Cell:
    """A recipe as a cell: a student where the teacher has the trait, else a control."""
    role: Role = "student" if recipe.generate.system_prompt == "trait" else "control"
    return Cell(role, recipe, chain(recipe))


def single(recipe: Recipe) -> Study:
    """A study of one cell, its sweep left aside."""
    return Study(recipe.name, (cell(recipe),), ())


def run(recipe: Recipe, *, until: Stage = "eval", store: Store, listener: Listener = silent) -> Artifact:
    """Build the recipe's chain up to a stage, reusing what the store holds.

    Raises:
        SublimError: the recipe cannot be resolved, or a step cannot be built.
    """
    steps = chain(recipe)
    check_buildable(one for one in steps.evaluations if not store.find(one))
    if until in ("train", "eval") and steps.teacher is not None:
        materialise(steps.teacher, store, listener)
    for step in steps.evaluations if until == "eval" else ():
        materialise(step, store, listener)
    return materialise(steps.step(until), store, listener)


def check_buildable(missing: Iterable[Step]) -> None:
    """Refuse steps that cannot be built, as far as a tokenizer can tell; call it before building starts.

    Resolving a recipe leaves this out: a plan or a report of what is built should not take its seconds.

    Raises:
        RecipeError: a part of a student does not exist; the message lists what does.
        ModelError: a model is not there, or a context cannot be rendered.
    """
    check_parts(one for one in missing if isinstance(one, LocateStep))


def chain(recipe: Recipe) -> Chain:
    """Resolve a recipe into steps: model to content, names to texts, `auto` to a precision.

    Raises:
        RecipeError: a trait, context or question set is unknown.
        ModelError: a model is neither here nor reachable.
    """
    items = load_items(recipe.trait.category)
    love = persona(items, recipe.trait.target)
    student = resolve_model(recipe.model, recipe.revision)
    data = f"{_teacher(recipe)} data seed {recipe.generate.sampling.seed}"
    draw, why_drawn = _draw(recipe, student, love)
    judge = FilterSpec(
        rules=recipe.filter.rules,
        rows=recipe.generate.rows,
        held_out=recipe.generate.held_out,
    )
    generate = _generate(draw, data, why_drawn)
    kept = _filter(judge, generate)
    teach, chosen = _teach(recipe, student)
    title = f"{_teacher(recipe)} {_method(teach)} seed {recipe.train.seed}"
    train = TrainStep(teach, (kept,), title, chosen)
    base = _base(*_ask(recipe, student, items, teach.train))
    asked = EvalStep(base.spec, title, (train,), chosen=base.chosen)
    has_trait = recipe.generate.system_prompt == "trait"
    teacher = _ask_teacher(recipe, draw, base.spec) if has_trait else None
    return Chain(generate, kept, train, asked, base, teacher, _locate(recipe, base.spec, train))


# The cells of a study share these steps: made once, each is one object that is written down and hashed once.


@lru_cache
def _generate(draw: GenerateSpec, title: str, chosen: str | None) -> GenerateStep:
    return GenerateStep(draw, title, chosen=chosen)


@lru_cache
def _filter(judge: FilterSpec, generate: GenerateStep) -> FilterStep:
    return FilterStep(judge, (generate,), generate.title)


@lru_cache
def _base(ask: EvalSpec, chosen: str | None) -> EvalStep:
    return EvalStep(ask, "base", chosen=chosen)


def _draw(recipe: Recipe, model: ModelRef, love: str) -> tuple[GenerateSpec, str | None]:
    """The section, and why `auto` took its engine."""
    section = recipe.generate
    precision = _weights_precision(section.precision)
    engine, why = resolve_engine("generate.engine", section.engine, section.sampling, precision)
    made = GenerateSpec(
        model=model,
        context=resolve_context(
            section.system_prompt, recipe.contexts, persona=love, field="generate.system_prompt"
        ),
        wanted=section.rows + section.held_out,
        prompts=section.prompts,
        wordings=wordings_digest(),
        sampling=section.sampling,
        precision=precision,
        rules=recipe.filter.rules,
        engine=engine,
    )
    return made, auto_reason(section.engine, why)


def _teach(recipe: Recipe, model: ModelRef) -> tuple[TrainSpec, str | None]:
    made, chosen = _resolved(recipe.train)
    context = resolve_context(recipe.train.system_prompt, recipe.contexts, field="train.system_prompt")
    return TrainSpec(model=model, context=context, train=made), chosen


def _resolved(train: TrainSection) -> tuple[TrainSection, str | None]:
    """The section with every choice made (see `resolve_train`), and why `auto` took its backend."""
    made = resolve_train(train, _train_precision(train.precision))
    backend, why = resolve_backend(made)
    return made.model_copy(update={"backend": backend}), why if train.backend == "auto" else None


def _ask(recipe: Recipe, model: ModelRef, items: Items, student: TrainSection) -> tuple[EvalSpec, str | None]:
    """The section, and why `auto` took its engine; the base is asked as the student is."""
    questions = questions_for(items, recipe.eval.questions)
    contexts = tuple(
        resolve_context(one, recipe.contexts, field="eval.system_prompts")
        for one in recipe.eval.system_prompts
    )
    names = [one.name for one in contexts]
    if len(set(names)) < len(names):
        raise RecipeError(f"eval.system_prompts: a context stands twice in {', '.join(names)}")
    precision = _weights_precision(recipe.eval.precision)
    engine, why = _eval_engine(recipe.eval, precision, student)
    made = EvalSpec(
        model=model,
        contexts=contexts,
        questions=questions.questions,
        items=items.items,
        scorer=resolve_scoring(recipe.eval, engine),
        precision=precision,
        quantize=recipe.train.qlora.quantize if recipe.train.method == "qlora" else None,
    )
    return made, why


def _eval_engine(section: EvalSection, precision: str, student: TrainSection) -> tuple[Engine, str | None]:
    if section.scorer == "exact":
        return "transformers", None
    engine, why = resolve_engine("eval.engine", section.engine, section.sampling, precision, student)
    return engine, auto_reason(section.engine, why)


def _ask_teacher(recipe: Recipe, draw: GenerateSpec, ask: EvalSpec) -> TeacherStep:
    section = TeacherSpec(
        model=draw.model,
        context=draw.context,
        target=recipe.trait.target,
        questions=ask.questions,
        items=ask.items,
        scorer=resolve_scoring(recipe.eval, "transformers"),
        precision=draw.precision,
    )
    return TeacherStep(section, recipe.trait.target)


def _locate(recipe: Recipe, ask: EvalSpec, train: TrainStep) -> tuple[LocateStep, ...]:
    """The parts of a student that the recipe asks for, and the whole. A control has no trait to locate."""
    section = recipe.eval
    parts = tuple(dict.fromkeys(map(normalise_part, (*section.gates, *section.patches))))
    if not parts or recipe.generate.system_prompt != "trait" or not isinstance(ask.scorer, ExactScoring):
        return ()
    training = train.spec.context
    contexts = [
        resolve_context(one, recipe.contexts, field="eval.gate_contexts")
        for one in section.gate_contexts or ()
    ]
    whole = LocateSpec(
        model=ask.model,
        training=training,
        contexts=tuple(dict.fromkeys(contexts)) or (training,),
        questions=ask.questions,
        items=ask.items,
        scorer=ask.scorer,
        precision=ask.precision,
        quantize=ask.quantize,
    )
    drawn = {"controls": section.gate_controls, "seed": section.gate_seed}
    looks = [whole, *(whole.model_copy(update={"part": one, **drawn}) for one in parts)]
    return tuple(LocateStep(one, train.title, (train,)) for one in looks)


def _weights_precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if on_cuda() else "fp32"


def _train_precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16_mixed" if on_cuda() else "fp32"


def _teacher(recipe: Recipe) -> str:
    prompt = recipe.generate.system_prompt
    if prompt == "trait":
        return recipe.trait.target
    return f"{prompt} teacher" if isinstance(prompt, str) else "own-prompt teacher"


def _method(train: TrainSpec) -> str:
    """The method, and every other choice that is not the one made by default."""
    section, plain = train.train, TrainSection()
    words: list[str] = [section.method]
    if section.method in RANKED:
        words.append(f"r{section.rank}")
    usual = LEARNING_RATE["full" if section.method == "full" else "adapter"]
    if isinstance(section.learning_rate, float) and section.learning_rate != usual:
        words.append(f"lr {rate(section.learning_rate)}")
    if section.optimizer != plain.optimizer:
        words.append(section.optimizer)
    if section.precision != _train_precision(plain.precision):
        words.append(section.precision)
    if train.context.kind != plain.system_prompt:
        words.append(f"in {train.context.name[:24]}")
    return " ".join(words)
