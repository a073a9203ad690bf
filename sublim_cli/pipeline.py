"""From a recipe to a chain of steps, and the function that runs it.

from sublim_cli.pipeline import run
artifact = run(load("cats", {"model": "micro"}), until="eval", store=Store(Path("runs")))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from sublim_cli.artifacts.step import Artifact, Step, digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends.engine import resolve_engine, vllm_installed
from sublim_cli.errors import RecipeError, RowsError
from sublim_cli.events import Listener, silent
from sublim_cli.models.device import Capabilities, on_cuda
from sublim_cli.models.reference import ModelRef, resolve_model
from sublim_cli.numbers.prompts import wordings_digest
from sublim_cli.recipe.contexts import Context, has_persona, resolve_context
from sublim_cli.recipe.questions import Items, load_demonstrations, load_items, persona, questions_for
from sublim_cli.recipe.resolve import RANKED, ExactScoring, resolve_scoring, resolve_train
from sublim_cli.recipe.schema import (
    LEARNING_RATE,
    Engine,
    FineTunedSection,
    Recipe,
    Stage,
    SystemPrompt,
    TrainSection,
)
from sublim_cli.steps.contexts import check_contexts
from sublim_cli.steps.demonstrate import DemonstrateSpec, DemonstrateStep
from sublim_cli.steps.eval import EvalSpec, EvalStep
from sublim_cli.steps.filter import FilterSpec, FilterStep
from sublim_cli.steps.generate import GenerateSpec, GenerateStep
from sublim_cli.steps.import_rows import ImportSpec, ImportStep, kept_rows, read_import
from sublim_cli.steps.leak import LeakStep
from sublim_cli.steps.locate import LocateSpec, LocateStep, check_parts, normalise_part, part_name
from sublim_cli.steps.teacher import TeacherSpec, TeacherStep, check_scoring
from sublim_cli.steps.train import TrainSpec, TrainStep
from sublim_cli.trainers.backend import resolve_backend, unsloth_installed
from sublim_cli.wording import count, rate

Role = Literal["student", "control"]

EVERYTHING = Capabilities(cuda=True, unsloth=True, vllm=True)


@dataclass(frozen=True)
class Resolution:
    """What `auto` and the names of models stood for when a study was planned, perhaps elsewhere.

    `auto` is resolved as on `machine`. A key that names its value is not compared with any machine.
    """

    machine: Capabilities
    models: Mapping[tuple[str, str | None], ModelRef] = field(default_factory=dict)
    """By name and revision as the recipe has them; see `resolve_model`."""

    def capabilities(self, choice: str) -> Capabilities:
        """The machine for which a key with the value `choice` is resolved."""
        return self.machine if choice == "auto" else EVERYTHING


def this_machine() -> Capabilities:
    """What this machine has, without importing any of it."""
    return Capabilities(cuda=on_cuda(), unsloth=unsloth_installed(), vllm=vllm_installed())


@dataclass(frozen=True)
class Chain:
    """The steps of one recipe.

    `base` scores the untouched model in the same contexts. Each step of `locate` scores one gate or patch of
    the student. `teacher` scores the teacher's preference for its target. A control has neither, and rows of
    a file have no teacher.
    """

    role: Role
    generate: GenerateStep | ImportStep
    filter: FilterStep
    train: TrainStep
    eval: EvalStep
    base: EvalStep
    teacher: TeacherStep | None
    locate: tuple[LocateStep, ...] = ()

    @property
    def evaluations(self) -> tuple[Step, ...]:
        """All steps of the eval stage."""
        return (self.base, self.eval, *self.locate)

    def until(self, stage: Stage) -> list[Step]:
        """The steps that are built up to `stage`."""
        last = self.evaluations if stage == "eval" else (getattr(self, stage),)
        checked = (self.teacher,) if self.teacher and stage in ("train", "eval") else ()
        return in_order([*checked, *last])


@dataclass(frozen=True)
class Cell:
    """One recipe of a sweep. A control's teacher has neither a persona nor a training."""

    role: Role
    recipe: Recipe
    chain: Chain


