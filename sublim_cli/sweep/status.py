"""How far each cell of a sweep is, computed from the events a launcher reports. Pure: it displays nothing."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Literal

from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.events import Event, StepFailed, StepFinished, StepReused, StepStarted, SweepPlanned
from sublim_cli.pipeline import Study
from sublim_cli.sweep.launch import loads_model

CellState = Literal["waiting", "running", "done", "failed"]

STATES: tuple[CellState, ...] = ("done", "running", "waiting", "failed")


@dataclass(frozen=True)
class CellStatus:
    """A cell's state; `detail` names the running step, or the failed step and its reason."""

    label: str
    state: CellState
    detail: str = ""


@dataclass
class SweepStatus:
    """The state of every cell, updated by `update`."""

    cells: Sequence[tuple[str, Mapping[str, str]]]
    """Of each cell its label and its steps, digest to kind, inputs first."""
    steps: tuple[Step, ...] = ()
    """All steps of the study, inputs first."""
    clock: Callable[[], float] = time.monotonic
    missing: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Digest of a failed step to the first line of the reason."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each finished step took, by digest."""
    started: float = 0.0

    def update(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case SweepPlanned(missing):
                self.missing, self.started = set(missing), self.clock()
            case StepStarted(_, name):
                self.running.add(name)
            case StepFinished(_, name) | StepReused(_, name):
                if isinstance(event, StepFinished):
                    self.seconds[name] = event.seconds
                self.running.discard(name)
                self.missing.discard(name)
            case StepFailed(_, name, reason):
                self.running.discard(name)
                self.failed[name] = reason.splitlines()[0]

    def seconds_left(self) -> float | None:
        """The time until everything is built, in seconds.

        Each remaining step is taken to last as long as the mean of its kind, since kinds differ a
        thousandfold, and steps to run as much in parallel as those so far. None until a step of every
        remaining kind that loads a model was built; kinds without a model take next to no time.
        """
        blocked = set(self.failed)
        finished: dict[str, list[float]] = {}
        remaining: Counter[str] = Counter()
        slow_kinds: set[str] = set()
        for step in self.steps:
            name = digest(step)
            if name in self.seconds:
                finished.setdefault(step.kind, []).append(self.seconds[name])
            if any(digest(needed) in blocked for needed in step.inputs):
                blocked.add(name)
            if name in self.missing and name not in blocked:
                remaining[step.kind] += 1
                slow_kinds |= {step.kind} if loads_model(step) else set()
        if not slow_kinds <= finished.keys():
            return None
        done = sum(self.seconds.values())
        todo = sum(number * mean(finished.get(kind, [0.0])) for kind, number in remaining.items())
        return (self.clock() - self.started) * todo / done if done else None

    def statuses(self) -> list[CellStatus]:
        """The state of every cell, in the order of the study."""
        statuses = []
        for label, steps in self.cells:
            failed = [f"{kind}: {self.failed[name]}" for name, kind in steps.items() if name in self.failed]
            running = [kind for name, kind in steps.items() if name in self.running]
            if failed:
                statuses.append(CellStatus(label, "failed", failed[0]))
            elif running:
                statuses.append(CellStatus(label, "running", running[-1]))
            else:
                statuses.append(CellStatus(label, "waiting" if self.missing & steps.keys() else "done"))
        return statuses

    def counts(self) -> dict[CellState, int]:
        """The number of cells in each state that has any."""
        numbers = Counter(status.state for status in self.statuses())
        return {state: numbers[state] for state in STATES if numbers[state]}


def sweep_status(study: Study) -> SweepStatus:
    """The status of a study before any event."""
    cells = [
        (cell.chain.eval.title, {digest(step): step.kind for step in in_order(cell.chain.evaluations)})
        for cell in study.cells
    ]
    return SweepStatus(cells, tuple(in_order(study.steps)))
