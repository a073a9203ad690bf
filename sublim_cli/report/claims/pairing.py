"""The runs that a claim compares: students with the controls of the same seeds, and with the base. Pure.

A lookup returns the runs together with a `Basis`: which trainings they are, and in words what of them is
lacking. A claim's rule collects the bases of its lookups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from sublim_cli.recipe.schema import AdapterClaim, ClaimSection
from sublim_cli.report.claims.effects import RunEffects
from sublim_cli.report.tables.runs import Condition, Run
from sublim_cli.stats import LEAST_GUARD, Interval, Seeds, log_odds, mean_known, two_way_interval
from sublim_cli.wording import condition_label, count, listed, rate

Answers = Mapping[Seeds, tuple[tuple[int, tuple[float, ...]], ...]]
"""By seeds the terms of a contrast of log-odds: a sign, 1 or -1, and P(target) of each question."""

Training = tuple[Any, ...]
"""What tells one training from another."""


class TraitSetting(NamedTuple):
    """A trait, the context its students and controls were trained in, and the one they were asked in."""

    target: str
    trained: str
    asked: str

    @property
    def contexts(self) -> str:
        """The two contexts in words."""
        if self.trained == self.asked:
            return f"trained and asked in {self.trained}"
        return f"trained in {self.trained} and asked in {self.asked}"

    def __str__(self) -> str:
        return f"{self.target}, trained in {self.trained} and asked in {self.asked}"


@dataclass(frozen=True)
class Basis:
    """The trainings planned for a comparison, those that broke or are missing, and what lacks.

    A training that is asked in several contexts counts once.
    """

    lacks: tuple[str, ...] = ()
    """What the study or the store does not hold, in words."""
    planned: frozenset[Training] = frozenset()
    broken: frozenset[Training] = frozenset()
    missing: frozenset[Training] = frozenset()
    unresolved: float = 0.0
    """The largest probability of answers that were neither computed nor drawn, of any of the models."""

    @staticmethod
    def joined(parts: Sequence["Basis"]) -> "Basis":
        """All of several, every lack once and in their order."""
        return Basis(
            tuple(dict.fromkeys(lack for part in parts for lack in part.lacks)),
            frozenset().union(*(part.planned for part in parts)),
            frozenset().union(*(part.broken for part in parts)),
            frozenset().union(*(part.missing for part in parts)),
            max((part.unresolved for part in parts), default=0.0),
        )


@dataclass(frozen=True)
class CellRuns:
    """The runs of one condition in one setting, by (train seed, data seed)."""

    condition: Condition
    runs: Mapping[Seeds, Run]
    """Those that are built and did not break."""
    planned: frozenset[Seeds]
    broken: frozenset[Seeds]
    basis: Basis


@dataclass(frozen=True)
class Levels:
    """Mean P(target) of students, controls and the untouched base in one setting; None where unknown."""

    students: float | None = None
    controls: float | None = None
    base: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Students of one condition in one setting, compared with their controls and their base."""

    setting: TraitSetting
    condition: Condition
    effects: RunEffects
    """Log-odds minus those of the control of the same seeds."""
    base: RunEffects
    """Log-odds minus those of the untouched base in the same context."""
    levels: Levels
    answers: Answers
    """Student and control, where the answers of both are known."""