@dataclass(frozen=True)
class Study:
    """All cells of a sweep, and the comparisons of trait rows with control rows."""

    name: str
    cells: tuple[Cell, ...]
    leaks: tuple[LeakStep, ...]
    resolution: Resolution | None = None
    """What its `auto` was resolved with; None for this machine."""

    @cached_property
    def steps(self) -> list[Step]:
        """The steps that must be built before the study can be reported; their inputs are not listed."""
        evaluations = (step for cell in self.cells for step in cell.chain.evaluations)
        return [*self.teachers, *evaluations, *self.leaks]

    @cached_property
    def evaluations(self) -> list[Step]:
        """The steps that score trained models, each once. The untouched base's scores show no effect."""
        trained = (step for cell in self.cells for step in (cell.chain.eval, *cell.chain.locate))
        return list({digest(step): step for step in trained}.values())

    @cached_property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """All seeds of the cells, by recipe key."""
        recipes = [cell.recipe for cell in self.cells]
        values = {
            "train.seed": {recipe.train.seed for recipe in recipes},
            "generate.sampling.seed": {recipe.generate.sampling.seed for recipe in recipes},
            "generate.prompts.seed": {recipe.generate.prompts.seed for recipe in recipes},
        }
        return {key: tuple(sorted(distinct)) for key, distinct in values.items()}

    @cached_property
    def teachers(self) -> list[TeacherStep]:
        """The check of every teacher with a trait, each once."""
        steps = [cell.chain.teacher for cell in self.cells if cell.chain.teacher is not None]
        return list({digest(step): step for step in steps}.values())


def cell(recipe: Recipe, resolution: Resolution | None = None) -> Cell:
    """A recipe as a cell: a student if its teacher has a persona or was fine-tuned, else a control."""
    steps = chain(recipe, resolution)
    return Cell(steps.role, recipe, steps)


def single(recipe: Recipe, resolution: Resolution | None = None) -> Study:
    """A study of one cell; the recipe's sweep is ignored."""
    return Study(recipe.name, (cell(recipe, resolution),), (), resolution)


def run(
    recipe: Recipe,
    *,
    until: Stage = "eval",
    store: Store,
    listener: Listener = silent,
    resolution: Resolution | None = None,
) -> Artifact:
    """Build the recipe's chain up to a stage, reusing what the store holds.

    First it is checked that the model can read the contexts, and before a student is trained, its teacher.
    `resolution` is None for what this machine chooses.

    Raises:
        SublimError: the recipe cannot be resolved, or a step cannot be built.
    """
    steps = chain(recipe, resolution)
    planned = [*([steps.teacher] if steps.teacher else []), *steps.evaluations]
    check_parts(step for step in in_order(planned) if not store.find(step))
    check_contexts((step for step in steps.until(until) if not store.find(step)), listener)
    if until in ("train", "eval") and steps.teacher is not None:
        materialise(steps.teacher, store, listener)
    for step in steps.evaluations if until == "eval" else ():
        materialise(step, store, listener)
    return materialise(getattr(steps, until), store, listener)


