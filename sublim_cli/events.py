"""Events that the library reports while it works. A listener shows them; the library prints nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """The base of all events."""


@dataclass(frozen=True)
class SweepPlanned(Event):
    """A launcher is about to start: digests of the steps it will build, and the number already built."""

    missing: tuple[str, ...]
    present: int


@dataclass(frozen=True)
class StepEvent(Event):
    """Something happened to the step of this label and digest."""

    label: str
    digest: str


class StepStarted(StepEvent):
    """A step began to build."""


class StepWaiting(StepEvent):
    """Another process is building this step; its artifact will be used."""


@dataclass(frozen=True)
class StepReused(StepEvent):
    """A step was already built."""

    path: Path


@dataclass(frozen=True)
class StepFinished(StepEvent):
    """A step was built."""

    path: Path
    seconds: float


@dataclass(frozen=True)
class StepFailed(StepEvent):
    """A step could not be built; `reason` is one sentence."""

    reason: str


@dataclass(frozen=True)
class Progress(Event):
    """A long step advanced. `note` is a short reading such as the current loss."""

    label: str
    done: int
    total: int
    note: str = ""
    digest: str = ""
    """Added by the store, which knows which step is being built."""


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know that does not stop the work."""

    message: str


@dataclass(frozen=True)
class Notice(Event):
    """Something that was decided for the user, such as what `auto` was resolved to and why."""

    message: str


Listener = Callable[[Event], None]
"""Called with each event, in order, on the thread that does the work."""


def counted(listener: Listener, label: str, total: int) -> Callable[[str, int], None]:
    """A function that is called with a note and the number of parts finished since the last call.

    The listener hears how many of `total` are done.
    """
    done = 0

    def report(note: str, finished: int) -> None:
        nonlocal done
        done += finished
        listener(Progress(label, done, total, note))

    return report


def silent(event: Event, /) -> None:
    """The default listener: ignores every event."""
