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
from sublim_cli.report.rates.choose import Grid, grid_of
from sublim_cli.report.tables.runs import Condition, Run
from sublim_cli.stats import Estimate, Interval, Seeds, mean_of, two_way_interval
from sublim_cli.wording import condition_label, count, listed, rate

Effects = Mapping[Seeds, tuple[float, ...]]
"""The effect of each run on every question, by seeds."""

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
    base_error: float = 0.0
    """The largest standard error of a base's P(target). All runs share it, so their spread does not show it;
    that of students and controls is part of their spread."""

    @staticmethod
    def joined(parts: Sequence["Basis"]) -> "Basis":
        """All of several, every lack once and in their order."""
        return Basis(
            tuple(dict.fromkeys(lack for part in parts for lack in part.lacks)),
            frozenset().union(*(part.planned for part in parts)),
            frozenset().union(*(part.broken for part in parts)),
            frozenset().union(*(part.missing for part in parts)),
            max((part.unresolved for part in parts), default=0.0),
            max((part.base_error for part in parts), default=0.0),
        )


@dataclass(frozen=True)
class CellRuns:
    """The runs of one condition in one setting, by (train seed, data seed)."""

    condition: Condition
    runs: Mapping[Seeds, Run]
    """Those that are built and did not break."""
    p_target: Mapping[Seeds, float | None]
    """P(target) of all that are planned, None where a run is broken or not built."""
    basis: Basis

    @property
    def answers(self) -> Effects:
        """P(target) of each question, of the runs of which it is known."""
        return {seeds: run.answers for seeds, run in self.runs.items() if run.answers}


@dataclass(frozen=True)
class Comparison:
    """Students of one condition in one setting, compared with their controls and their base."""

    setting: TraitSetting
    condition: Condition
    effects: Mapping[Seeds, float]
    """P(target) minus that of the control of the same seeds, where neither is broken."""
    answers: Effects
    """The same, question by question, where the answers of both are known."""
    base: Estimate
    """The mean of P(target) minus that of the untouched base in the same context."""


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
        p_target = {seeds: None if run.broken else run.p_target for seeds, run in by_seeds.items()}
        missing = [run for run in runs if run.p_target is None]
        lacks = []
        if missing:
            lacks.append(f"{len(missing)} of {count(len(runs), 'run')} of {label}")
        if len(p_target) < len(runs):
            lacks.append(f"a way to tell runs of {label} apart: two have the same seeds")
        used = {seeds: run for seeds, run in by_seeds.items() if p_target[seeds] is not None}
        unresolved = [(run.unresolved or 0.0, run.unresolved_base or 0.0) for run in used.values()]
        return CellRuns(
            condition,
            runs=used,
            p_target=p_target,
            basis=Basis(
                tuple(lacks),
                planned=frozenset(map(_training, runs)),
                broken=frozenset(_training(run) for run in runs if run.broken),
                missing=frozenset(map(_training, missing)),
                unresolved=max(map(max, unresolved), default=0.0),
                base_error=max((run.p_error_base or 0.0 for run in used.values()), default=0.0),
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

    def grid(self, claim: AdapterClaim, setting: TraitSetting) -> tuple[Grid, Basis]:
        """The students that fit a claim at every rank and learning rate; of several conditions the first."""
        conditions: dict[tuple[int, float | None], list[Condition]] = {}
        for condition in self._students(setting):
            if condition.rank is not None and _fits(claim, condition, condition.rank):
                conditions.setdefault((condition.rank, condition.learning_rate), []).append(condition)
        bases: list[Basis] = []
        runs: list[Run] = []
        for (rank, learning_rate), alike in conditions.items():
            bases.append(self.cell("student", setting, alike[0], name_rate=True).basis)
            runs += self._cells["student", setting][alike[0]]
            if len(alike) > 1:
                label = condition_label("student", "lora", rank, [f"lr {rate(learning_rate)}"])
                bases.append(Basis((f"{label} on {setting}: {_choice(alike)}",)))
        return grid_of(runs, "rank"), Basis.joined(bases)

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

    def adapters_compared(
        self, claim: AdapterClaim, setting: TraitSetting, rank: int
    ) -> tuple[Comparison | None, Basis]:
        """The students of one rank that fit a claim with their controls; None where either is missing."""
        students, basis = self.adapters(claim, setting, rank)
        if students is None:
            return None, basis
        control, control_basis = self.control(setting, students.condition)
        if control is None:
            return None, Basis.joined([basis, control_basis])
        compared, lacking = compare(setting, students, control)
        return compared, Basis.joined([basis, control_basis, lacking])

    def _students(self, setting: TraitSetting) -> Iterable[Condition]:
        return self._cells.get(("student", setting), {})


def compare(setting: TraitSetting, students: CellRuns, control: CellRuns) -> tuple[Comparison, Basis]:
    """Compare students with controls; also what of the controls and the base is missing."""
    lacks = []
    if unpaired := sorted(seeds for seeds in students.p_target if seeds not in control.p_target):
        seeds_text = listed([f"{train} (data seed {data})" for train, data in unpaired])
        lacks.append(f"controls of the same seeds as the students of {setting}: train seed {seeds_text}")
    effects = {
        seeds: value - other
        for seeds, value in students.p_target.items()
        if value is not None and (other := control.p_target.get(seeds)) is not None
    }
    differences = {
        seeds: run.p_target - run.p_target_base
        for seeds, run in students.runs.items()
        if run.p_target is not None and run.p_target_base is not None
    }
    if len(differences) < len(students.runs):
        lacks.append(f"the untouched base asked for {setting.target} in {setting.asked}")
        differences = {}
    answers = minus(students.answers, control.answers)
    compared = Comparison(setting, students.condition, effects, answers, mean_of(differences))
    return compared, Basis(tuple(lacks))


def minus(effects: Effects, others: Effects) -> Effects:
    """The difference question by question, for the seeds that both have."""
    return {
        seeds: tuple(effect - other for effect, other in zip(effects[seeds], others[seeds], strict=True))
        for seeds in effects
        if seeds in others
    }


def over_questions(effects: Effects, level: float) -> Interval | None:
    """The mean effect with an interval for new runs and new questions; None where there are too few."""
    if not effects:
        return None
    ordered = sorted(effects)
    interval = two_way_interval(np.array([effects[seeds] for seeds in ordered]), ordered, level)
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
