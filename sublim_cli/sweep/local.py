"""A sweep on this machine: persistent worker processes that pay the libraries' import once."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.errors import SublimError
from sublim_cli.events import Event, Listener, Planned, StepFailed
from sublim_cli.models.device import DEVICE
from sublim_cli.sweep.launch import Queue

FAILURES = ".failures"
"""Under the store: the traceback of every step that failed in a way sublim did not foresee."""


@dataclass(frozen=True)
class LocalLauncher:
    """One process for each entry of `devices`, one step each at a time."""

    devices: tuple[str, ...]
    """What each worker computes on, such as `cpu` or `cuda:1`; an entry may repeat."""

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the workers are ended at once."""
        queue = Queue.of(steps, store)
        listener(Planned(missing=len(queue.waiting), present=len(queue.done)))
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
        if self.process is None:
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
            case _Done(reason=None):
                self.step = None
                queue.finish(step)
            case _Done(reason=str(reason)):
                self.step = None
                _fail(step, reason, queue, listener)
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
            _fail(step, f"its worker process died ({how})", queue, listener)


@dataclass(frozen=True)
class _Done:
    """A worker's last word on a step; no reason means it was built."""

    reason: str | None


def _fail(step: Step, reason: str, queue: Queue, listener: Listener) -> None:
    queue.fail(step, reason)
    listener(StepFailed(step.label, reason))


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
        connection.send(_Done(_attempt(step, store, connection.send)))


def _attempt(step: Step, store: Store, send: Any) -> str | None:
    def forward(event: Event, /) -> None:
        send(event)

    try:
        materialise(step, store, forward)
    except SublimError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # one cell's defect must not end the sweep
        return f"{_first_line(error)} (details in {_note(step, store)})"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _note(step: Step, store: Store) -> Path:
    path = store.root / FAILURES / f"{step.kind}-{digest(step)}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path


def _die_with_parent() -> None:
    """A launcher that was killed leaves no worker behind to compete with its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