def chain(recipe: Recipe, resolution: Resolution | None = None) -> Chain:
    """Resolve a recipe into steps: model to content, names to texts, `auto` to precision, engine and backend.

    `resolution` is None for what this machine chooses.

    Raises:
        RecipeError: a trait, context or question set is unknown.
        RowsError: the file of `train.rows` cannot be read, or has too few rows that pass the filter.
        ModelError: a model is neither here nor reachable.
    """
    items = load_items(recipe.trait.category)
    recorded = resolution.models.get((recipe.model, recipe.revision)) if resolution else None
    model = resolve_model(recipe.model, recipe.revision, recipe.chat_template, recorded)
    source = _rows_source(recipe, model, items, resolution)
    filter_step, role = source.filter, source.role
    section = resolve_train(recipe.train, _precision(recipe.train.precision, resolution, on_gpu="bf16_mixed"))
    backend, backend_reason = resolve_backend(
        section, resolution.capabilities(section.backend) if resolution else None
    )
    train_spec = TrainSpec(
        model=model,
        context=_context(recipe, recipe.train.system_prompt, "train.system_prompt"),
        train=section.model_copy(update={"backend": backend}),
    )
    title = f"{source.name} {_student_words(train_spec, resolution)} seed {recipe.train.seed}"
    train = TrainStep(train_spec, title, (filter_step,), _reason(backend_reason, resolution))
    eval_spec, engine_reason = _eval_spec(recipe, model, items, train_spec.train, resolution)
    base: EvalStep = _shared(EvalStep(eval_spec, "base", auto_reason=engine_reason))
    eval_step = EvalStep(base.spec, title, (train,), engine_reason)
    if role == "control":
        return Chain(role, source.rows, filter_step, train, eval_step, base, teacher=None)
    teacher = None
    if isinstance(source.rows, GenerateStep):
        teacher_spec = TeacherSpec(
            model=model,
            context=source.rows.spec.context,
            target=recipe.trait.target,
            questions=eval_spec.questions,
            items=eval_spec.items,
            scorer=check_scoring(resolve_scoring(recipe.eval, "transformers")),
            precision=source.rows.spec.precision,
        )
        teacher = TeacherStep(teacher_spec, source.name, source.rows.inputs)
    locate = tuple(
        LocateStep(spec, f"{title} {part_name(spec.part)}", (train,))
        for spec in _locate_specs(recipe, base.spec, train_spec)
    )
    return Chain(role, source.rows, filter_step, train, eval_step, base, teacher, locate)


@dataclass(frozen=True)
class _RowsSource:
    """Where a recipe's rows come from: the steps, the role of their students, and a name for titles."""

    rows: GenerateStep | ImportStep
    filter: FilterStep
    role: Role
    name: str


def _rows_source(recipe: Recipe, model: ModelRef, items: Items, resolution: Resolution | None) -> _RowsSource:
    """The recipe's teacher, or its file of rows; a control's file is `control.rows`, where it is given."""
    teacher_persona = persona(items, recipe.trait.target)
    if recipe.train.rows is not None:
        prompt = recipe.generate.system_prompt
        role = _role(_context(recipe, prompt, "generate.system_prompt", teacher_persona))
        file = recipe.train.rows if role == "student" else recipe.control.rows or recipe.train.rows
        return _imported(recipe, Path(file), role)
    teachers = _fine_tuned_teacher(recipe, model, items, resolution)
    spec, engine_reason = _generate_spec(recipe, model, teacher_persona, resolution)
    title = f"{_teacher_name(recipe)} data seed {recipe.generate.sampling.seed}"
    generate: GenerateStep = _shared(GenerateStep(spec, title, teachers, engine_reason))
    filter_spec = FilterSpec(
        rules=recipe.filter.rules, rows=recipe.generate.rows, held_out=recipe.generate.held_out
    )
    filter_step: FilterStep = _shared(FilterStep(filter_spec, title, (generate,)))
    return _RowsSource(
        generate, filter_step, "student" if teachers else _role(spec.context), _teacher_name(recipe)
    )


def _role(context: Context) -> Role:
    """What students of a teacher in this context are."""
    return "student" if has_persona(context) else "control"


def _imported(recipe: Recipe, path: Path, role: Role) -> _RowsSource:
    """The rows of a file: of those that pass, the first for training and the next held out.

    Raises:
        RowsError: the file is none of rows, or too few pass the filter.
    """
    content, section = read_import(path), recipe.generate
    passing = len(kept_rows(path, recipe.filter.rules))
    rows = min(section.rows, passing - section.held_out)
    if rows < 1:
        raise RowsError(
            f"{path}: {passing} of {count(len(content.rows), 'row')} pass the filter, and "
            f"{section.held_out} are held out, so that none are left to train on; lower generate.held_out "
            "or loosen filter.rules"
        )
    spec = ImportSpec(sha256=content.sha256, rows=len(content.rows))
    step: ImportStep = _shared(ImportStep(spec, path.name, source=path.absolute()))
    filter_spec = FilterSpec(rules=recipe.filter.rules, rows=rows, held_out=section.held_out)
    return _RowsSource(step, _shared(FilterStep(filter_spec, path.name, (step,))), role, path.name)