class RunIndex:
    """The runs of a study by role and setting, then by condition."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._cells: dict[tuple[str, TraitSetting], dict[Condition, list[Run]]] = {}
        for run in runs:
            setting = TraitSetting(run.target, run.train_context, run.eval_context)
            conditions = self._cells.setdefault((run.role, setting), {})
            conditions.setdefault(run.condition, []).append(run)

    def traits(self, claim: ClaimSection) -> list[str]:
        """The traits a claim is about, by name."""
        return sorted(claim.traits or {setting.target for role, setting in self._cells if role == "student"})

    @property
    def students(self) -> Basis:
        """What every claim needs."""
        some = any(role == "student" for role, _ in self._cells)
        return Basis() if some else Basis(("any student",))

    def contexts(self, claim: AdapterClaim, target: str, rank: int) -> dict[str, list[str]]:
        """The contexts in which a trait's adapters of a rank were trained, and where each was asked."""
        contexts: dict[str, list[str]] = {}
        for (role, setting), conditions in sorted(self._cells.items(), key=lambda item: item[0]):
            fits = role == "student" and setting.target == target
            if fits and any(_fits(claim, condition, rank) for condition in conditions):
                contexts.setdefault(setting.trained, []).append(setting.asked)
        return contexts

    def ranks(self, claim: AdapterClaim, setting: TraitSetting) -> list[int]:
        """The ranks of the students that fit a claim, ascending."""
        conditions = self._students(setting)
        return sorted({c.rank for c in conditions if c.rank is not None and _fits(claim, c, c.rank)})

    def lora(self, setting: TraitSetting) -> list[Condition]:
        """The conditions of LoRA students, in the report's order."""
        return sorted((c for c in self._students(setting) if c.method == "lora"), key=attrgetter("order"))

    def full(self, setting: TraitSetting) -> list[Condition]:
        """The conditions of full fine-tuning, in the report's order."""
        return sorted((c for c in self._students(setting) if c.method == "full"), key=attrgetter("order"))

    def cell(
        self, role: str, setting: TraitSetting, condition: Condition, *, name_rate: bool = False
    ) -> CellRuns:
        """The runs of one cell. `name_rate`: learning rate and precision are named in what lacks."""
        runs = self._cells[role, setting][condition]
        tuning = [f"lr {rate(condition.learning_rate)}", condition.precision]
        parts = tuning if name_rate or condition.method == "full" else []
        label = f"{condition_label(role, condition.method, condition.rank, parts)} on {setting}"
        by_seeds = {run.seeds: run for run in runs}
        missing = [run for run in runs if run.p_target is None]
        lacks = []
        if missing:
            lacks.append(f"{len(missing)} of {count(len(runs), 'run')} of {label}")
        if len(by_seeds) < len(runs):
            lacks.append(f"a way to tell runs of {label} apart: two have the same seeds")
        used = {seeds: run for seeds, run in by_seeds.items() if run.p_target is not None and not run.broken}
        return CellRuns(
            condition,
            runs=used,
            planned=frozenset(by_seeds),
            broken=frozenset(seeds for seeds, run in by_seeds.items() if run.broken),
            basis=Basis(
                tuple(lacks),
                planned=frozenset(map(_training, runs)),
                broken=frozenset(_training(run) for run in runs if run.broken),
                missing=frozenset(map(_training, missing)),
                unresolved=max(
                    (max(run.unresolved or 0.0, run.unresolved_base or 0.0) for run in used.values()),
                    default=0.0,
                ),
            ),
        )

    def adapters(
        self, claim: AdapterClaim, setting: TraitSetting, rank: int
    ) -> tuple[CellRuns | None, Basis]:
        """The students of one rank that fit a claim; None unless they are of one condition."""
        fitting = [condition for condition in self._students(setting) if _fits(claim, condition, rank)]
        if len(fitting) == 1:
            cell = self.cell("student", setting, fitting[0])
            return cell, cell.basis
        label = f"{condition_label('student', 'lora', rank)} on {setting}"
        return None, Basis((f"{label}: {_choice(fitting)}" if fitting else label,))

    def grid(self, claim: AdapterClaim, setting: TraitSetting) -> tuple[dict[int, list[Condition]], Basis]:
        """The conditions of the students that fit a claim, by rank and then by learning rate, both ascending.

        Of several at one rank and learning rate the first is taken, and the basis says that there are
        several.
        """
        alike: dict[tuple[int, float], list[Condition]] = {}
        for condition in self.lora(setting):
            if condition.rank is not None and _fits(claim, condition, condition.rank):
                alike.setdefault((condition.rank, condition.learning_rate or 0.0), []).append(condition)
        bases: list[Basis] = []
        grid: dict[int, list[Condition]] = {}
        for (rank, learning_rate), conditions in sorted(alike.items()):
            grid.setdefault(rank, []).append(conditions[0])
            bases.append(self.cell("student", setting, conditions[0], name_rate=True).basis)
            if len(conditions) > 1:
                label = condition_label("student", "lora", rank, [f"lr {rate(learning_rate)}"])
                bases.append(Basis((f"{label} on {setting}: {_choice(conditions)}",)))
        return grid, Basis.joined(bases)

    def runs(self, setting: TraitSetting, conditions: Iterable[Condition]) -> list[Run]:
        """All students of these conditions."""
        return [run for condition in conditions for run in self._cells["student", setting][condition]]

    def control(self, setting: TraitSetting, student: Condition) -> tuple[CellRuns | None, Basis]:
        """The controls of a student condition: the only ones there are, or those most like it."""
        controls = list(self._cells.get(("control", setting), {}))
        if len(controls) > 1:
            controls = [control for control in controls if control.settings == student.settings]
        if len(controls) > 1:
            tuned_alike = attrgetter("method", "rank", "learning_rate", "precision")
            controls = [control for control in controls if tuned_alike(control) == tuned_alike(student)]
        if len(controls) == 1:
            cell = self.cell("control", setting, controls[0])
            return cell, cell.basis
        lack = f"one control to compare with: students of a teacher without the trait, for {setting}"
        return None, Basis((lack,))

    def control_alike(self, setting: TraitSetting, student: Condition) -> CellRuns | None:
        """The controls that were trained as the students of a condition, if the study has them."""
        alike = attrgetter("method", "rank", "learning_rate", "precision", "settings")
        controls = [
            control
            for control in self._cells.get(("control", setting), {})
            if alike(control) == alike(student)
        ]
        return self.cell("control", setting, controls[0]) if len(controls) == 1 else None

    def compared(self, setting: TraitSetting, student: Condition) -> tuple[Comparison | None, Basis]:
        """The students of a condition with their controls; None where there is no control."""
        students = self.cell("student", setting, student)
        control, basis = self.control(setting, student)
        if control is None:
            return None, Basis.joined([students.basis, basis])
        comparison, lacking = compare(setting, students, control)
        return comparison, Basis.joined([students.basis, basis, lacking])

    def adapters_compared(
        self, claim: AdapterClaim, setting: TraitSetting, rank: int
    ) -> tuple[Comparison | None, Basis]:
        """The students of one rank that fit a claim with their controls; None where either is missing."""
        students, basis = self.adapters(claim, setting, rank)
        return (None, basis) if students is None else self.compared(setting, students.condition)

    def _students(self, setting: TraitSetting) -> Iterable[Condition]:
        return self._cells.get(("student", setting), {})


