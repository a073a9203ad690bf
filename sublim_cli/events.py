"""What the library reports while it works. Whoever shows it listens; nothing here prints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class SweepPlanned:
    """A launcher knows its work: digests of steps it will build, and how many are there already."""

    missing: tuple[str, ...]
    present: int


@dataclass(frozen=True)
class StepStarted:
    """A step began to build."""

    label: str
    digest: str


@dataclass(frozen=True)
class StepWaiting:
    """Another process is building this very step; its artifact will be used."""

    label: str
    digest: str


@dataclass(frozen=True)
class StepReused:
    """A step was found already built."""

    label: str
    digest: str
    path: Path


@dataclass(frozen=True)
class StepFinished:
    """A step was built."""

    label: str
    digest: str
    path: Path
    seconds: float


@dataclass(frozen=True)
class StepFailed:
    """A step could not be built; `reason` is one sentence."""

    label: str
    digest: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """A long step moved on. `note` is a short reading such as the current loss."""

    label: str
    done: int
    total: int
    note: str = ""
    digest: str = ""
    """Filled in by the store, which knows which step is being built."""


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the work."""

    message: str


@dataclass(frozen=True)
class Notice:
    """What `auto` was resolved to, and why; the work goes on."""

    message: str


Event = (
    SweepPlanned
    | StepStarted
    | StepWaiting
    | StepReused
    | StepFinished
    | StepFailed
    | Progress
    | Warned
    | Notice
)


class Listener(Protocol):
    """Called with each event, in order, on the thread that does the work."""

    def __call__(self, event: Event, /) -> None:
        """Take note of one event."""


def silent(event: Event, /) -> None:
    """The default listener: hears everything, says nothing."""
