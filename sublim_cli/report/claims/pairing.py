"""Which runs a claim is about: what was planned of them, what there is, what they are paired with. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sublim_cli.recipe.schema import AdapterClaim, ClaimSection
from sublim_cli.report.rates.choose import Grid, grid_of
from sublim_cli.report.tables.conditions import Condition, Run, condition_of
from sublim_cli.stats import Estimate, Interval, Seeds, mean_of, two_way_interval
from sublim_cli.wording import condition_label, count, listed, rate

Values = dict[Seeds, Run | None]
"""The runs of one cell by (train seed, data seed); None where a run is broken or not built."""

Answers = Callable[[Run], Sequence[float]]
"""P(target) of a run for every question, in their order; empty where it is not known."""

Effects = dict[Seeds, tuple[float, ...]]
"""For the seeds of runs their effect on every question."""

_Training = tuple[Any, ...]


def unasked(run: Run) -> tuple[float, ...]:
    """The answers to questions where none are at hand."""
    return ()


@dataclass(frozen=True)
class Place:
    """Where runs are looked at: students or controls of a trait, trained and asked in two contexts."""

    target: str
    trained: str
    asked: str

    @property
    def where(self) -> str:
        """The two contexts in words."""
        if self.trained == self.asked:
            return f"trained and asked in {self.trained}"
        return f"trained in {self.trained} and asked in {self.asked}"

    def __str__(self) -> str:
        return f"{self.target}, trained in {self.trained} and asked in {self.asked}"


Placed = Mapping[tuple[str, Place], Mapping[Condition, Sequence[Run]]]
"""The rows of a runs table by role and place, then by condition."""


def placed(runs: Iterable[Run]) -> Placed:
    """The rows of a runs table as every claim looks them up."""
    found: dict[tuple[str, Place], dict[Condition, list[Run]]] = {}
    for run in runs:
        place = Place(run["target"], run["train_context"] or "", run["eval_context"])
        found.setdefault((run["role"], place), {}).setdefault(condition_of(run), []).append(run)
    return found


@dataclass
class Plan:
    """All runs and, as cells of them are asked for, an account of those that a claim needs."""

    placed: Placed
    answers: Answers = unasked
    lacks: dict[str, None] = field(default_factory=dict)
    """What the study or the store does not hold, in words."""
    planned: set[_Training] = field(default_factory=set)
    """Trainings. One that is asked in several contexts counts once."""
    broken: set[_Training] = field(default_factory=set)
    missing: set[_Training] = field(default_factory=set)

    @property
    def data_seeds(self) -> set[object]:
        """The seeds of the data sets that the trainings learned from."""
        return {training[-1] for training in self.planned}

    def traits(self, claim: ClaimSection) -> list[str]:
        """The traits a claim is about, by name."""
        students = {place.target for role, place in self.placed if role == "student"}
        if not students:
            self.lack("any student")
        return sorted(claim.traits or students)

    def contexts(self, claim: AdapterClaim, target: str, rank: int) -> dict[str, list[str]]:
        """The contexts in which a trait's adapters of a rank were trained, and where each was asked."""
        found: dict[str, list[str]] = {}
        for role, place in sorted(self.placed, key=lambda key: (key[0], key[1].trained, key[1].asked)):
            conditions = self.placed[role, place]
            mine = role == "student" and place.target == target
            if mine and any(_fits(claim, one, rank) for one in conditions):
                found.setdefault(place.trained, []).append(place.asked)
        return found

    def ranks(self, claim: AdapterClaim, place: Place) -> list[int]:
        """The ranks a claim finds students of, ascending."""
        conditions = self.placed.get(("student", place), {})
        return sorted(
            {one.rank for one in conditions if one.rank is not None and _fits(claim, one, one.rank)}
        )

    def full(self, place: Place) -> list[Condition]:
        """The conditions of full fine-tuning, in the report's order."""
        conditions = self.placed.get(("student", place), {})
        found = sorted((one for one in conditions if one.method == "full"), key=lambda one: one.order)
        if not found:
            self.lack(f"full fine-tuning on {place}")
        return found

    def adapters(self, claim: AdapterClaim, place: Place, rank: int) -> tuple[Condition, Values] | None:
        """The students of one rank that fit a claim; None, and noted as lacking, unless that is one cell."""
        found = [one for one in self.placed.get(("student", place), {}) if _fits(claim, one, rank)]
        label = f"{condition_label('student', 'lora', rank)} on {place}"
        if len(found) == 1:
            return found[0], self.values("student", place, found[0])
        self.lack(f"{label}: {_choice(found)}" if found else label)
        return None

    def grid(self, claim: AdapterClaim, place: Place) -> Grid:
        """The students that fit a claim, at every rank and learning rate those of one kind."""
        kinds: dict[tuple[int, float | None], list[Condition]] = {}
        for one in self.placed.get(("student", place), {}):
            if one.rank is not None and _fits(claim, one, one.rank):
                kinds.setdefault((one.rank, one.learning_rate), []).append(one)
        for (rank, _), (first, *others) in kinds.items():
            self.values("student", place, first, in_grid=True)
            if others:
                label = condition_label("student", "lora", rank, [f"lr {rate(first.learning_rate)}"])
                self.lack(f"{label} on {place}: {_choice([first, *others])}")
        firsts = [kind[0] for kind in kinds.values()]
        return grid_of([run for one in firsts for run in self.placed["student", place][one]], "rank")

    def control(self, place: Place, like: Condition) -> Values | None:
        """The control students beside a condition: the only ones there are, or those most like it."""
        found = list(self.placed.get(("control", place), {}))
        for alike in (_same_settings, _same_student):
            if len(found) > 1:
                found = [one for one in found if alike(one, like)]
        if len(found) == 1:
            return self.values("control", place, found[0])
        self.lack(f"one control to compare with: students of a teacher without the trait, for {place}")
        return None

    def values(self, role: str, place: Place, condition: Condition, *, in_grid: bool = False) -> Values:
        """The runs of one cell; those that were not built go to `lacks`, with what tells a cell of a grid."""
        runs = self.placed[role, place][condition]
        absent = sum(run["p_target"] is None for run in runs)
        tuning = [f"lr {rate(condition.learning_rate)}", condition.precision]
        told = tuning if in_grid or condition.method == "full" else []
        label = condition_label(role, condition.method, condition.rank, told)
        if absent:
            self.lack(f"{absent} of {count(len(runs), 'run')} of {label} on {place}")
        found: Values = {}
        for run in runs:
            training = _training(run)
            seeds = (run["train_seed"], run["data_seed"])
            if seeds in found:
                self.lack(f"a way to tell runs of {label} on {place} apart: two have the same seeds")
            self.planned.add(training)
            if run["broken"]:
                self.broken.add(training)
            if run["p_target"] is None:
                self.missing.add(training)
            fit = run["p_target"] is not None and not run["broken"]
            found[seeds] = run if fit else None
        return found

    def lack(self, what: str) -> None:
        """Note that something a claim needs is not there."""
        self.lacks.setdefault(what)

    def paired(self, values: Values, control: Values, place: Place) -> dict[Seeds, float]:
        """Runs minus the controls of the same seeds, where neither is broken."""
        if alone := [seeds for seeds in values if seeds not in control]:
            written = listed([f"{train} (data seed {data})" for train, data in sorted(alone)])
            self.lack(f"controls of the same seeds as the students of {place}: train seed {written}")
        return {
            seeds: one["p_target"] - other["p_target"]
            for seeds, one in values.items()
            if one is not None and (other := control.get(seeds)) is not None
        }

    def by_question(self, values: Values, control: Values) -> Effects:
        """Runs minus the controls of the same seeds on every question, where both are known."""
        return minus(self._answered(values), self._answered(control))

    def _answered(self, values: Values) -> Effects:
        return {
            seeds: tuple(found)
            for seeds, run in values.items()
            if run is not None and (found := self.answers(run))
        }

    def base(self, values: Values, place: Place) -> Estimate:
        """The mean difference of runs and the untouched base, asked in the same context."""
        runs = {seeds: one for seeds, one in values.items() if one is not None}
        if any(one["p_target_base"] is None for one in runs.values()):
            self.lack(f"the untouched base asked for {place.target} in {place.asked}")
            return mean_of({})
        return mean_of({seeds: one["p_target"] - one["p_target_base"] for seeds, one in runs.items()})


