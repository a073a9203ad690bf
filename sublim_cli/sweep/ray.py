"""A sweep as tasks of a Ray cluster, which may be this machine. The only file that imports ray."""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store, explain_disk_errors
from sublim_cli.errors import RecipeError, SublimError
from sublim_cli.events import Listener, Warned
from sublim_cli.sweep.launch import (
    LOST_AT_MOST,
    EventLog,
    StepQueue,
    WorkerResources,
    build_chain,
    last_line,
    loads_model,
    sublim_environment,
)

POLL = 0.5
"""Seconds between two readings of the tasks' events."""

PATIENCE = 60.0
"""Seconds in which no task begins, after which the user is told that the cluster has no room."""

CONNECT_TIMEOUT = 10.0
"""Seconds a cluster has to answer at its address."""

OBJECTS_MIB = 100
"""Object store of a local cluster; artifacts and events do not pass through it."""


@dataclass(frozen=True)
class RayLauncher:
    """A task for each ready step and those that only it leads to, such as a training and its scores.

    Ray starts a new process for every task with a GPU, and retries a task whose worker is lost.
    """

    address: str | None
    """A running cluster, such as `auto` or `10.0.0.1:6379`; None starts one on this machine."""
    workers: int | None
    """The number of steps at a time; None is as many as the cluster has resources for."""
    resources: WorkerResources

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the tasks are killed.

        Raises:
            RecipeError: this machine does not have the resources for a step.
            SublimError: no cluster answers, or its workers do not see the store or cannot run sublim.
        """
        queue = StepQueue(steps, store, listener)
        shared_store = Store(store.root.absolute())
        if queue.waiting:
            _connect(self.address)
            try:
                self._run(queue, shared_store)
            finally:
                ray.shutdown()
                shared_store.tidy(steps)
        return queue.failed

    def _run(self, queue: StepQueue, store: Store) -> None:
        largest = self._demand(with_model=any(map(loads_model, queue.waiting.values())))
        if not _capacity(largest):
            parts = [f"{largest['CPU']:g} CPU"]
            parts += [f"{largest['GPU']:g} GPU"] if "GPU" in largest else []
            parts += [f"{largest['memory'] / 2**30:g} GiB of memory"] if "memory" in largest else []
            message = (
                f"no machine here has what a worker asks for ({', '.join(parts)}); lower --gpus or --memory"
            )
            if self.address is None:
                raise RecipeError(message)
            queue.listener(Warned(f"{message}, or wait for one to join"))
        with explain_disk_errors(store.root):
            store.root.mkdir(parents=True, exist_ok=True)
            logs = Path(tempfile.mkdtemp(prefix=".ray-", dir=store.root))
        running: dict[Any, tuple[tuple[Step, ...], EventLog]] = {}
        last_news = time.monotonic()
        try:
            while queue.waiting or running:
                limit = self.workers or max(1, _capacity(largest))
                while len(running) < limit and (chain := queue.take_chain()):
                    log = EventLog(logs / f"{digest(chain[0])}.jsonl")
                    log.path.touch()
                    running[self._submit(chain, store, log)] = (chain, log)
                finished, _ = ray.wait(list(running), timeout=POLL)
                for _, log in running.values():
                    for event in log.read():
                        queue.listener(event)
                for task in finished:
                    chain, _ = running.pop(task)
                    queue.settle(chain, *_result(task, chain, store))
                if finished or any(log.position for _, log in running.values()):
                    last_news = time.monotonic()
                elif time.monotonic() - last_news > PATIENCE:
                    message = "the cluster has no room for a worker of this sweep yet; waiting for it"
                    queue.listener(Warned(message))
                    last_news = time.monotonic()
        finally:
            for task in running:
                ray.cancel(task, force=True)
            shutil.rmtree(logs, ignore_errors=True)

    def _submit(self, chain: tuple[Step, ...], store: Store, log: EventLog) -> Any:
        demand = self._demand(with_model=loads_model(chain[0]))
        remote = ray.remote(  # not `.options`: here Ray sees the GPU and ends the process after the task
            num_cpus=demand["CPU"],
            num_gpus=demand.get("GPU", 0),
            memory=demand.get("memory", 0),
            max_retries=LOST_AT_MOST - 1,
        )(_build)
        return remote.remote(chain, store, log, sublim_environment())

    def _demand(self, *, with_model: bool) -> dict[str, float]:
        """The resources of a step by Ray's names, memory in bytes; cores alone where it loads no model."""
        demand = {"CPU": float(self.resources.cpus)}
        if with_model and self.resources.gpus:
            demand["GPU"] = self.resources.gpus
        if with_model and self.resources.memory_gib:
            demand["memory"] = self.resources.memory_gib * 2**30
        return demand


def _build(
    chain: tuple[Step, ...], store: Store, log: EventLog, environment: Mapping[str, str]
) -> tuple[int, str | None]:
    """The task: see `launch.build_chain`.

    Raises:
        SublimError: this machine does not see the launcher's store.
    """
    if not log.path.is_file():  # the launcher has made it
        raise SublimError(
            f"{socket.gethostname()} does not see the store {store.root}; "
            "let --out be a directory that all machines share under one path"
        )
    if log.path.stat().st_size:
        step = next((step for step in chain if store.find(step) is None), chain[-1])
        log.write(Warned(f"{step.label}: its worker was lost; another one starts the step again"))
    return build_chain(chain, store, log, environment)


def _result(task: Any, chain: tuple[Step, ...], store: Store) -> tuple[int, str | None]:
    """What a finished task returned; see `launch.build_chain`."""
    try:
        result: tuple[int, str | None] = ray.get(task)
    except RayTaskError as error:  # an exception outside of the step: a store or a package is not there
        raise SublimError(f"a worker of the Ray cluster cannot build: {error.cause}") from None
    except RayError as error:  # the workers of all attempts died, or were killed for their memory
        built = sum(store.find(step) is not None for step in chain[:-1])
        return built, f"its worker was lost {LOST_AT_MOST} times ({last_line(str(error))})"
    return result


def _connect(address: str | None) -> None:
    """Connect to the cluster at `address`, or start one on this machine.

    Raises:
        SublimError: no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports statistics to its makers
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS_MIB << 20}
    try:
        host, colon, port = (address or "").rpartition(":")
        if colon and port.isdecimal():  # Ray itself tries for minutes where no one listens, and logs each try
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    except OSError:  # includes ConnectionError and a host name that cannot be resolved
        raise SublimError(
            f"--ray-address {address}: no Ray cluster answers there; `ray start --head` starts one, "
            "and without --ray-address Ray makes one of this machine"
        ) from None


def _capacity(demand: Mapping[str, float]) -> int:
    """The number of steps of that `demand` which the whole cluster can run at a time."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min(int(machine.get(name, 0) / amount) for name, amount in demand.items()) for machine in machines
    )
