"""Checkpoints of a running training: when they are written, and which one a killed run resumes from."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.trainers.precision import state_dtypes
from sublim_cli.trainers.runtime import CheckpointInterval
from sublim_cli.trainers.sharded import sharded

COMPLETE = "whole"
"""The marker file that is written into a checkpoint last. A checkpoint without it does not count."""

OPTIMIZER_DTYPES = "optimizer_dtypes.json"
"""The file in the last checkpoint with the dtypes of the optimizer's state, which is not saved there."""

LEAST_SECONDS = 60.0
"""Without an interval, the time between two checkpoints at least."""

SAVING_SHARE = 0.02
"""Without an interval, the share of a training's time that saving checkpoints may take."""

CHECKPOINT_LIMIT = 2
"""The latest checkpoint, and the one before it until the latest is complete."""


def latest_complete(directory: Path) -> Path | None:
    """The complete checkpoint of the latest step under `directory`; None if there is none."""
    complete = [marker.parent for marker in directory.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=checkpoint_step, default=None)


def discard_incomplete(directory: Path) -> None:
    """Remove checkpoints whose writer was killed, so that they do not count towards the limit."""
    for checkpoint in directory.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)  # another process may remove it at the same time


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpointer(interval: CheckpointInterval | None, processes: int = 1) -> Any:
    """A callback that requests a checkpoint when one is due, and marks it complete once it is on disk.

    Without an `interval` one is due every `LEAST_SECONDS`, or less often where saving takes long
    (`SAVING_SHARE`); with several processes, whose clocks differ, none is before the last step.

    A checkpoint is always due after the last step: what follows a training may fail. Nothing goes on from it,
    so it holds the weights without the optimizer's state, except of a sharded training, whose weights
    accelerate saves together with that.

    Raises:
        RecipeError: an interval in minutes with several processes, whose clocks differ.
    """
    from accelerate import PartialState
    from transformers import TrainerCallback

    if processes > 1 and interval and interval.minutes:
        raise RecipeError(
            "--checkpoint-every: several processes have several clocks; give steps (200), not minutes"
        )

    class Checkpointer(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last_saved = time.monotonic()
            self.seconds_to_save = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            is_last = state.global_step >= state.max_steps
            self.step_end = time.monotonic()
            since = self.step_end - self.last_saved
            if interval is None:
                due = processes == 1 and since >= max(LEAST_SECONDS, self.seconds_to_save / SAVING_SHARE)
            elif interval.steps is not None:
                due = state.global_step % interval.steps == 0
            else:
                due = since >= 60 * (interval.minutes or 0)
            args.save_only_model = is_last and not sharded()
            control.should_save |= due or is_last

        def on_save(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if processes > 1:
                PartialState().wait_for_everyone()  # each process writes its random state and its shard
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                if args.save_only_model:
                    dtypes = json.dumps(state_dtypes(optimizer))
                    (checkpoint / OPTIMIZER_DTYPES).write_text(dtypes, encoding="utf-8")
                for path in checkpoint.rglob("*"):
                    if path.is_file():
                        with path.open("rb") as file:
                            os.fsync(file.fileno())
                (checkpoint / COMPLETE).touch()
            self.last_saved = time.monotonic()
            self.seconds_to_save = self.last_saved - self.step_end

    return Checkpointer()


def saved_optimizer_dtypes(checkpoint: Path | None) -> dict[str, list[str]] | None:
    """The dtypes of the optimizer's state after the last step; None for a checkpoint that holds the state."""
    if checkpoint is None or not (checkpoint / OPTIMIZER_DTYPES).is_file():
        return None
    dtypes: dict[str, list[str]] = json.loads((checkpoint / OPTIMIZER_DTYPES).read_text(encoding="utf-8"))
    return dtypes