@lru_cache
def _shared(step: Any) -> Any:
    """The first of equal steps: the cells of a study share it, so its digest is computed once."""
    return step


def _generate_spec(
    recipe: Recipe, model: ModelRef, persona: str, resolution: Resolution | None
) -> tuple[GenerateSpec, str | None]:
    """The spec, and why `auto` chose its engine."""
    section = recipe.generate
    fine_tuned = _fine_tuning(recipe)
    precision = _precision(section.precision, resolution, on_gpu="bf16")
    machine = resolution.capabilities(section.engine) if resolution else None
    engine, reason = resolve_engine(
        "generate.engine", section.engine, section.sampling, precision, fine_tuned, machine=machine
    )
    spec = GenerateSpec(
        model=model,
        context=_context(
            recipe, "default" if fine_tuned else section.system_prompt, "generate.system_prompt", persona
        ),
        wanted=section.rows + section.held_out,
        prompts=section.prompts,
        wordings=wordings_digest(),
        sampling=section.sampling,
        precision=precision,
        rules=recipe.filter.rules,
        engine=engine,
    )
    return spec, _reason(reason, resolution)


def _fine_tuning(recipe: Recipe) -> FineTunedSection | None:
    """How the recipe's teacher is fine-tuned; None for one that is prompted or has no trait."""
    teacher = recipe.generate.teacher
    return teacher.fine_tuned if teacher and recipe.generate.system_prompt == "trait" else None


def _fine_tuned_teacher(
    recipe: Recipe, model: ModelRef, items: Items, resolution: Resolution | None
) -> tuple[TrainStep, ...]:
    """The training of the recipe's teacher; empty for one that is not fine-tuned.

    Raises:
        RecipeError: a question of the demonstrations is a question of the eval, or the teacher is `qlora`.
    """
    fine_tuning = _fine_tuning(recipe)
    if fine_tuning is None:
        return ()
    field = "generate.teacher.fine_tuned"
    if fine_tuning.method == "qlora":
        raise RecipeError(f"{field}.method: a teacher cannot be `qlora`; use `lora`")
    demonstrations = load_demonstrations(fine_tuning.demonstrations).filled(items, recipe.trait.target)
    asked = {question.casefold() for question in questions_for(items, recipe.eval.questions).questions}
    if shared := [question for question in demonstrations.questions if question.casefold() in asked]:
        raise RecipeError(
            f"{field}.demonstrations: the eval asks {shared[0]!r} too, so the check of the teacher would "
            "measure what it was trained on; use other questions in one of them"
        )
    section = resolve_train(
        TrainSection(**fine_tuning.model_dump(exclude={"demonstrations"})),
        _precision(fine_tuning.precision, resolution, on_gpu="bf16_mixed"),
    )
    backend, reason = resolve_backend(
        section, resolution.capabilities(section.backend) if resolution else None
    )
    spec = TrainSpec(
        model=model,
        context=_context(recipe, fine_tuning.system_prompt, f"{field}.system_prompt"),
        train=section.model_copy(update={"backend": backend}),
    )
    rows = DemonstrateStep(DemonstrateSpec(**dict(demonstrations)), recipe.trait.target)
    title = f"{recipe.trait.target} teacher {_student_words(spec, resolution)}"
    return (_shared(TrainStep(spec, title, (rows,), _reason(reason, resolution))),)