def minus(effects: Effects, others: Effects) -> Effects:
    """Question by question, for the seeds that both have."""
    return {
        seeds: tuple(one - other for one, other in zip(effects[seeds], others[seeds], strict=True))
        for seeds in effects
        if seeds in others
    }


def over_questions(effects: Effects, level: float) -> Interval | None:
    """The mean effect with an interval for new runs and new questions; None where too few are known."""
    if not effects:
        return None
    ordered = sorted(effects)
    found = two_way_interval(np.array([effects[one] for one in ordered]), ordered, level)
    return found if found.low is not None else None


def _training(run: Run) -> _Training:
    """What tells one training from another; a control's is the same for every trait it is asked about."""
    target = None if run["role"] == "control" else (run["category"], run["target"])
    return target, condition_of(run), run["train_seed"], run["data_seed"]


def _fits(claim: AdapterClaim, one: Condition, rank: int) -> bool:
    return (one.method, one.rank) == ("lora", rank) and all(
        wanted is None or wanted == there
        for wanted, there in (
            (claim.learning_rate, one.learning_rate),
            (claim.precision, one.precision),
            (claim.settings, one.settings),
        )
    )


def _choice(found: Sequence[Condition]) -> str:
    """What a claim has to name so that one of several conditions is meant."""
    keys = {
        "learning_rate": sorted({rate(one.learning_rate) for one in found}),
        "precision": sorted({one.precision for one in found}),
        "settings": sorted({one.settings for one in found}),
    }
    open_keys = [f"`{key}` ({listed(values)})" for key, values in keys.items() if len(values) > 1]
    return f"there are {len(found)} kinds; the claim must name its {listed(open_keys) or 'own'}"


def _same_settings(one: Condition, like: Condition) -> bool:
    return one.settings == like.settings


def _same_student(one: Condition, like: Condition) -> bool:
    mine = (one.method, one.rank, one.learning_rate, one.precision)
    return mine == (like.method, like.rank, like.learning_rate, like.precision)
