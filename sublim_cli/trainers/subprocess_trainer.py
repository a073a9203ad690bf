"""A student trained in processes of their own: Unsloth's, or those that share one student.

The process that runs the step stays as it is. It hands the job over, passes on what is reported, and
finds the student in the artifact's directory.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from sublim_cli import errors
from sublim_cli.errors import ModelError, SublimError
from sublim_cli.models.chat import Example
from sublim_cli.models.device import DEVICE
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import unsloth
from sublim_cli.trainers.runtime import runtime

MODULE = "sublim_cli.trainers.subprocess_trainer"
MARK = "sublim "
"""Begins every line meant for us: a launcher or a library may print to stdout, too."""


@dataclass(frozen=True)
class Job:
    """What the processes are given: `train_student`'s arguments but for its listeners."""

    ref: ModelRef
    section: TrainSection
    examples: Sequence[Example]
    held_out: Sequence[Example]
    out: Path
    checkpoints: Path | None


def apart(section: TrainSection) -> bool:
    """Whether a student of `section` is trained in other processes than this one."""
    return section.backend == "unsloth" or runtime().accelerate is not None


def train_apart(job: Job, report: Callable[..., None], warn: Callable[[str], None]) -> dict[str, Any]:
    """`train_student` in other processes: the same files and facts.

    Raises:
        SublimError: what was raised over there.
        ModelError: a process died.
    """
    with tempfile.TemporaryDirectory(prefix="sublim-") as scratch:
        path = Path(scratch) / "job"
        path.write_bytes(pickle.dumps(job))
        with subprocess.Popen(
            _command(path), stdout=subprocess.PIPE, text=True, env=_environment(job.section, Path(scratch))
        ) as process:
            try:
                facts = _listen(process, report, warn)
            finally:
                process.terminate()  # one that has ended is not there to be ended
    if facts is None:
        raise ModelError(
            f"the process that trained the student died (exit code {process.returncode}); "
            "its last words are above"
        )
    return facts


def _command(job: Path) -> list[str]:
    config = runtime().accelerate
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)] if config else []
    return [sys.executable, *launch, "-m", MODULE, str(job)]


def _environment(section: TrainSection, scratch: Path) -> dict[str, str]:
    more = unsloth.environment(scratch, os.environ) if section.backend == "unsloth" else {}
    return {**os.environ, **more}


def _listen(
    process: "subprocess.Popen[str]", report: Callable[..., None], warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Pass on messages until the processes have ended; the facts, if they came to an end."""
    facts: dict[str, Any] | None = None
    for line in process.stdout or ():
        if not line.startswith(MARK):
            continue
        kind, content = json.loads(line.removeprefix(MARK))
        match kind:
            case "report":
                report(*content)
            case "warn":
                warn(content)
            case "facts":
                facts = content
            case _:
                raise _error(kind, content)
    process.wait()
    return facts


def _error(kind: str, text: str) -> SublimError:
    error: SublimError = getattr(errors, kind, ModelError)(text)
    return error


def main(path: Path) -> None:
    """Train the job in this process; messages go out on what was stdout."""
    with os.fdopen(os.dup(1), "w", buffering=1) as messages:
        os.dup2(2, 1)  # whatever else prints does not disturb them
        rank = int(os.environ.get("RANK", "0"))
        _own_device()
        job: Job = pickle.loads(path.read_bytes())  # written by the process that started this one
        if job.section.backend == "unsloth":
            unsloth.first()
        with tempfile.TemporaryDirectory(prefix="sublim-") as spare:
            # All processes hold the same student; the first one's is kept.
            _work(job if rank == 0 else replace(job, out=Path(spare)), messages, first=rank == 0)


def _work(job: Job, messages: TextIO, *, first: bool) -> None:
    from sublim_cli.trainers.student import train_student

    def send(kind: str, content: Any, *, whoever: bool = first) -> None:
        if whoever:
            messages.write(f"{MARK}{json.dumps([kind, content])}\n")

    def report(*values: float) -> None:
        send("report", values)

    def warn(message: str) -> None:
        send("warn", message)

    try:
        facts = train_student(
            job.ref, job.section, job.examples, job.held_out, job.out, report, job.checkpoints, warn=warn
        )
    except SublimError as error:
        # Out of memory, one process alone may know it; the others wait for it.
        send(type(error).__name__, str(error), whoever=True)
    else:
        send("facts", facts)


def _own_device() -> None:
    """Each process of a launch computes on its own card."""
    import torch

    place = os.environ.get("LOCAL_RANK")
    if place is not None and os.environ.get(DEVICE, "cuda").startswith("cuda") and torch.cuda.is_available():
        os.environ[DEVICE] = f"cuda:{place}"


if __name__ == "__main__":
    # By its full name, which is the one that the job was pickled under.
    from sublim_cli.trainers.subprocess_trainer import main as named_main

    named_main(Path(sys.argv[1]))
