"""A sweep as jobs of a Slurm cluster. The only file that imports submitit."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sublim_cli import events
from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store, explain_disk_errors
from sublim_cli.errors import RecipeError, SublimError
from sublim_cli.events import Event, Listener, Warned
from sublim_cli.models.device import worker_slots
from sublim_cli.sweep.launch import LOST_AT_MOST, Needs, Queue, attempt, knobs, loads_model
from sublim_cli.trainers.runtime import ACCELERATE, CHECKPOINT_EVERY

JOBS = ".slurm"
"""Under the store: what was submitted, what jobs said, and their logs."""

POLL = 1.0
"""Seconds between two looks at what the jobs have said."""

TIME = "240"
"""Minutes a job may take if `time` is not given; one that needs longer is queued again."""

TIMEOUTS = 50
"""How often a job may run out of its time and be queued again; each time it goes on where it was."""

EVERY = "10min"
"""How often a training saves itself on Slurm if `--checkpoint-every` does not say."""

RETRY = 60.0
"""Seconds after a refusal until more is submitted, while jobs are out."""

ENDING = 15.0
"""Seconds that jobs of this machine have to end after an interrupt."""

EXECUTORS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmLauncher:
    """Array jobs of the steps that are ready; a job takes on what its steps alone lead to.

    A job out of time is queued again by itself, and its training goes on from the last checkpoint.
    """

    options: Mapping[str, str]
    """Options of sbatch, such as `partition`, and `executor`: of `EXECUTORS`, two do without Slurm."""
    workers: int | None
    """At most so many jobs at a time; None leaves that to Slurm."""
    needs: Needs

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the jobs are cancelled.

        Raises:
            RecipeError: an option cannot be what it is, or there is no Slurm here.
        """
        executor = self.options.get("executor", EXECUTORS[0])
        _check(executor)
        queue = Queue.of(steps, store)
        listener(queue.planned())
        here = Store(store.root.absolute())
        most = self.workers or (worker_slots() if executor != "slurm" else len(queue.waiting))
        batch = _Batch(self, executor, here, queue, listener)
        try:
            while queue.waiting or batch.jobs:
                batch.submit(most)
                batch.listen()
                time.sleep(POLL)
        finally:
            batch.cancel()
            here.tidy(steps)
        return queue.failed

    def parameters(self, *, with_model: bool) -> dict[str, Any]:
        """What a job asks for, in submitit's words.

        Raises:
            RecipeError: `time` is no time.
        """
        own = {name: value for name, value in self.options.items() if name not in ("executor", "time")}
        asked: dict[str, Any] = {
            "name": "sublim",
            "timeout_min": minutes(self.options.get("time", TIME)),
            "cpus_per_task": self.needs.cpus,
            "slurm_additional_parameters": own,
        }
        if with_model and self.needs.gpus:
            asked["gpus_per_node"] = int(self.needs.gpus)
        if with_model and self.needs.memory_gib:
            asked["mem_gb"] = self.needs.memory_gib
        return asked


