"""vLLM in a separate process, which is kept for the next student that the same engine can hold.

vLLM starts processes, which a worker of a sweep may not; it uses the first GPU it sees, prints to stdout, and
may not share a process with Unsloth. The process that runs the step never imports it: it sends requests and
gets token ids. Between two uses the engine sleeps, so that the GPU is free for training or scoring.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sublim_cli.backends.engine import uses_cpu_build
from sublim_cli.backends.vllm import DrawRequest, EngineConfig, VllmEngine
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.device import single_gpu_environment, threads

MEMORY = "SUBLIM_VLLM_MEMORY"
"""The environment variable for the share of GPU memory that vLLM may use while it draws."""

DEFAULT_MEMORY = 0.85
"""The rest is for the CUDA contexts that this process and vLLM keep on the GPU."""

EXIT_TIMEOUT = 10.0
"""Seconds that an engine has to exit by itself."""


class VllmProcess:
    """A `VllmEngine` in a process that this one starts."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sublim_cli.backends.vllm_server import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=process_environment(os.environ),
            start_new_session=True,  # Ctrl-C does not reach it, and its children can be killed with it
        )
        assert self._process.stdin is not None  # both are pipes
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout

    def draw(self, request: DrawRequest) -> list[list[int]]:
        """See `VllmEngine.draw`."""
        drawn: list[list[int]] = self.call("draw", request)
        return drawn

    def call(self, method: str, *arguments: Any) -> Any:
        """Create the engine (`start`) or call a method of it, and return the result.

        Raises:
            ModelError: vLLM failed, or its process died.
        """
        try:
            pickle.dump((method, arguments), self._requests)
            self._requests.flush()
            error, result = pickle.load(self._replies)  # written by the process that this one started
        except (BrokenPipeError, EOFError):
            error = f"its process died (exit code {self._process.wait()})"
        if error is not None:
            memory = (
                f"{MEMORY}={DEFAULT_MEMORY / 2:.2g} would leave more of the card to others "
                f"({memory_share():g} now), and "
            )
            raise ModelError(
                f"vLLM could not {method}: {error}; what it printed is above. "
                f"{'' if uses_cpu_build() else memory}`engine: transformers` works without vLLM"
            )
        return result

    def close(self, timeout: float) -> None:
        """End the process and its children, and return once none is left.

        They are asked to exit, and killed after `timeout` seconds. vLLM's own end takes up to 14 s, as it
        waits for its children in turn; nothing that they hold is needed any more.
        """
        with suppress(BrokenPipeError):
            self._requests.close()
        for sign, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, EXIT_TIMEOUT)):
            if seconds > 0 and group_is_running(self._process.pid):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, sign)
            deadline = time.monotonic() + seconds
            while group_is_running(self._process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        self._process.wait()
        self._replies.close()


def group_is_running(group: int) -> bool:
    """Whether a process of this group is running; one that has ended and is not reaped is not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                return True
    return False


_running: list[VllmProcess] = []
"""The engine that was started last, if it is still there; at most one."""


@contextmanager
def running_engine(config: EngineConfig) -> Iterator[VllmProcess]:
    """An engine that is awake: the running one if it has this configuration, else a new one.

    Raises:
        ModelError: it does not start, or a request fails.
    """
    try:
        if _running and _running[0].config == config:
            _running[0].call("wake")
        else:
            stop_engine()
            _running.append(VllmProcess(config))
            _running[0].call("start", config, memory_share())
        yield _running[0]
        _running[0].call("sleep")
    except BaseException:  # an interrupt too: the engine may be in the middle of a request
        stop_engine(timeout=0.0)
        raise


@atexit.register
def stop_engine(timeout: float = EXIT_TIMEOUT) -> None:
    """End the running engine, if there is one."""
    while _running:
        _running.pop().close(timeout)


def memory_share() -> float:
    """The share of GPU memory that vLLM may use.

    Raises:
        RecipeError: the variable is not a share.
    """
    text = os.environ.get(MEMORY, str(DEFAULT_MEMORY))
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RecipeError(f"{MEMORY}={text}: must be a share of the card, above 0 and at most 1")
    return share


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of its process: this worker's GPU, no usage statistics, nothing on stdout."""
    on_cpu = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process would take 40 CPU seconds to start
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else two workers bind their threads to the same cores
        "OMP_NUM_THREADS": str(threads()),
    }
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        **environment,
        **single_gpu_environment(environment),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would hold our pipe open after we exit
        **(on_cpu if uses_cpu_build() else {}),
    }


def main() -> None:
    """Answer requests from stdin until it is closed; replies go to what was stdout."""
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # anything else that is printed goes to stderr
        engine: VllmEngine | None = None
        while True:
            try:
                method, arguments = pickle.load(sys.stdin.buffer)  # written by the process that started this
            except EOFError:
                return
            result, failure = None, None
            try:
                if method == "start":
                    engine = VllmEngine(*arguments)
                else:
                    result = getattr(engine, method)(*arguments)
            except Exception as error:  # noqa: BLE001  # vLLM's own errors have no built-in class in common
                lines = str(error).strip().splitlines() or [type(error).__name__]
                failure = lines[0].rstrip(".")
            with suppress(BrokenPipeError):
                pickle.dump((failure, result), replies)
                replies.flush()
