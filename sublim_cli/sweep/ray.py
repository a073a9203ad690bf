"""A sweep on a Ray cluster, or on one that Ray makes of this machine. The only file that imports ray."""

import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError

from sublim_cli.artifacts.step import Step, digest
from sublim_cli.artifacts.store import Store, explain_disk_errors
from sublim_cli.errors import RecipeError, SublimError
from sublim_cli.events import Event, Listener, Warned
from sublim_cli.models.load import KEEP_BASE
from sublim_cli.sweep.launch import LOST_AT_MOST, Done, Needs, Queue, attempt, knobs, loads_model

PATIENCE = 60.0
"""Seconds a worker may take to come up before the user hears that the cluster has no room."""

KNOCK = 10.0
"""Seconds a cluster has to answer at its address."""

EVENTS_MIB = 100
"""What a local cluster reserves for objects: events alone pass through Ray, artifacts lie in the store."""


@dataclass(frozen=True)
class RayLauncher:
    """Persistent actors, one step each at a time; a step whose worker is lost goes to another one."""

    address: str | None
    """A running cluster, such as `auto` or `10.0.0.1:6379`; None makes one of this machine."""
    workers: int | None
    """At most so many actors; None is as many as the cluster holds."""
    needs: Needs

    def launch(self, steps: Sequence[Step], store: Store, listener: Listener) -> Mapping[str, str]:
        """Build `steps`; see `launch.Launcher`. On an interrupt the actors are killed.

        Raises:
            RecipeError: this machine alone cannot hold a worker.
            SublimError: no cluster answers, or its workers do not see the store or cannot start.
        """
        queue = Queue.of(steps, store)
        listener(queue.planned())
        if queue.waiting:
            here = Store(store.root.absolute())
            try:
                with _cluster(self.address), _mark(here) as mark:
                    _Crew(self, here, mark, queue, listener).work()
            finally:
                here.tidy(steps)
        return queue.failed


@dataclass
class _Hand:
    """One actor: coming up, idle, or at work on a step."""

    actor: Any
    greeting: Any
    """Resolves once the actor is up; None afterwards."""
    step: Step | None = None
    words: Any = None
    """The generator of what the actor says while it builds `step`."""

    @property
    def news(self) -> Any:
        """What to wait for; None for an idle hand."""
        return self.greeting if self.greeting is not None else self.words


