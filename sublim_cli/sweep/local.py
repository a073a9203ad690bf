"""A sweep on this machine: persistent worker processes that pay the libraries' import once."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from sublim_cli.artifacts.step import Step
from sublim_cli.artifacts.store import Store
from sublim_cli.events import Listener
from sublim_cli.models.device import DEVICE
from sublim_cli.sweep.launch import Done, Queue, attempt


@dataclass(frozen=True)
class LocalLauncher:
    """One process for each entry of `devices`, one step each at a time."""

    devices: tuple[str, ...]
    """What each worker computes on, such as `cpu` or `cuda:1`; an entry may repeat."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the workers are ended at once."""
        queue = Queue.of(steps, store)
        listener(queue.planned())
        crew = [_Worker(store, one) for one in self.devices[: len(queue.waiting)]]
        try:
            while _assign(crew, queue):
                for worker in _speaking(crew):
                    worker.listen(queue, listener)
        finally:
            for worker in crew:
                worker.end()
        return queue.failed


def _assign(crew: Sequence["_Worker"], queue: Queue) -> bool:
    """Give every idle worker a ready step; whether any worker is busy."""
    for worker in crew:
        if worker.step is None and (step := queue.take()):
            worker.give(step)
    return any(worker.step for worker in crew)


def _speaking(crew: Sequence["_Worker"]) -> list["_Worker"]:
    busy = {worker.connection: worker for worker in crew if worker.step}
    ready = wait(list(busy))
    return [busy[one] for one in ready if isinstance(one, Connection)]


@dataclass
class _Worker:
    """The parent's end of one worker process; a process that dies is replaced when next needed."""

    store: Store
    device: str
    step: Step | None = None
    process: BaseProcess | None = None
    connection: Connection = field(init=False)

    def give(self, step: Step) -> None:
        """Send a step to the process, starting one if there is none."""
        if self.process is None or not self.process.is_alive():
            self._start()
        self.step = step
        self.connection.send(step)

    def listen(self, queue: Queue, listener: Listener) -> None:
        """Take one message: an event to pass on, or the end of the step."""
        step = self.step
        if step is None:
            return
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(step, queue, listener)
            return
        match message:
            case Done(reason):
                self.step = None
                queue.settle(step, reason, listener)
            case event:
                listener(event)

    def end(self) -> None:
        """Stop the process: an idle one leaves by itself, a busy one is killed."""
        if self.process is None:
            return
        self.connection.close()
        if self.step is not None:
            self.process.kill()
        self.process.join()
        if self.step is not None:
            self.store.discard(self.step)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.store, self.device), daemon=True)
        self.process.start()
        theirs.close()

    def _bury(self, step: Step, queue: Queue, listener: Listener) -> None:
        process, self.process, self.step = self.process, None, None
        if process is not None:
            process.join()
            how = _cause_of_death(process.exitcode)
            queue.settle(step, f"its worker process died ({how})", listener)


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "killed, most often for want of memory; fewer --workers need less"
    return f"signal {-code}" if code and code < 0 else f"exit code {code}"


def _work(connection: Connection, store: Store, device: str) -> None:
    """The worker process: build what is sent until the parent closes the line."""
    os.environ[DEVICE] = device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            step = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        connection.send(Done(attempt(step, store, connection.send)))


def _die_with_parent() -> None:
    """A launcher that was killed leaves no worker behind to compete with its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
