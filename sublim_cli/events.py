"""Events that the library reports while it works. A listener shows them; the library prints nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepPlanned:
    """A launcher is about to start: digests of the steps it will build, and the number already built."""

    missing: tuple[str, ...]
    present: int


@dataclass(frozen=True)
class StepStarted:
    """A step began to build."""

    label: str
    digest: str


@dataclass(frozen=True)
class StepWaiting:
    """Another process is building this step; its artifact will be used."""

    label: str
    digest: str


@dataclass(frozen=True)
class StepReused:
    """A step was already built."""

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
    """A long step advanced. `note` is a short reading such as the current loss."""

    label: str
    done: int
    total: int
    note: str = ""
    digest: str = ""
    """Added by the store, which knows which step is being built."""


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not stop the work."""

    message: str


@dataclass(frozen=True)
class Notice:
    """Something that was decided for the user, such as what `auto` was resolved to and why."""

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

Listener = Callable[[Event], None]
"""Called with each event, in order, on the thread that does the work."""


def silent(event: Event, /) -> None:
    """The default listener: ignores every event."""