def minutes(text: str) -> int:
    """A time as sbatch writes it (`90`, `4:00:00`, `2-12`, `2-12:30`) in whole minutes.

    Raises:
        RecipeError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    days, first, second, third = (match[part] for part in range(1, 5)) if match else (None,) * 4
    if days or third:  # hours come first with days or seconds, minutes without
        total = 60 * (24 * int(days or 0) + int(first or 0)) + int(second or 0)
    else:
        total = int(first or 0)
    if not total:
        raise RecipeError(
            f"--slurm time={text}: no time; say minutes, such as 240, or as sbatch does 4:00:00"
        )
    return total


@dataclass
class _Job:
    """A submitted job: the steps it builds in turn, and how much of what it said was heard."""

    handle: Any
    steps: tuple[Step, ...]
    told: Path
    heard: int = 0

    def news(self) -> Iterator[Event]:
        """What the job has said since the last call; a line still being written waits."""
        if not self.told.is_file():
            return
        with self.told.open("rb") as file:
            file.seek(self.heard)
            for line in file:
                if line.endswith(b"\n"):
                    self.heard += len(line)
                    yield _event(json.loads(line))


@dataclass
class _Batch:
    """The jobs of one launch that have not ended."""

    launcher: SlurmLauncher
    executor: str
    store: Store
    queue: Queue
    listener: Listener
    jobs: list[_Job] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """How often the job of each step ended without a word."""
    pause: float = 0.0
    """Nothing is submitted before this time."""

    def submit(self, most: int) -> None:
        """Submit what is ready as one array for each kind of step, while fewer than `most` jobs are out."""
        if self.jobs and time.monotonic() < self.pause:
            return
        for with_model in (True, False):
            units: list[tuple[Step, ...]] = []
            while len(self.jobs) + len(units) < most:
                unit = self.queue.take_chain(partial(_is_of, with_model))
                if not unit:
                    break
                units.append(unit)
            if units:
                self.jobs += self._array(units, with_model=with_model)

    def _array(self, units: Sequence[tuple[Step, ...]], *, with_model: bool) -> list[_Job]:
        folder = self.store.root / JOBS
        with explain_disk_errors(self.store.root):
            folder.mkdir(parents=True, exist_ok=True)
        told = [folder / f"{uuid.uuid4().hex}.jsonl" for _ in units]
        timeouts = {f"{one}_max_num_timeout": TIMEOUTS for one in ("slurm", "local")}
        executor = submitit.AutoExecutor(folder=folder, cluster=self.executor, **timeouts)
        executor.update_parameters(**self.launcher.parameters(with_model=with_model))
        work = [_Work(unit, self.store, _knobs(), path) for unit, path in zip(units, told, strict=True)]
        try:
            handles = executor.submit_array(work)
        except (FailedJobError, FailedSubmissionError) as error:
            refusal = (
                f"sbatch refuses: {_last_line(str(error))}; --slurm sets its options, --workers how many "
                "jobs are out at a time"
            )
            if not self.jobs:
                raise SublimError(refusal) from None
            # Those that are out go on: a limit or a busy controller passes.
            self.listener(Warned(f"{refusal}; trying again while others run"))
            self.pause = time.monotonic() + RETRY
            for step in (step for unit in reversed(units) for step in reversed(unit)):
                self.queue.give_back(step)
            return []
        return [_Job(*one) for one in zip(handles, units, told, strict=True)]

    def listen(self) -> None:
        """Pass on what the jobs said, and settle the steps of those that ended."""
        for job in list(self.jobs):
            ended = job.handle.done()  # before the news, so that none comes after the last look
            for event in job.news():
                self.listener(event)
            if ended:
                self.jobs.remove(job)
                self._settle(job)

    def _settle(self, job: _Job) -> None:
        error = job.handle.exception()
        if error is not None:
            self._bury(job, _last_line(str(error)))
            return
        built, reason = job.handle.result()
        for step in job.steps[:built]:
            self.queue.settle(step, None, self.listener)
        if reason is not None:
            self._fail(job.steps[built:], reason)
        job.told.unlink(missing_ok=True)

    def _fail(self, steps: Sequence[Step], reason: str) -> None:
        """The first of a job's steps has failed, and with it those behind it."""
        first, *rest = steps
        self.queue.settle(first, reason, self.listener)
        for step in rest:
            self.queue.fail(step, f"needs {first.label}, which failed: {reason}")

    def _bury(self, job: _Job, why: str) -> None:
        """A job that ended without a word: a lost machine, or killed there. Its steps wait again."""
        name = digest(job.steps[0])
        self.lost[name] = self.lost.get(name, 0) + 1
        steps = [one for one in job.steps if self.store.find(one) is None] or job.steps[-1:]
        if self.lost[name] >= LOST_AT_MOST:
            self._fail(steps, f"its job was lost {LOST_AT_MOST} times ({why})")
            return
        self.listener(Warned(f"{steps[0].label}: its job was lost ({why}); it is submitted again"))
        for step in reversed(job.steps):
            self.queue.give_back(step)

    def cancel(self) -> None:
        """End the jobs that are left, and wait a little for those of this machine."""
        for job in self.jobs:
            job.handle.cancel(check=False)
        until = time.monotonic() + (ENDING if self.executor == "local" else 0.0)
        while time.monotonic() < until and not all(job.handle.done() for job in self.jobs):
            time.sleep(0.1)


@dataclass
class _Work(submitit.helpers.Checkpointable):  # type: ignore[misc]  # submitit is not followed
    """What a job does; queued again when it runs out of time, it finds what it had built."""

    steps: tuple[Step, ...]
    store: Store
    knobs: Mapping[str, str]
    told: Path

    def __call__(self) -> tuple[int, str | None]:
        """Build the steps in turn: how many were built, and the reason if one cannot be."""
        os.environ.update(self.knobs)
        with self.told.open("a", encoding="utf-8", buffering=1) as file:

            def tell(event: Event, /) -> None:
                file.write(json.dumps([type(event).__name__, asdict(event)], default=str) + "\n")

            for built, step in enumerate(self.steps):
                if reason := attempt(step, self.store, tell):
                    return built, reason
        return len(self.steps), None


def _is_of(with_model: bool, step: Step) -> bool:
    """Whether `step` is of the kind that loads a model, or of the other."""
    return loads_model(step) == with_model


def _event(told: tuple[str, dict[str, Any]]) -> Event:
    name, fields = told
    if "path" in fields:
        fields["path"] = Path(fields["path"])
    made: Event = getattr(events, name)(**fields)
    return made


def _knobs() -> dict[str, str]:
    """The launcher's own, and checkpoints by the clock: what a job out of time goes on from."""
    found = knobs()
    several = ACCELERATE in found  # their clocks differ, so they keep by steps or not at all
    return found if several else {CHECKPOINT_EVERY: EVERY, **found}


def _check(executor: str) -> None:
    if executor not in EXECUTORS:
        raise RecipeError(f"--slurm executor={executor}: there are {', '.join(EXECUTORS)}")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise RecipeError(
            "--launcher slurm: there is no sbatch here; run it where jobs are submitted, "
            "or try it with --slurm executor=local"
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no word of why"
