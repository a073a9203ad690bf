"""The runs of a study: every model in every context it is asked in, compared with its base there.

    runs = study_runs(study, varied_keys(study.cells), reader, trainings)

The fields of `Run` are the columns of `results.parquet`; `tables.frames` derives their types from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study
from sublim_cli.preference.score import broken_reason
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.report.tables.reader import ContextScores, Losses, StoreReader, TrainingRecord
from sublim_cli.report.tables.varied_keys import base_settings, settings_text, varied_keys
from sublim_cli.stats import LEAST_GUARD, Seeds, log_odds
from sublim_cli.steps.generate import GenerateSpec
from sublim_cli.trainers.methods import alpha
from sublim_cli.wording import rate

SPREAD_RUNS = 200
"""Students whose scores a plan reads to estimate the spread between runs. A standard deviation of 200 values
has a relative standard error of 0.05: 1 / sqrt(2 · 199)."""

_ROLES = ("base", "control", "student")
_METHODS = ("", "lora", "full")


@dataclass(frozen=True)
class Condition:
    """What replicates have in common: everything but their seeds."""

    role: str
    method: str = ""
    rank: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None
    precision: str = ""
    train_context: str = ""
    settings: str = ""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.order)  # taken a few times for each run of each simulated study

    @property
    def order(self) -> tuple[Any, ...]:
        """A sort key: base, control, ranks ascending, full."""
        return (
            _ROLES.index(self.role),
            _METHODS.index(self.method) if self.method in _METHODS else len(_METHODS),
            self.rank or 0,
            self.alpha or 0.0,
            self.learning_rate or 0.0,
            self.precision,
            self.train_context,
            self.settings,
        )


_condition = lru_cache(maxsize=None)(Condition)  # simulated studies ask for the same few a million times
_condition_columns = attrgetter(*(f.name for f in fields(Condition)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedModel:
    """The columns that say which model a row is about and in which context it was asked."""

    name: str
    role: str  # base | control | student
    category: str
    target: str
    method: str = ""
    rank: int | None = None  # None for the base and for methods without one
    alpha: float | None = None
    learning_rate: float | None = None
    precision: str = ""
    train_context: str = ""
    train_seed: int | None = None
    data_seed: int | None = None
    settings: str = ""  # other recipe keys that differ within the study, as `train.epochs 3`
    eval_context: str

    @property
    def seeds(self) -> Seeds:
        """The seeds of training and data: runs that share one are not independent."""
        return self.train_seed, self.data_seed

    @property
    def condition(self) -> Condition:
        """The condition the model is a replicate of."""
        return _condition(*_condition_columns(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(AskedModel):
    """One model (student, control or base) in one eval context; None where nothing was measured."""

    p_target: float | None = None  # mean over questions
    p_target_base: float | None = None  # of the untouched base in this same context
    difference: float | None = None  # p_target minus p_target_base
    p_error: float | None = None  # standard error of p_target from drawn answers, 0 where it is computed
    p_error_base: float | None = None
    log_p: float | None = None  # log p_target, nats
    log_p_error: float | None = None  # its standard error from drawn answers: p_error / p_target
    log_p_base: float | None = None
    log_p_error_base: float | None = None
    log_form: float | None = None  # log P(the answer opens with the target's plain name), nats, mean
    log_form_base: float | None = None
    p_any: float | None = None  # P(the answer names any item), mean over questions
    p_any_base: float | None = None
    entropy: float | None = None  # of the answer, nats, over the items and one more outcome: none of them
    entropy_base: float | None = None
    number_loss: float | None = None  # nats per held-out number token
    number_loss_before: float | None = None
    trained_parameters: int | None = None
    changed: float | None = None  # share of the touched base weights that hold another number after training
    update_norm: float | None = None  # Frobenius norm of everything that was added to the weights
    stable_rank: float | None = None  # of the updates, mean weighted by squared norm
    unresolved: float | None = None  # probability of answers neither computed nor drawn: `p_any` may lack it
    unresolved_base: float | None = None
    guard: float | None = None  # P(target) is cut to [guard, 1 - guard] for its log-odds; None: 1e-6
    guard_base: float | None = None
    broken: str = ""  # why this preference cannot be read, or empty
    missing: str = ""  # why there is no value, or empty
    train_digest: str = ""
    eval_digest: str = ""
    answers: tuple[float, ...] = ()  # P(target) of each question in their order; no column of the table

    @property
    def log_odds(self) -> float | None:
        """Of `p_target`, the mean over questions.

        Not the mean over questions of log-odds: a question whose drawn answers never name the target has
        none, and questions with P near zero would decide that mean.
        """
        return None if self.p_target is None else log_odds(self.p_target, self.guard or LEAST_GUARD)


def study_runs(
    study: Study,
    keys: Sequence[Mapping[str, str]],
    reader: StoreReader,
    trainings: Mapping[str, TrainingRecord],
) -> list[Run]:
    """A run for every cell and context, and before the first cell of each base those of the base.

    `keys` are those of every cell, see `varied_keys`; `trainings` go by the digest of the train step.
    """
    runs: list[Run] = []
    bases: set[tuple[str, str, str]] = set()
    for cell, cell_keys in zip(study.cells, keys, strict=True):
        trait, base_step, step = cell.recipe.trait, cell.chain.base, cell.chain.eval
        base = reader.scores(base_step, trait.target)
        key = (trait.category, trait.target, digest(base_step))
        if key not in bases:
            bases.add(key)
            model: dict[str, Any] = {
                "name": "base",
                "role": "base",
                "category": trait.category,
                "target": trait.target,
                "settings": base_settings(cell_keys),
                "missing": reader.missing(base_step),
                "eval_digest": digest(base_step),
            }
            runs += [_run(model, context, base, base, Losses()) for context in base_step.spec.contexts]
        model = {
            **trained_model(cell, cell_keys),
            "eval_digest": digest(step),
            "missing": reader.missing(step),
        }
        if training := trainings.get(digest(cell.chain.train)):
            model |= {
                "trained_parameters": training.trained,
                "changed": training.changed,
                "update_norm": training.norm,
                "stable_rank": training.stable_rank,
            }
        scores, losses = reader.scores(step, trait.target), reader.losses(cell.chain.train)
        runs += [_run(model, context, scores, base, losses) for context in step.spec.contexts]
    return runs


def planned_runs(study: Study, reader: StoreReader) -> list[Run]:
    """A run for every cell and context, with the scores of the first `SPREAD_RUNS` cells that have any."""
    runs: list[Run] = []
    cells_read = 0
    for cell, cell_keys in zip(study.cells, varied_keys(study.cells), strict=True):
        target, step = cell.recipe.trait.target, cell.chain.eval
        scores = reader.scores(step, target) if cells_read < SPREAD_RUNS else {}
        cells_read += bool(scores)
        base = reader.scores(cell.chain.base, target) if scores else {}
        losses = reader.losses(cell.chain.train) if scores else Losses()
        model = {**trained_model(cell, cell_keys), "eval_digest": digest(step)}
        runs += [_run(model, context, scores, base, losses) for context in step.spec.contexts]
    return runs


def trained_model(cell: Cell, keys: Mapping[str, str]) -> dict[str, Any]:
    """What was trained: the columns of `AskedModel` and the train digest, as the recipe was resolved."""
    step = cell.chain.train
    train, drawn = step.spec.train, cell.chain.generate.spec
    ranked = train.method in RANKED
    return {
        "name": step.title,
        "role": cell.role,
        "category": cell.recipe.trait.category,
        "target": cell.recipe.trait.target,
        "method": train.method,
        "rank": train.rank if ranked else None,
        "alpha": alpha(train) if ranked else None,
        "learning_rate": train.learning_rate,
        "precision": train.precision,
        "train_context": step.spec.context.name,
        "train_seed": train.seed,
        "data_seed": drawn.sampling.seed if isinstance(drawn, GenerateSpec) else None,
        "settings": settings_text(keys),
        "train_digest": digest(step),
    }


def distinguishing(condition: Condition, conditions: set[Condition]) -> list[str]:
    """The parts that tell a condition from the others of its role and method, in words."""
    alike = [c for c in conditions if (c.role, c.method) == (condition.role, condition.method)]
    parts = [condition.settings] if condition.settings else []
    if len({c.learning_rate for c in alike}) > 1:
        parts.append(f"lr {rate(condition.learning_rate)}")
    if len({c.precision for c in alike}) > 1:
        parts.append(condition.precision)
    if len({c.train_context for c in alike}) > 1:
        parts.append(f"trained in {condition.train_context}")
    return parts


def _run(
    model: Mapping[str, Any],
    context: Context,
    scores: Mapping[str, ContextScores],
    base_scores: Mapping[str, ContextScores],
    losses: Losses,
) -> Run:
    """A model's values in one context compared with its base's in the same context."""
    student = scores.get(context.name, ContextScores())
    base = base_scores.get(context.name, ContextScores())
    values = {
        "difference": student.p_target - base.p_target,
        "number_loss": losses.after,
        "number_loss_before": losses.before,
    }
    for suffix, of in (("", student), ("_base", base)):
        for column in ("p_target", "p_error", "log_form", "p_any", "entropy", "unresolved"):
            values[f"{column}{suffix}"] = getattr(of, column)
        values[f"guard{suffix}"] = max(of.guard, LEAST_GUARD) if not math.isnan(of.guard) else math.nan
        if of.p_target > 0:  # an estimate may be 0 or less
            values[f"log_p{suffix}"] = math.log(of.p_target)
            values[f"log_p_error{suffix}"] = of.p_error / of.p_target
    measured: dict[str, Any] = {
        column: None if math.isnan(value) else value for column, value in values.items()
    }
    return Run(
        **model,
        **measured,
        eval_context=context.name,
        # What was not measured is NaN, and no comparison with NaN is true.
        broken=""
        if math.isnan(student.p_any)
        else broken_reason(student.p_any, base.p_any, losses.after, losses.before),
        answers=student.answers,
    )
