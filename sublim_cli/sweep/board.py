"""How far each cell of a sweep is, from what a launcher reports. Pure: it keeps count and shows nothing."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import Literal

from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.events import Event, StepFailed, StepFinished, StepReused, StepStarted, SweepPlanned
from sublim_cli.pipeline import Study
from sublim_cli.sweep.launch import loads_model

State = Literal["waiting", "running", "done", "failed"]

STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")


@dataclass(frozen=True)
class Row:
    """One cell of the board: its name, and its steps with what each is called, in the order of building."""

    label: str
    steps: dict[str, str]


@dataclass
class Board:
    """Every cell's state, kept up by the events it is told."""

    rows: tuple[Row, ...]
    steps: tuple[Step, ...] = ()
    """All that the study is made of, inputs first."""
    clock: Callable[[], float] = time.monotonic
    missing: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Digest of a step to the first line of why it failed."""
    spent: dict[str, list[float]] = field(default_factory=dict)
    """The seconds that steps of each kind took."""
    began: float = 0.0

    def hear(self, event: Event) -> None:
        """Take note of one event."""
        match event:
            case SweepPlanned(missing):
                self.missing, self.began = set(missing), self.clock()
            case StepStarted(_, name):
                self.running.add(name)
            case StepFinished(_, name, _, seconds):
                self.spent.setdefault(self._kinds.get(name, ""), []).append(seconds)
                self._there(name)
            case StepReused(_, name):
                self._there(name)
            case StepFailed(_, name, reason):
                self.running.discard(name)
                self.failed[name] = reason.splitlines()[0]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {digest(step): step.kind for step in self.steps}

    def _there(self, name: str) -> None:
        self.running.discard(name)
        self.missing.discard(name)

    def left(self) -> float | None:
        """Seconds until all is built, at the pace so far.

        Steps differ a thousandfold, so their number says nothing of the time they take. None until a step
        was built of every kind to come that loads a model; the others are quick, and count once seen.
        """
        lost = set(self.failed)
        to_come: Counter[str] = Counter()
        slow: set[str] = set()
        for step in self.steps:
            name = digest(step)
            if any(digest(one) in lost for one in step.inputs):
                lost.add(name)
            if name in self.missing and name not in lost:
                to_come[step.kind] += 1
                slow |= {step.kind} if loads_model(step) else set()
        if not slow <= self.spent.keys():
            return None
        done = sum(map(sum, self.spent.values()))
        todo = sum(number * mean(self.spent.get(kind, [0.0])) for kind, number in to_come.items())
        return (self.clock() - self.began) * todo / done if done else None

    def state(self, row: Row) -> tuple[State, str]:
        """A cell's state, and a word on it: the step that is running, or why one failed."""
        for name, kind in row.steps.items():
            if name in self.failed:
                return "failed", f"{kind}: {self.failed[name]}"
        at = [kind for name, kind in row.steps.items() if name in self.running]
        if at:
            return "running", at[-1]
        return ("waiting" if self.missing & row.steps.keys() else "done"), ""

    def counts(self) -> dict[State, int]:
        """How many cells are in each state, those with none left out."""
        found = Counter(self.state(row)[0] for row in self.rows)
        return {state: found[state] for state in STATES if found[state]}


def board(study: Study) -> Board:
    """The board of a study before anything is built."""
    return Board(
        tuple(
            Row(
                one.chain.eval.title,
                {digest(step): step.kind for step in in_order(one.chain.evaluations)},
            )
            for one in study.cells
        ),
        tuple(in_order(study.steps)),
    )
