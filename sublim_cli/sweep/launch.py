"""What launchers share: the queue of steps, the build in a worker, events from other machines."""

import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from sublim_cli import events
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.errors import SublimError
from sublim_cli.events import Event, Listener, StepFailed, SweepPlanned
from sublim_cli.models.device import DEVICE
from sublim_cli.trainers.runtime import gpu_environment

FAILURES = ".failures"
"""Directory under the store for the traceback of every step that failed with an unexpected exception."""

LOST_AT_MOST = 3
"""A step fails when its worker was lost (its machine failed, or it was killed) this many times."""


class Launcher(Protocol):
    """Builds steps somewhere."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build all `steps` and their inputs; a failure stops only the steps that need the failed one.

        Returns the steps that could not be built: digest to reason.
        """


@dataclass(frozen=True)
class WorkerResources:
    """What a worker asks a cluster for. A step that loads no model asks for the cores alone."""

    cpus: int = 1
    gpus: float = 0.0
    memory_gib: float | None = None


def loads_model(step: Step) -> bool:
    """Whether building `step` loads a model, and so takes a GPU where there is one."""
    return "model" in type(step.spec).model_fields


def missing_steps(steps: Sequence[Step], store: Store) -> list[Step]:
    """The steps to build until `store` holds all of `steps`, inputs first.

    An input that only steps already built need is left out.
    """
    needed = {digest(step) for step in steps}
    missing = []
    for step in reversed(in_order(list(steps))):  # every step comes before its inputs
        if digest(step) in needed and not store.find(step):
            missing.append(step)
            needed.update(map(digest, step.inputs))
    return missing[::-1]


class StepQueue:
    """The missing steps of a launch in the order of building. A step is ready once its inputs are built."""

    def __init__(self, steps: Sequence[Step], store: Store, listener: Listener) -> None:
        """Queue what `store` lacks of `steps` and their inputs, and report it to `listener`."""
        self.listener = listener
        self.waiting = {digest(step): step for step in missing_steps(steps, store)}
        self.built = {digest(step) for step in in_order(list(steps)) if store.find(step)}
        self.failed: dict[str, str] = {}
        """Digest to reason."""
        listener(SweepPlanned(tuple(self.waiting), len(self.built)))

    def take(self, *, with_model: bool | None = None) -> Step | None:
        """Remove and return the next ready step; None if none is ready.

        Args:
            with_model: True for a step that loads a model, False for one that does not, None for any.
        """
        for name, step in self.waiting.items():
            fits = with_model is None or loads_model(step) == with_model
            if fits and self.built.issuperset(map(digest, step.inputs)):
                return self.waiting.pop(name)
        return None

    def take_chain(self, *, with_model: bool | None = None) -> tuple[Step, ...]:
        """Remove and return a ready step, see `take`, and the steps the same worker builds after it.

        A step follows if it is the only one that needs the step before it and its other inputs are built.
        After a first step without a model none that loads one follows. Empty if no step is ready.
        """
        first = self.take(with_model=with_model)
        if first is None:
            return ()
        chain = [first]
        while True:
            last, built = digest(chain[-1]), self.built | set(map(digest, chain))
            users = [step for step in self.waiting.values() if last in map(digest, step.inputs)]
            if len(users) != 1 or not built.issuperset(map(digest, users[0].inputs)):
                return tuple(chain)
            if loads_model(users[0]) and not loads_model(first):
                return tuple(chain)
            chain.append(self.waiting.pop(digest(users[0])))

    def give_back(self, steps: Iterable[Step]) -> None:
        """Put steps that were taken back, before all others."""
        self.waiting = {**{digest(step): step for step in steps}, **self.waiting}

    def settle(self, steps: Sequence[Step], built: int, reason: str | None) -> None:
        """Note the result of `build_chain`: the first `built` steps were built, the next one failed."""
        self.built.update(map(digest, steps[:built]))
        if reason is not None:
            failed, *others = steps[built:]
            self._fail(failed, reason)
            self.listener(StepFailed(failed.label, digest(failed), reason))
            for step in others:
                self._fail(step, f"needs {failed.label}, which failed: {reason}")

    def _fail(self, step: Step, reason: str) -> None:
        """Note that `step` cannot be built, and neither can any step that needs it."""
        self.failed[digest(step)] = reason
        for user in list(self.waiting.values()):
            if digest(step) in map(digest, user.inputs):
                self.waiting.pop(digest(user), None)
                self._fail(user, f"needs {step.label}, which failed: {reason}")


def attempt(step: Step, store: Store, listener: Listener) -> str | None:
    """Build `step` in this process; the reason if it cannot be built, else None."""
    try:
        materialise(step, store, listener)
    except SublimError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # a defect in one cell must not end the sweep
        first_line = next(iter(str(error).strip().splitlines()), "")
        path = store.root / FAILURES / f"{step.kind}-{digest(step)}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(traceback.format_exc(), encoding="utf-8")
            details = f"details in {path}"
        except OSError as refusal:
            details = f"details could not be written: {refusal.strerror}"
        return f"{type(error).__name__}: {first_line} ({details})"
    return None


def sublim_environment() -> dict[str, str]:
    """The variables that say how steps are run, for workers that do not inherit them.

    A GPU that `SUBLIM_DEVICE` names belongs to this machine; a worker computes on what the cluster gives it.
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith("SUBLIM_")}
    if variables.get(DEVICE) != "cpu":
        variables.pop(DEVICE, None)
    return variables


@dataclass
class EventLog:
    """A file on the shared store through which a worker elsewhere reports events: a JSON line for each."""

    path: Path
    position: int = 0
    """Where the next `read` begins, in bytes."""

    def write(self, event: Event, /) -> None:
        """Append an event. The file is closed again at once, so that other NFS clients see the line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([type(event).__name__, asdict(event)], default=str) + "\n")

    def read(self) -> Iterator[Event]:
        """The events since the last call. A line that is still being written is left for the next one."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if line.endswith(b"\n"):
                    self.position += len(line)
                    name, values = json.loads(line)
                    if "path" in values:
                        values["path"] = Path(values["path"])
                    event: Event = getattr(events, name)(**values)
                    yield event


def build_chain(
    steps: Sequence[Step], store: Store, log: EventLog, environment: Mapping[str, str]
) -> tuple[int, str | None]:
    """Build `steps` in turn in a process elsewhere: how many were built, and the reason if one cannot be.

    Args:
        environment: from `sublim_environment`.
    """
    os.environ.pop(DEVICE, None)  # sbatch passes on all variables of the launcher, and Ray on its machine
    os.environ.update(environment)
    os.environ.update(gpu_environment(os.environ))
    for built, step in enumerate(steps):
        if reason := attempt(step, store, log.write):
            return built, reason
    return len(steps), None


def last_line(text: str) -> str:
    """The last line of an error message without its full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no reason given"
