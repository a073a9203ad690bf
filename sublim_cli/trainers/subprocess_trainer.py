"""Train a student in other processes: one for Unsloth, or the several that `accelerate launch` starts.

The process that runs the step writes the job to a file, starts the others, passes on the progress and
warnings they print, and finds the student in the artifact's directory.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sublim_cli import errors
from sublim_cli.errors import ModelError, SublimError
from sublim_cli.models.device import DEVICE
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import unsloth
from sublim_cli.trainers.runtime import runtime
from sublim_cli.trainers.sft import StepCallback
from sublim_cli.trainers.student import TrainingJob, WarnCallback, train_student

MODULE = "sublim_cli.trainers.subprocess_trainer"
PREFIX = "sublim "
"""Marks the lines of stdout that are messages; a launcher or a library may print others."""


def needs_subprocess(section: TrainSection) -> bool:
    """Whether a student of `section` is trained in other processes than this one."""
    return section.backend == "unsloth" or runtime().accelerate is not None


def train_in_subprocess(job: TrainingJob, on_step: StepCallback, warn: WarnCallback) -> dict[str, Any]:
    """`train_student` in other processes: the same files and facts.

    Raises:
        SublimError: whatever `train_student` raised there.
        ModelError: a process died.
    """
    config = runtime().accelerate
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)] if config else []
    with tempfile.TemporaryDirectory(prefix="sublim-") as scratch:
        path = Path(scratch) / "job"
        path.write_bytes(pickle.dumps(job))
        command = [sys.executable, *launcher, "-m", MODULE, str(path)]
        environment = dict(os.environ)
        if job.section.backend == "unsloth":
            environment |= unsloth.environment(Path(scratch), os.environ)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                facts = _pass_on_messages(process, on_step, warn)
            finally:
                process.terminate()  # does nothing if it has ended
    if facts is None:
        raise ModelError(
            f"the process that trained the student died (exit code {process.returncode}); "
            "its last output is above"
        )
    return facts


def _pass_on_messages(
    process: "subprocess.Popen[str]", on_step: StepCallback, warn: WarnCallback
) -> dict[str, Any] | None:
    """Read messages until the process ends; return the facts, or None if it died without sending them."""
    facts: dict[str, Any] | None = None
    for line in process.stdout or ():
        if not line.startswith(PREFIX):
            continue
        kind, content = json.loads(line.removeprefix(PREFIX))
        match kind:
            case "step":
                on_step(*content)
            case "warning":
                warn(content)
            case "facts":
                facts = content
            case _:  # the name of an error's class
                error: SublimError = getattr(errors, kind, ModelError)(content)
                raise error
    process.wait()
    return facts


def main(path: Path) -> None:
    """Train the job at `path` in this process and print messages for the process that started it."""
    with os.fdopen(os.dup(1), "w", buffering=1) as messages:
        os.dup2(2, 1)  # whatever else prints goes to stderr
        import torch

        local_rank, wanted = os.environ.get("LOCAL_RANK"), os.environ.get(DEVICE, "cuda")
        if local_rank is not None and wanted.startswith("cuda") and torch.cuda.is_available():
            os.environ[DEVICE] = f"cuda:{local_rank}"  # one GPU for each process of a launch
        job: TrainingJob = pickle.loads(path.read_bytes())  # written by the process that started this one
        if job.section.backend == "unsloth":
            unsloth.import_unsloth()
        rank = int(os.environ.get("RANK", "0"))

        def send(kind: str, content: Any) -> None:
            # Only rank 0 reports, but errors come from all: the others may wait for the one that failed.
            if rank == 0 or kind not in ("step", "warning", "facts"):
                messages.write(f"{PREFIX}{json.dumps([kind, content])}\n")

        with tempfile.TemporaryDirectory(prefix="sublim-") as scratch:
            if rank != 0:  # every process holds the same student; rank 0 writes it to the artifact
                job = replace(job, out=Path(scratch))
            try:
                facts = train_student(job, lambda *step: send("step", step), partial(send, "warning"))
            except SublimError as error:
                send(type(error).__name__, str(error))
            else:
                send("facts", facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
