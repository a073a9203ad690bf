"""A sweep as jobs of a Slurm cluster. The only file that imports submitit."""

import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store, explain_disk_errors
from sublim_cli.errors import RecipeError, SublimError
from sublim_cli.events import Listener, Warned
from sublim_cli.models.device import worker_slots
from sublim_cli.sweep.launch import (
    LOST_AT_MOST,
    EventLog,
    StepQueue,
    WorkerResources,
    build_chain,
    last_line,
    sublim_environment,
)

JOBS = ".slurm"
"""Directory under the store for submitted jobs, their events and their logs."""

POLL = 1.0
"""Seconds between two looks at the jobs."""

TIME = "240"
"""Minutes a job may take if `time` is not given; one that needs longer is queued again."""

TIMEOUTS = 50
"""How often a job may run out of its time and be queued again; each time it resumes from a checkpoint."""

RETRY = 60.0
"""Seconds after a refusal until more is submitted, while jobs are out."""

ENDING = 15.0
"""Seconds that jobs on this machine have to end after an interrupt."""

EXECUTORS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmLauncher:
    """Array jobs of the steps that are ready; a job then builds the steps that only its last step leads to.

    A job out of time is queued again by itself, and its training resumes from the last checkpoint.
    """

    options: Mapping[str, str]
    """Options of sbatch, such as `partition`, and `executor`, one of `EXECUTORS`; two do without Slurm."""
    workers: int | None
    """At most so many jobs at a time; None leaves that to Slurm."""
    resources: WorkerResources

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the jobs are cancelled.

        Raises:
            RecipeError: an option has no possible value, or there is no Slurm here.
            SublimError: sbatch refuses the first jobs.
        """
        executor = self.options.get("executor", EXECUTORS[0])
        if executor not in EXECUTORS:
            raise RecipeError(f"--slurm executor={executor}: there are {', '.join(EXECUTORS)}")
        if executor == "slurm" and shutil.which("sbatch") is None:
            raise RecipeError(
                "--launcher slurm: there is no sbatch here; run it where jobs are submitted, "
                "or try it with --slurm executor=local"
            )
        queue = StepQueue(steps, store, listener)
        shared_store = Store(store.root.absolute())
        limit = self.workers or (worker_slots() if executor != "slurm" else len(queue.waiting))
        jobs = _JobPool(self, executor, shared_store, queue)
        try:
            while queue.waiting or jobs.running:
                jobs.submit(limit)
                jobs.poll()
                time.sleep(POLL)
        finally:
            jobs.cancel()
            shared_store.tidy(steps)
        return queue.failed


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
    """A submitted job and the steps it builds in turn."""

    handle: Any
    steps: tuple[Step, ...]
    log: EventLog


@dataclass
class _JobPool:
    """The jobs of one launch that have not ended."""

    launcher: SlurmLauncher
    executor: str
    store: Store
    queue: StepQueue
    running: list[_Job] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    """How often the job that begins with a step (by digest) ended without a result."""
    retry_at: float = 0.0
    """Nothing is submitted before this time."""

    def submit(self, limit: int) -> None:
        """Submit the steps that are ready until `limit` jobs are out: an array with models, one without."""
        if self.running and time.monotonic() < self.retry_at:
            return
        for with_model in (True, False):
            chains: list[tuple[Step, ...]] = []
            while len(self.running) + len(chains) < limit:
                chain = self.queue.take_chain(with_model=with_model)
                if not chain:
                    break
                chains.append(chain)
            if chains:
                self._submit_array(chains, with_model=with_model)

    def _submit_array(self, chains: Sequence[tuple[Step, ...]], *, with_model: bool) -> None:
        directory = self.store.root / JOBS
        with explain_disk_errors(self.store.root):
            directory.mkdir(parents=True, exist_ok=True)
        timeouts = {f"{name}_max_num_timeout": TIMEOUTS for name in ("slurm", "local")}
        executor = submitit.AutoExecutor(folder=directory, cluster=self.executor, **timeouts)
        options, resources = self.launcher.options, self.launcher.resources
        parameters: dict[str, Any] = {
            "name": "sublim",
            "timeout_min": minutes(options.get("time", TIME)),
            "cpus_per_task": resources.cpus,
            "slurm_additional_parameters": {
                name: value for name, value in options.items() if name not in ("executor", "time")
            },
        }
        if with_model and resources.gpus:
            parameters["gpus_per_node"] = int(resources.gpus)
        if with_model and resources.memory_gib:
            parameters["mem_gb"] = resources.memory_gib
        executor.update_parameters(**parameters)
        logs = [EventLog(directory / f"{uuid.uuid4().hex}.jsonl") for _ in chains]
        environment = sublim_environment()
        tasks = [
            _JobTask(chain, self.store, environment, log) for chain, log in zip(chains, logs, strict=True)
        ]
        try:
            handles = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            refusal = (
                f"sbatch refuses: {last_line(str(error))}; --slurm sets its options, --workers how many "
                "jobs are out at a time"
            )
            if not self.running:
                raise SublimError(refusal) from None
            # The jobs that are out go on, since a limit or a busy controller is temporary.
            self.queue.listener(Warned(f"{refusal}; trying again while others run"))
            self.retry_at = time.monotonic() + RETRY
            self.queue.give_back(step for chain in chains for step in chain)
        else:
            self.running += map(_Job, handles, chains, logs)

    def poll(self) -> None:
        """Pass on the events of the jobs, and settle the steps of those that ended."""
        for job in list(self.running):
            ended = job.handle.done()  # asked first, so that the last events are read, too
            for event in job.log.read():
                self.queue.listener(event)
            if not ended:
                continue
            self.running.remove(job)
            error = job.handle.exception()
            if error is None:
                self.queue.settle(job.steps, *job.handle.result())
                job.log.path.unlink(missing_ok=True)
                continue
            # It ended without a result. Its steps are queued again, unless that happened too often.
            first = digest(job.steps[0])
            self.losses[first] += 1
            unbuilt = [step for step in job.steps if self.store.find(step) is None] or job.steps[-1:]
            if self.losses[first] >= LOST_AT_MOST:
                lost = f"its job was lost {LOST_AT_MOST} times ({last_line(str(error))})"
                self.queue.settle(unbuilt, 0, lost)
            else:
                lost = f"its job was lost ({last_line(str(error))}); it is submitted again"
                self.queue.listener(Warned(f"{unbuilt[0].label}: {lost}"))
                self.queue.give_back(job.steps)

    def cancel(self) -> None:
        """Cancel the jobs that have not ended, and wait up to `ENDING` for those on this machine."""
        for job in self.running:
            job.handle.cancel(check=False)
        deadline = time.monotonic() + (ENDING if self.executor == "local" else 0.0)
        while time.monotonic() < deadline and not all(job.handle.done() for job in self.running):
            time.sleep(0.1)


@dataclass
class _JobTask(submitit.helpers.Checkpointable):  # type: ignore[misc]  # submitit is not followed
    """What a job runs; when it is queued again after running out of time, it finds the steps it had built."""

    steps: tuple[Step, ...]
    store: Store
    environment: Mapping[str, str]
    log: EventLog

    def __call__(self) -> tuple[int, str | None]:
        """Build the steps; see `launch.build_chain`."""
        return build_chain(self.steps, self.store, self.log, self.environment)