@dataclass
class _Crew:
    """The actors of one launch, and which step each is at.

    All are of one kind and take any step. Were there others for steps that load no model, those with a model
    could hold every core and wait for a step that only the others may build.
    """

    launcher: RayLauncher
    store: Store
    mark: Path
    queue: Queue
    listener: Listener
    hands: list[_Hand] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """How often each step's worker was lost; under an empty name, workers lost while they came up."""

    def work(self) -> None:
        """Until every step is built or has failed."""
        asked = self._asked()
        self._check_room(asked)
        try:
            while self.queue.waiting or any(one.step for one in self.hands):
                self._hire(asked)
                self._assign()
                self._listen()
        finally:
            for hand in self.hands:
                ray.kill(hand.actor)

    def _hire(self, asked: Mapping[str, float]) -> None:
        busy = sum(one.step is not None for one in self.hands)
        for _ in range(min(self._room(asked), busy + len(self.queue.waiting)) - len(self.hands)):
            self.hands.append(self._new(asked))

    def _assign(self) -> None:
        for hand in self.hands:
            if hand.news is not None:
                continue
            step = self.queue.take()
            if step is not None:
                hand.step = step
                hand.words = hand.actor.build.options(num_returns="streaming").remote(step)

    def _listen(self) -> None:
        """Take whatever one or more of the actors say next."""
        said = {one.news: one for one in self.hands if one.news is not None}
        ready, _ = ray.wait(list(said), num_returns=1, timeout=PATIENCE)
        if not ready and not any(one.step for one in self.hands):
            self.listener(Warned("no worker of this sweep has room in the cluster yet; waiting for it"))
        for one in ready:
            self._hear(said[one])

    def _hear(self, hand: _Hand) -> None:
        try:
            if hand.greeting is not None:
                self._greet(hand)
            else:
                self._note(hand, ray.get(next(hand.words)))
        except RayError as error:  # an actor that died, or was ended for the memory it took
            self._bury(hand, _last_line(error))

    def _greet(self, hand: _Hand) -> None:
        complaint = ray.get(hand.greeting)
        hand.greeting = None
        if complaint:
            raise SublimError(complaint)

    def _note(self, hand: _Hand, message: "Done | Event") -> None:
        if not isinstance(message, Done):
            self.listener(message)
        elif hand.step is not None:
            step, hand.step, hand.words = hand.step, None, None
            self.queue.settle(step, message.reason, self.listener)

    def _bury(self, hand: _Hand, why: str) -> None:
        """Let a lost actor go; its step waits again, until it has been lost too often."""
        self.hands.remove(hand)
        ray.kill(hand.actor)
        name = digest(hand.step) if hand.step else ""
        self.lost[name] = self.lost.get(name, 0) + 1
        too_often = self.lost[name] >= LOST_AT_MOST
        if hand.step is None:
            if too_often:
                raise SublimError(f"no worker comes up on the Ray cluster: {why}")
        elif too_often:
            self.queue.settle(hand.step, f"its worker was lost {LOST_AT_MOST} times ({why})", self.listener)
        else:
            self.listener(
                Warned(f"{hand.step.label}: its worker was lost ({why}); another one begins it anew")
            )
            self.queue.give_back(hand.step)

    def _asked(self) -> dict[str, float]:
        """What an actor asks for, in Ray's words; cores alone if no step that waits loads a model."""
        needs, with_model = self.launcher.needs, any(map(loads_model, self.queue.waiting.values()))
        asked = {"CPU": float(needs.cpus)}
        if with_model and needs.gpus:
            asked["GPU"] = needs.gpus
        if with_model and needs.memory_gib:
            asked["memory"] = needs.memory_gib * 2**30
        return asked

    def _room(self, asked: Mapping[str, float]) -> int:
        """How many actors to keep: what was asked for, or what the cluster holds when empty."""
        if self.launcher.workers:
            return self.launcher.workers
        held = sum(min(int(node.get(name, 0) / one) for name, one in asked.items()) for node in _nodes())
        return max(1, held)

    def _check_room(self, asked: Mapping[str, float]) -> None:
        if any(all(node.get(name, 0) >= one for name, one in asked.items()) for node in _nodes()):
            return
        message = f"no machine here has what a worker asks for ({_told(asked)}); lower --gpus or --memory"
        if self.launcher.address is None:
            raise RecipeError(message)
        self.listener(Warned(f"{message}, or wait for one to join"))

    def _new(self, asked: Mapping[str, float]) -> _Hand:
        kind = ray.remote(_Builder).options(
            num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0), memory=asked.get("memory", 0)
        )
        actor = kind.remote(self.store, {**knobs(), KEEP_BASE: "1"})
        return _Hand(actor, actor.greet.remote(self.mark))


class _Builder:
    """The actor: pays the libraries' import once, and keeps the base model in main memory."""

    def __init__(self, store: Store, knobs: Mapping[str, str]) -> None:
        os.environ.update(knobs)
        self.store = store

    def greet(self, mark: Path) -> str | None:
        """Say that it is up; a sentence if it does not see the launcher's store."""
        if mark.is_file():
            return None
        return (
            f"{socket.gethostname()} does not see the store {self.store.root}; "
            "let --out be a directory that all machines share under one path"
        )

    def build(self, step: Step) -> Iterator["Done | Event"]:
        """What happens while `step` is built, then how it ended."""
        said: SimpleQueue[Event | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as builder:
            built = builder.submit(attempt, step, self.store, said.put)
            built.add_done_callback(lambda _: said.put(None))
            while (event := said.get()) is not None:
                yield event
        yield Done(built.result())


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them to its makers
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": EVENTS_MIB << 20}
    try:
        _knock(address)
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    except OSError:  # ConnectionError is one, and so is a name that is no machine's
        raise SublimError(
            f"--ray-address {address}: no Ray cluster answers there; `ray start --head` starts one, "
            "and without --ray-address Ray makes one of this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes and write about each try.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


@contextmanager
def _mark(store: Store) -> Iterator[Path]:
    """A file in the store by which a worker knows that it sees the same directory."""
    path = store.root / f".here-{uuid.uuid4().hex}"
    with explain_disk_errors(store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _nodes() -> list[dict[str, float]]:
    return [one["Resources"] for one in ray.nodes() if one["Alive"]]


def _told(asked: Mapping[str, float]) -> str:
    memory = asked.get("memory")
    words = [f"{asked['CPU']:g} CPU"]
    words += [f"{asked['GPU']:g} GPU"] if "GPU" in asked else []
    words += [f"{memory / 2**30:g} GiB of memory"] if memory else []
    return ", ".join(words)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