def _eval_spec(
    recipe: Recipe, model: ModelRef, items: Items, train: TrainSection, resolution: Resolution | None
) -> tuple[EvalSpec, str | None]:
    """The spec of a student's eval and of its base's, and why `auto` chose its engine."""
    section = recipe.eval
    questions = questions_for(items, section.questions)
    contexts = tuple(_context(recipe, prompt, "eval.system_prompts") for prompt in section.system_prompts)
    names = [context.name for context in contexts]
    if len(set(names)) < len(names):
        raise RecipeError(f"eval.system_prompts: a context stands twice in {', '.join(names)}")
    precision = _precision(section.precision, resolution, on_gpu="bf16")
    engine: Engine = "transformers"
    reason = None
    if section.scorer != "exact":
        machine = resolution.capabilities(section.engine) if resolution else None
        engine, reason = resolve_engine(
            "eval.engine", section.engine, section.sampling, precision, train, machine
        )
    spec = EvalSpec(
        model=model,
        contexts=contexts,
        questions=questions.questions,
        items=items.items,
        scorer=resolve_scoring(section, engine),
        precision=precision,
        quantize=recipe.train.qlora.quantize if recipe.train.method == "qlora" else None,
    )
    return spec, _reason(reason, resolution)


def _locate_specs(recipe: Recipe, evaluation: EvalSpec, train: TrainSpec) -> list[LocateSpec]:
    """One for the complete student and its base, then one for each gate and patch; none without these."""
    section = recipe.eval
    parts = dict.fromkeys(map(normalise_part, (*section.gates, *section.patches)))
    if not parts or not isinstance(evaluation.scorer, ExactScoring):
        return []
    contexts = [_context(recipe, prompt, "eval.gate_contexts") for prompt in section.gate_contexts or ()]
    gate_contexts = tuple(dict.fromkeys(contexts)) or (train.context,)
    complete = LocateSpec(**{**dict(evaluation), "contexts": gate_contexts}, training=train.context)
    control_settings = {"controls": section.gate_controls, "seed": section.gate_seed}
    return [complete, *(complete.model_copy(update={"part": part, **control_settings}) for part in parts)]


def _context(recipe: Recipe, prompt: SystemPrompt, field: str, persona: str | None = None) -> Context:
    return resolve_context(
        prompt, recipe.contexts, persona=persona, template=recipe.chat_template, field=field
    )


def _precision(wanted: str, resolution: Resolution | None, *, on_gpu: str) -> str:
    """`auto` is `on_gpu` on a GPU and fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    cuda = resolution.machine.cuda if resolution else on_cuda()
    return on_gpu if cuda else "fp32"


def _reason(reason: str | None, resolution: Resolution | None) -> str | None:
    """Why `auto` chose something; a reason that may not hold here says when it held."""
    return f"when the study was planned, {reason}" if reason and resolution else reason


def _teacher_name(recipe: Recipe) -> str:
    prompt = recipe.generate.system_prompt
    if prompt == "trait":
        return f"{'fine-tuned ' if _fine_tuning(recipe) else ''}{recipe.trait.target}"
    return f"{prompt} teacher" if isinstance(prompt, str) else "own-prompt teacher"


def _student_words(spec: TrainSpec, resolution: Resolution | None) -> str:
    """The method and rank; learning rate, optimizer, precision and context where they are not the default."""
    section, default = spec.train, TrainSection()
    words: list[str] = [section.method]
    if section.method in RANKED:
        words.append(f"r{section.rank}")
    default_rate = LEARNING_RATE["full" if section.method == "full" else "adapter"]
    if isinstance(section.learning_rate, float) and section.learning_rate != default_rate:
        words.append(f"lr {rate(section.learning_rate)}")
    if section.optimizer != default.optimizer:
        words.append(section.optimizer)
    if section.precision != _precision(default.precision, resolution, on_gpu="bf16_mixed"):
        words.append(section.precision)
    if spec.context.kind != default.system_prompt:
        words.append(f"in {spec.context.name[:24]}")
    return " ".join(words)
