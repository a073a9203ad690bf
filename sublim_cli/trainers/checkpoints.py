"""Checkpoints inside a run: written as it goes, and where a successor of a killed run goes on."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.trainers.runtime import Every

WHOLE = "whole"
"""The file written last into a checkpoint. Without it the checkpoint does not count."""

KEPT = 2
"""The newest checkpoint, and the one before it until the newest is whole."""


def newest(directory: Path) -> Path | None:
    """The whole checkpoint of the latest step under `directory`, if there is one."""
    whole = [one.parent for one in directory.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=_step, default=None)


def discard_torn(directory: Path) -> None:
    """Remove the checkpoints whose writer was killed, so that they do not count among the kept."""
    for one in directory.glob("checkpoint-*"):
        if not (one / WHOLE).is_file():
            shutil.rmtree(one, ignore_errors=True)  # of several processes one comes first


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step a checkpoint was written after; 0 for none."""
    return 0 if checkpoint is None else _step(checkpoint)


def checkpointer(every: Every, processes: int = 1) -> Any:
    """A callback that has a checkpoint written when one is due, and seals it once it is on disk.

    Raises:
        RecipeError: several processes, whose clocks differ, are to write together by the minute.
    """
    from accelerate import PartialState
    from transformers import TrainerCallback

    if processes > 1 and every.minutes:
        raise RecipeError("--checkpoint-every: several processes keep step by steps; say 200, not minutes")

    class Checkpointer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            due = _due(every, state.global_step, time.monotonic() - self.last)
            control.should_save |= due and state.global_step < state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last = time.monotonic()
            if processes > 1:
                PartialState().wait_for_everyone()  # each writes its random state, and its shard
            if state.is_world_process_zero:
                _seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Checkpointer()


def _due(every: Every, step: int, seconds: float) -> bool:
    """Whether a checkpoint is due after `step`, `seconds` after the last one."""
    if every.steps is not None:
        return step % every.steps == 0
    return seconds >= 60 * (every.minutes or 0)


def _seal(checkpoint: Path) -> None:
    """Flush a checkpoint's files, then write the proof that it is whole."""
    for one in checkpoint.rglob("*"):
        if one.is_file():
            with one.open("rb") as file:
                os.fsync(file.fileno())
    (checkpoint / WHOLE).touch()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
