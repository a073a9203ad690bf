"""Options of a training that belong to this machine and not to the recipe.

They are set by flags or environment variables, inherited by the workers of a sweep, and in no digest,
because the student is the same. Its last bits may differ: a smaller micro-batch, like another number of
threads, sums the same gradients in another order, and adapter dropout then drops other units. The record
of the artifact says which values were used.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import single_gpu_environment

CHECKPOINT_EVERY = "SUBLIM_CHECKPOINT_EVERY"
MICRO_BATCH = "SUBLIM_MICRO_BATCH"
REPORT_TO = "SUBLIM_REPORT_TO"
ACCELERATE = "SUBLIM_ACCELERATE"

TRACKERS = ("none", "tensorboard", "trackio", "wandb", "mlflow")
"""Where losses can be sent while training; the first two need no account."""


@dataclass(frozen=True)
class CheckpointInterval:
    """Optimizer steps or minutes between two checkpoints; exactly one of the two is set."""

    steps: int | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class Runtime:
    """The options; by default no losses are sent anywhere."""

    checkpoint_every: CheckpointInterval | None = None
    """None: by time, see `checkpoints.checkpointer`."""
    micro_batch: int | None = None
    """The most rows of one forward pass; None: as many as fit (`memory.fitting_micro_batch`)."""
    report_to: str = "none"
    accelerate: Path | None = None
    """A configuration file of `accelerate launch`, whose processes train each student together."""


def runtime() -> Runtime:
    """The options as the environment sets them.

    Raises:
        RecipeError: a variable has an invalid value.
        MissingExtra: the tracker is not installed.
    """
    interval, micro_batch = os.environ.get(CHECKPOINT_EVERY), os.environ.get(MICRO_BATCH)
    tracker, config = os.environ.get(REPORT_TO) or "none", os.environ.get(ACCELERATE)
    if micro_batch and (not micro_batch.isdecimal() or int(micro_batch) < 1):
        raise RecipeError(
            f"--micro-batch ({MICRO_BATCH}): {micro_batch!r} must be a whole number of at least 1"
        )
    if tracker not in TRACKERS:
        raise RecipeError(f"--report-to ({REPORT_TO}): {tracker!r} is none of {', '.join(TRACKERS)}")
    if tracker != "none" and find_spec(tracker) is None:
        raise MissingExtra(f"--report-to {tracker}: it is not installed; `pip install {tracker}` adds it")
    if config and not Path(config).is_file():
        raise RecipeError(f"--accelerate ({ACCELERATE}): there is no file {config}; see docs/multi_gpu.md")
    return Runtime(
        checkpoint_every=_checkpoint_interval(interval) if interval else None,
        micro_batch=int(micro_batch) if micro_batch else None,
        report_to=tracker,
        accelerate=Path(config) if config else None,
    )


def set_runtime(
    checkpoint_every: str | None = None,
    micro_batch: int | None = None,
    report_to: str | None = None,
    accelerate: Path | None = None,
) -> None:
    """Set options for this process and its workers; None leaves an option unchanged.

    Raises:
        RecipeError, MissingExtra: see `runtime`.
    """
    values = {
        CHECKPOINT_EVERY: checkpoint_every,
        MICRO_BATCH: None if micro_batch is None else str(micro_batch),
        REPORT_TO: report_to,
        ACCELERATE: None if accelerate is None else str(accelerate.absolute()),
    }
    os.environ.update({name: value for name, value in values.items() if value is not None})
    runtime()  # raises for an invalid value


def gpu_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The changes to `environment` by which a process that trains sees its own GPU alone.

    None with `SUBLIM_ACCELERATE`: the processes that it starts need all GPUs, and take one each.

    Raises:
        RecipeError: see `models.device.single_gpu_environment`.
    """
    return {} if environment.get(ACCELERATE) else single_gpu_environment(environment)


def _checkpoint_interval(text: str) -> CheckpointInterval:
    match = re.fullmatch(r"([1-9][0-9]*)(min)?", text.strip())
    if match is None:
        raise RecipeError(
            f"--checkpoint-every ({CHECKPOINT_EVERY}): {text!r} is neither steps, such as 200, "
            "nor minutes, such as 10min"
        )
    number = int(match[1])
    return CheckpointInterval(minutes=number) if match[2] else CheckpointInterval(steps=number)
