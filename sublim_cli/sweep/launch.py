"""What a launcher promises, and the bookkeeping of steps that wait for others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store
from sublim_cli.events import Listener


class Launcher(Protocol):
    """Builds steps somewhere."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build all `steps` and their inputs; one that fails stops only what needs it.

        Returns the steps that could not be built: digest to reason.
        """


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

    def take(self) -> Step | None:
        """The next step that is ready, taken out of the queue; None while none is."""
        for name, step in self.waiting.items():
            if all(digest(one) in self.done for one in step.inputs):
                return self.waiting.pop(name)
        return None

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
