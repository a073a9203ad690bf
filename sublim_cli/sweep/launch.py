"""What a launcher promises, the bookkeeping of steps that wait for others, and what a worker does."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.errors import SublimError
from sublim_cli.events import Listener, StepFailed, SweepPlanned

FAILURES = ".failures"
"""Under the store: the traceback of every step that failed in a way sublim did not foresee."""

LOST_AT_MOST = 3
"""How often a step's worker may be lost, with its machine or killed there, before the step has failed."""


class Launcher(Protocol):
    """Builds steps somewhere."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build all `steps` and their inputs; one that fails stops only what needs it.

        Returns the steps that could not be built: digest to reason.
        """


@dataclass(frozen=True)
class Needs:
    """What a worker asks a cluster for; cores alone where none of its steps loads a model."""

    cpus: int = 1
    gpus: float = 0.0
    memory_gib: float | None = None


def loads_model(step: Step) -> bool:
    """Whether building `step` takes a model, and so a GPU where there are any."""
    return "model" in type(step.spec).model_fields


@dataclass
class Queue:
    """Steps in the order they may be built: one is ready when its inputs are there."""

    waiting: dict[str, Step]
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: Sequence[Step], store: Store) -> "Queue":
        """The steps and their inputs that `store` lacks, leaving out inputs nothing missing needs."""
        wanted = {digest(one) for one in steps}
        missing: dict[str, Step] = {}
        done: set[str] = set()
        for step in reversed(in_order(list(steps))):  # whatever needs a step comes before it
            name = digest(step)
            if store.find(step):
                done.add(name)
            elif name in wanted:
                missing[name] = step
                wanted.update(map(digest, step.inputs))
        return cls(dict(reversed(missing.items())), done)

    def planned(self) -> SweepPlanned:
        """What there is to do, as an event."""
        return SweepPlanned(tuple(self.waiting), len(self.done))

    def take(self, fits: Callable[[Step], bool] = lambda step: True) -> Step | None:
        """The next step that is ready and `fits`, taken out of the queue; None while none is."""
        for name, step in self.waiting.items():
            if fits(step) and all(digest(one) in self.done for one in step.inputs):
                return self.waiting.pop(name)
        return None

    def take_chain(self, fits: Callable[[Step], bool]) -> tuple[Step, ...]:
        """A ready step that `fits`, and behind it those that it alone leads to; none while none is ready.

        A model is loaded further on only if the first step loads one.
        """
        first = self.take(fits)
        chain = [first] if first is not None else []
        while chain and (following := self._following(chain)) is not None:
            chain.append(self.waiting.pop(digest(following)))
        return tuple(chain)

    def _following(self, chain: Sequence[Step]) -> Step | None:
        last, built = digest(chain[-1]), self.done | set(map(digest, chain))
        needing = [one for one in self.waiting.values() if last in map(digest, one.inputs)]
        if len(needing) != 1 or not built.issuperset(map(digest, needing[0].inputs)):
            return None
        return needing[0] if loads_model(chain[0]) or not loads_model(needing[0]) else None

    def give_back(self, step: Step) -> None:
        """Put a step that was taken back, before all others."""
        self.waiting = {digest(step): step, **self.waiting}

    def finish(self, step: Step) -> None:
        """Note that `step` was built."""
        self.done.add(digest(step))

    def fail(self, step: Step, reason: str) -> None:
        """Note that `step` cannot be built, and with it everything that needs it."""
        self.failed[digest(step)] = reason
        for one in list(self.waiting.values()):
            if any(digest(step) == digest(needed) for needed in one.inputs):
                self.waiting.pop(digest(one), None)
                self.fail(one, f"needs {step.label}, which failed: {reason}")

    def settle(self, step: Step, reason: str | None, listener: Listener) -> None:
        """Note how the build of `step` ended: without a `reason`, well."""
        if reason is None:
            self.finish(step)
        else:
            self.fail(step, reason)
            listener(StepFailed(step.label, digest(step), reason))


@dataclass(frozen=True)
class Done:
    """A worker's last word on a step; no reason means it was built."""

    reason: str | None


def attempt(step: Step, store: Store, listener: Listener) -> str | None:
    """Build `step`; the reason if it cannot be built. What a worker does, whichever launcher sent it."""
    try:
        materialise(step, store, listener)
    except SublimError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # one cell's defect must not end the sweep
        return f"{_first_line(error)} ({_note(step, store)})"
    return None


def knobs() -> dict[str, str]:
    """The environment that says how steps are run here, for workers that do not inherit it."""
    return {name: value for name, value in os.environ.items() if name.startswith("SUBLIM_")}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _note(step: Step, store: Store) -> str:
    """Where the traceback was written, in words."""
    path, told = store.root / FAILURES / f"{step.kind}-{digest(step)}.txt", traceback.format_exc()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(told, encoding="utf-8")
    except OSError as refused:
        return f"details could not be written: {refused.strerror}"
    return f"details in {path}"
