"""vLLM in a process of its own, kept between students that one engine can hold.

vLLM starts processes, which a worker of a sweep may not; it takes the first card it sees, prints to stdout,
and may not share a process with Unsloth. The process that runs the step never imports it: it sends requests
and gets token ids. Between two uses the engine sleeps, so that the card is free to train or to score on.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from sublim_cli.backends.interface import Ids
from sublim_cli.backends.vllm import EngineConfig, VllmEngine
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.device import single_gpu_environment
from sublim_cli.recipe.schema import SamplingSection

MODULE = "sublim_cli.backends.vllm_server"
MEMORY = "SUBLIM_VLLM_MEMORY"
"""The share of the card that vLLM may take while it draws; a fact of the machine, in no digest."""

MOST = 0.85
"""The default share: the rest is for the contexts that this process and vLLM keep on the card."""

PATIENCE = 10.0
"""Seconds that an engine has to leave by itself."""


class VllmProcess:
    """Our end of an engine in another process."""

    def __init__(self, held: EngineConfig) -> None:
        self.held = held
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=process_environment(os.environ),
            start_new_session=True,  # an interrupt is ours; and all it started can be ended at once
        )

    def start(self) -> None:
        """Load the model.

        Raises:
            ModelError: vLLM could not.
        """
        self._ask("start", self.held, memory_share())

    def draw(
        self,
        prompts: Sequence[Ids],
        rows: Sequence[int],
        sampling: SamplingSection,
        ends: frozenset[int],
        adapter: str | None,
    ) -> list[list[int]]:
        """See `vllm.Engine.draw`."""
        drawn: list[list[int]] = self._ask("draw", prompts, rows, sampling, ends, adapter)
        return drawn

    def sleep(self) -> None:
        """See `vllm.Engine.sleep`."""
        self._ask("sleep")

    def wake(self) -> None:
        """See `vllm.Engine.wake`."""
        self._ask("wake")

    def close(self, patience: float) -> None:
        """End the process and whatever it started; it has `patience` seconds to leave by itself."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None  # both are pipes
        assert replies is not None
        with suppress(BrokenPipeError):
            requests.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        replies.close()

    def _ask(self, what: str, *given: Any) -> Any:
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None  # both are pipes
        assert replies is not None
        try:
            pickle.dump((what, given), requests)
            requests.flush()
            error, answer = pickle.load(replies)  # written by the process that this one started
        except (BrokenPipeError, EOFError):
            error = f"its process died (exit code {self._process.wait()})"
        if error is not None:
            raise ModelError(
                f"vLLM could not {what}: {error}; what it printed is above. {MEMORY}={MOST / 2:.2g} would "
                f"leave more of the card to others ({memory_share():g} now), and `engine: transformers` "
                "works without vLLM"
            )
        return answer


_kept: list[VllmProcess] = []
"""The engine that sleeps until it is needed, one at most."""


@contextmanager
def running_engine(held: EngineConfig) -> Iterator[VllmProcess]:
    """An engine that is awake: the one that was kept if it holds the same, else a new one.

    Raises:
        ModelError: it does not start, or a request fails.
    """
    try:
        service = _awake(held)
        yield service
        service.sleep()
    except BaseException:  # an interrupt too: whatever the engine was at, it is not kept
        stop_engine(patience=0.0)
        raise


def _awake(held: EngineConfig) -> VllmProcess:
    if _kept and _kept[0].held == held:
        _kept[0].wake()
        return _kept[0]
    stop_engine()
    _kept.append(VllmProcess(held))
    _kept[0].start()
    return _kept[0]


@atexit.register
def stop_engine(patience: float = PATIENCE) -> None:
    """End the engine that was kept, if there is one."""
    while _kept:
        _kept.pop().close(patience)


def memory_share() -> float:
    """The share of the card that vLLM may take.

    Raises:
        RecipeError: the variable is no share.
    """
    written = os.environ.get(MEMORY, str(MOST))
    try:
        share = float(written)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RecipeError(f"{MEMORY}={written}: must be a share of the card, above 0 and at most 1")
    return share


def process_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What its process runs in: its own card, nothing sent home, nothing on stdout."""
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        **ours,
        **single_gpu_environment(ours),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would hold our pipe open after us
    }


def main() -> None:
    """Answer requests until the other end closes the line; replies go out on what was stdout."""
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # whatever else prints does not disturb them
        _answer(sys.stdin.buffer, replies)


def _answer(requests: IO[bytes], replies: IO[bytes]) -> None:
    engine: VllmEngine | None = None
    while True:
        try:
            what, given = pickle.load(requests)  # written by the process that started this one
        except EOFError:
            return
        answer, failure = None, None
        try:
            if what == "start":
                engine = VllmEngine(*given)
            else:
                answer = getattr(engine, what)(*given)
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            failure = _sentence(error)
        with suppress(BrokenPipeError):
            pickle.dump((failure, answer), replies)
            replies.flush()


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


if __name__ == "__main__":
    # By its full name, which is the one that requests are pickled under.
    from sublim_cli.backends.vllm_server import main as named_main

    named_main()