def compare(setting: TraitSetting, students: CellRuns, control: CellRuns) -> tuple[Comparison, Basis]:
    """Compare students with controls; also what of the controls and the base is missing."""
    lacks = []
    if unpaired := sorted(students.planned - control.planned):
        seeds_text = listed([f"{train} (data seed {data})" for train, data in unpaired])
        lacks.append(f"controls of the same seeds as the students of {setting}: train seed {seeds_text}")
    pairs = {
        seeds: (run, control.runs[seeds]) for seeds, run in students.runs.items() if seeds in control.runs
    }
    broken = (students.broken | control.broken) & students.planned
    against_base, base_lacks = compare_with_base(setting, students)
    answers = {
        seeds: ((1, run.answers), (-1, other.answers))
        for seeds, (run, other) in pairs.items()
        if run.answers and other.answers
    }
    levels = Levels(
        mean_known(run.p_target for run, _ in pairs.values()),
        mean_known(other.p_target for _, other in pairs.values()),
        mean_known(run.p_target_base for run in students.runs.values()),
    )
    effects = _contrasts({seeds: _between(run, other) for seeds, (run, other) in pairs.items()}, broken)
    compared = Comparison(setting, students.condition, effects, against_base, levels, answers)
    return compared, Basis((*lacks, *base_lacks.lacks))


