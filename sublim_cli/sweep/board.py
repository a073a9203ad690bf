"""How far each cell of a sweep is, from what a launcher reports. Pure: it keeps count and shows nothing."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.events import Event, Planned, StepFailed, StepFinished, StepReused, StepStarted
from sublim_cli.pipeline import Study

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
    missing: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Digest of a step to the first line of why it failed."""

    def hear(self, event: Event) -> None:
        """Take note of one event."""
        match event:
            case Planned(missing):
                self.missing = set(missing)
            case StepStarted(_, name):
                self.running.add(name)
            case StepFinished(_, name) | StepReused(_, name):
                self.running.discard(name)
                self.missing.discard(name)
            case StepFailed(_, name, reason):
                self.running.discard(name)
                self.failed[name] = reason.splitlines()[0]

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
                {digest(step): step.kind for step in in_order([one.chain.eval, one.chain.base])},
            )
            for one in study.cells
        )
    )
