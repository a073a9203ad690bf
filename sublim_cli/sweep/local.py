"""A sweep on this machine: worker processes that import the libraries once and build step after step."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from sublim_cli.artifacts.step import Step
from sublim_cli.artifacts.store import Store
from sublim_cli.events import Listener
from sublim_cli.models.device import DEVICE
from sublim_cli.sweep.launch import StepQueue, attempt
from sublim_cli.trainers.runtime import gpu_environment


@dataclass(frozen=True)
class LocalLauncher:
    """A worker process for each entry of `devices`."""

    devices: tuple[str, ...]
    """What each worker computes on, such as `cpu` or `cuda:1`; an entry may repeat."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the workers are killed."""
        queue = StepQueue(steps, store, listener)
        workers = [_Worker(store, device) for device in self.devices[: len(queue.waiting)]]
        try:
            while True:
                for worker in workers:
                    if worker.step is None and (step := queue.take()):
                        worker.send(step)
                busy = {worker.connection: worker for worker in workers if worker.step}
                if not busy:
                    return queue.failed
                for connection in wait(list(busy)):
                    if isinstance(connection, Connection):
                        busy[connection].receive(queue)
        finally:
            for worker in workers:
                worker.end()


@dataclass(frozen=True)
class StepOutcome:
    """A worker's last message on a step: the reason if it failed, None if it was built."""

    reason: str | None


@dataclass
class _Worker:
    """The launcher's end of a worker process. A process that died is replaced when the next step is sent."""

    store: Store
    device: str
    step: Step | None = None
    process: BaseProcess | None = None
    connection: Connection = field(init=False)

    def send(self, step: Step) -> None:
        """Have the process build `step`; a process is started if there is none."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, worker_end = context.Pipe()
            self.process = context.Process(target=_work, args=(worker_end, self.store), daemon=True)
            with _environment(worker_environment(self.device)):
                self.process.start()  # with this environment from its first instruction on
            worker_end.close()
        self.step = step
        self.connection.send(step)

    def receive(self, queue: StepQueue) -> None:
        """Handle a message: an event to pass on, or the outcome of the step."""
        step, process = self.step, self.process
        if step is None or process is None:
            return
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            message = StepOutcome(f"its worker process died ({_cause_of_death(process.exitcode)})")
            self.process = None
        if isinstance(message, StepOutcome):
            self.step = None
            queue.settle([step], 0 if message.reason else 1, message.reason)
        else:
            queue.listener(message)

    def end(self) -> None:
        """Stop the process: an idle one exits when its connection closes, a busy one is killed."""
        if self.process is None:
            return
        self.connection.close()
        if self.step is not None:
            self.process.kill()
        self.process.join()
        if self.step is not None:
            self.store.remove_abandoned([self.step])


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed, most often for want of memory; fewer --workers need less"
    return f"signal {-code}" if code and code < 0 else f"exit code {code}"


def worker_environment(device: str) -> dict[str, str]:
    """The variables of a worker on `device`, with the only GPU that it sees."""
    return {DEVICE: device, **gpu_environment({**os.environ, DEVICE: device})}


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change the environment of this process for the processes that it starts in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Connection, store: Store) -> None:
    """The worker process: build the steps that arrive until the launcher closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    modules = 0
    while True:
        try:
            step = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        connection.send(StepOutcome(attempt(step, store, connection.send)))
        if len(sys.modules) != modules:
            # Between steps no model is held. A step collects garbage several times; without the libraries'
            # objects a small training takes a quarter of the time (docs/log.md).
            modules = len(sys.modules)
            gc.collect()
            gc.freeze()


def _die_with_parent() -> None:
    """End this process when the launcher does, so that a killed one leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