def compare_with_base(setting: TraitSetting, students: CellRuns) -> tuple[RunEffects, Basis]:
    """The log-odds of students minus those of the untouched base, with the base's error from draws."""
    based = {seeds: run for seeds, run in students.runs.items() if run.p_target_base is not None}
    if len(based) < len(students.runs):
        lack = f"the untouched base asked for {setting.target} in {setting.asked}"
        return RunEffects({}, {}, {}), Basis((lack,))
    error = max(
        (
            run.p_error_base / (cut * (1 - cut))
            for run in based.values()
            if run.p_error_base and (cut := _cut(run.p_target_base or 0.0, run.guard_base or LEAST_GUARD))
        ),
        default=0.0,
    )
    contrasts = {seeds: _above_base(run) for seeds, run in based.items()}
    return _contrasts(contrasts, students.broken, error), Basis()


@dataclass(frozen=True)
class _Known:
    """What is known of P(target): it lies between `p` and `p` + `unresolved`."""

    p: float
    unresolved: float
    guard: float


def _between(run: Run, other: Run) -> tuple[_Known, _Known]:
    """Two models that are compared, at one guard: the larger, so that none of them is cut alone."""
    return _known(run.p_target, run.unresolved, run.guard), _known(
        other.p_target, other.unresolved, other.guard
    )


def _above_base(run: Run) -> tuple[_Known, _Known]:
    return (
        _known(run.p_target, run.unresolved, run.guard),
        _known(run.p_target_base, run.unresolved_base, run.guard_base),
    )


def _known(p: float | None, unresolved: float | None, guard: float | None) -> _Known:
    return _Known(p or 0.0, unresolved or 0.0, guard or LEAST_GUARD)


def _contrasts(
    pairs: Mapping[Seeds, tuple[_Known, _Known]], broken: frozenset[Seeds], error: float = 0.0
) -> RunEffects:
    """The differences of log-odds within pairs, as measured and as far apart as the answers allow."""

    def difference(one: _Known, other: _Known, more: float, other_more: float) -> float:
        guard = max(one.guard, other.guard)
        return log_odds(one.p + more, guard) - log_odds(other.p + other_more, guard)

    return RunEffects(
        {seeds: difference(one, other, 0.0, 0.0) for seeds, (one, other) in pairs.items()},
        {seeds: difference(one, other, 0.0, other.unresolved) for seeds, (one, other) in pairs.items()},
        {seeds: difference(one, other, one.unresolved, 0.0) for seeds, (one, other) in pairs.items()},
        broken,
        error,
    )


def _cut(p: float, guard: float) -> float:
    return min(max(p, guard), 1 - guard)


def answers_minus(answers: Answers, others: Answers) -> Answers:
    """The contrast of two contrasts, for the seeds that both have."""
    return {
        seeds: (*answers[seeds], *((-sign, p) for sign, p in others[seeds]))
        for seeds in answers
        if seeds in others
    }


def over_questions(answers: Answers, level: float) -> Interval | None:
    """The mean contrast with an interval for new runs and new questions; None where there are too few."""
    if not answers:
        return None
    ordered = sorted(answers)
    signs = [sign for sign, _ in answers[ordered[0]]]
    p = np.array([[answers[seeds][term][1] for seeds in ordered] for term in range(len(signs))])
    interval = two_way_interval(p, signs, ordered, level)
    return interval if interval.low is not None else None


def _training(run: Run) -> Training:
    """A control's training is the same for every trait it is asked about."""
    trait = None if run.role == "control" else (run.category, run.target)
    return trait, run.condition, run.train_seed, run.data_seed


def _fits(claim: AdapterClaim, condition: Condition, rank: int) -> bool:
    return (
        (condition.method, condition.rank) == ("lora", rank)
        and claim.learning_rate in (None, condition.learning_rate)
        and claim.precision in (None, condition.precision)
        and claim.settings in (None, condition.settings)
    )


def _choice(conditions: Sequence[Condition]) -> str:
    """What a claim has to name so that one of several conditions is meant."""
    keys = {
        "learning_rate": sorted({rate(condition.learning_rate) for condition in conditions}),
        "precision": sorted({condition.precision for condition in conditions}),
        "settings": sorted({condition.settings for condition in conditions}),
    }
    open_keys = [f"`{key}` ({listed(values)})" for key, values in keys.items() if len(values) > 1]
    return f"there are {len(conditions)} kinds; the claim must name its {listed(open_keys) or 'own'}"
