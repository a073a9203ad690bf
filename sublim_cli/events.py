"""What the library reports while it works. Whoever shows it listens; nothing here prints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Planned:
    """A launcher knows its work: steps it will build, and steps that are there already."""

    missing: int
    present: int


@dataclass(frozen=True)
class StepStarted:
    """A step began to build."""

    label: str


@dataclass(frozen=True)
class StepWaiting:
    """Another process is building this very step; its artifact will be used."""

    label: str


@dataclass(frozen=True)
class StepReused:
    """A step was found already built."""

    label: str
    path: Path


@dataclass(frozen=True)
class StepFinished:
    """A step was built."""

    label: str
    path: Path
    seconds: float


@dataclass(frozen=True)
class StepFailed:
    """A step could not be built; `reason` is one sentence."""

    label: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """A long step moved on. `note` is a short reading such as the current loss."""

    label: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the work."""

    message: str


@dataclass(frozen=True)
class Chosen:
    """What `auto` was resolved to, and why; the work goes on."""

    message: str


Event = (
    Planned | StepStarted | StepWaiting | StepReused | StepFinished | StepFailed | Progress | Warned | Chosen
)


class Listener(Protocol):
    """Called with each event, in order, on the thread that does the work."""

    def __call__(self, event: Event, /) -> None:
        """Take note of one event."""


def silent(event: Event, /) -> None:
    """The default listener: hears everything, says nothing."""
