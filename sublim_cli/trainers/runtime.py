"""How a training is run on this machine: facts of the machine and of the moment, never of a recipe.

Set by flags or the environment, inherited by the workers of a sweep, and in no digest: the student that
comes out is the same one. Its last bits may not be: a smaller micro-batch, like another number of threads,
sums the same gradients in another order, and adapter dropout then drops other units. The record says which
were used.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sublim_cli.errors import MissingExtra, RecipeError

CHECKPOINT_EVERY = "SUBLIM_CHECKPOINT_EVERY"
MICRO_BATCH = "SUBLIM_MICRO_BATCH"
REPORT_TO = "SUBLIM_REPORT_TO"
ACCELERATE = "SUBLIM_ACCELERATE"

TRACKERS = ("none", "tensorboard", "trackio", "wandb", "mlflow")
"""Where losses may be sent as they come; the two first need no account."""

_EVERY = re.compile(r"([1-9][0-9]*)(min)?")


@dataclass(frozen=True)
class Every:
    """A checkpoint after so many optimizer steps, or so many minutes; one of the two is given."""

    steps: int | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class Runtime:
    """The knobs; the defaults keep no checkpoints, choose the micro-batch and send losses nowhere."""

    checkpoint_every: Every | None = None
    micro_batch: int | None = None
    report_to: str = "none"
    accelerate: Path | None = None
    """A configuration of `accelerate launch`; its processes train each student together."""


def runtime() -> Runtime:
    """The knobs as the environment sets them.

    Raises:
        RecipeError: a variable holds what it cannot mean.
        MissingExtra: the tracker asked for is not installed.
    """
    every, micro = os.environ.get(CHECKPOINT_EVERY), os.environ.get(MICRO_BATCH)
    config = os.environ.get(ACCELERATE)
    return Runtime(
        checkpoint_every=_every(every) if every else None,
        micro_batch=_rows(micro) if micro else None,
        report_to=_tracker(os.environ.get(REPORT_TO) or "none"),
        accelerate=_config(config) if config else None,
    )


def set_runtime(
    checkpoint_every: str | None = None,
    micro_batch: int | None = None,
    report_to: str | None = None,
    accelerate: Path | None = None,
) -> None:
    """Set the knobs for this process and its workers; None leaves one as it is.

    Raises:
        RecipeError, MissingExtra: see `runtime`.
    """
    given = {
        CHECKPOINT_EVERY: checkpoint_every,
        MICRO_BATCH: None if micro_batch is None else str(micro_batch),
        REPORT_TO: report_to,
        ACCELERATE: None if accelerate is None else str(accelerate.absolute()),
    }
    os.environ.update({name: value for name, value in given.items() if value is not None})
    runtime()


def _every(text: str) -> Every:
    match = _EVERY.fullmatch(text.strip())
    if match is None:
        raise RecipeError(
            f"--checkpoint-every ({CHECKPOINT_EVERY}): {text!r} is neither steps, such as 200, "
            "nor minutes, such as 10min"
        )
    number = int(match[1])
    return Every(minutes=number) if match[2] else Every(steps=number)


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise RecipeError(f"--micro-batch ({MICRO_BATCH}): {text!r} must be a whole number of at least 1")
    return int(text)


def _config(path: str) -> Path:
    if not Path(path).is_file():
        raise RecipeError(f"--accelerate ({ACCELERATE}): there is no file {path}; see docs/multi_gpu.md")
    return Path(path)


def _tracker(name: str) -> str:
    if name not in TRACKERS:
        raise RecipeError(f"--report-to ({REPORT_TO}): {name!r} is none of {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise MissingExtra(f"--report-to {name}: it is not installed; `pip install {name}` adds it")
    return name
