"""Supervised fine-tuning: run the trainer, report its steps, write and resume checkpoints, measure losses."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sublim_cli.errors import RowsError
from sublim_cli.models.batches import in_batches, loss_copies, rows_that_fit
from sublim_cli.models.chat import IGNORED, Example, Tokenizer
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.checkpoints import (
    checkpoint_step,
    checkpointer,
    discard_incomplete,
    latest_complete,
    saved_optimizer_dtypes,
)
from sublim_cli.trainers.oom import step_out_of_memory
from sublim_cli.trainers.precision import state_dtypes
from sublim_cli.trainers.runtime import runtime
from sublim_cli.trainers.sft_trainer import make_trainer, sft_config, summed_loss
from sublim_cli.trainers.sharded import check_checkpoint, sharded

StepCallback = Callable[[int, int, float, float], None]
"""Called after every optimizer step with the step, the number of steps, the loss and tokens/s so far."""

HISTORY_FIELDS = ("step", "loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class FitResult:
    """What a training produces besides the weights."""

    history: list[dict[str, float]]
    """One record per step with `HISTORY_FIELDS`, from the first step on, also after a resume."""
    optimizer_state: dict[str, list[str]]
    """Dtypes of the optimizer's state, by name."""
    facts: dict[str, Any]
    """How it was run here: micro-batch, accumulation, processes, the step it was resumed from."""


def fit(
    model: Model,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    section: TrainSection,
    on_step: StepCallback,
    *,
    optimizer: Any = None,
    checkpoints: Path | None = None,
    micro_batch: int | None = None,
) -> FitResult:
    """Train `model` in place.

    The rows are token ids and labels, which TRL passes on unchanged: sublim tokenises, masks and checks
    lengths (`check_lengths`) itself. `optimizer` is a torch optimizer over the model's trainable parameters;
    None is AdamW.
    `checkpoints` is a directory that outlives this process: training resumes from a complete checkpoint
    there, and writes one there after its last step, and more if the runtime asks for them.
    `micro_batch` is the most rows of a forward pass unless the runtime names a number; None is the default of
    `micro_batches`.

    Raises:
        RowsError: no token carries loss, or training diverged.
        RecipeError: see `sft_config` and `check_checkpoint`.
        ModelError: one row is too much for the device's memory.
    """
    import torch

    if not any(label != IGNORED for row in examples for label in row.labels):
        raise RowsError("no token of these rows carries loss: every completion is empty")
    options = runtime()
    options = replace(options, micro_batch=options.micro_batch or micro_batch)
    with tempfile.TemporaryDirectory() as scratch:
        out = checkpoints or Path(scratch)
        discard_incomplete(out)
        checkpoint = latest_complete(out)
        check_checkpoint(checkpoint)
        config = sft_config(section, out, options)
        trainer = make_trainer(model, tokenizer, examples, section, config, optimizer)
        if options.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            from transformers.integrations import TensorBoardCallback

            # STORE/tensorboard/DIGEST: the callback's default would be lost with the scratch directory.
            logs = Path("tensorboard")
            if checkpoints is not None:
                logs = checkpoints.parent.parent / "tensorboard" / checkpoints.stem.lstrip(".")
            trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(logs))))
        tokens_per_row = sum(len(row.input_ids) for row in examples) / len(examples)
        trainer.add_callback(_progress_callback(on_step, tokens_per_row * section.batch_size))
        if checkpoints:
            trainer.add_callback(checkpointer(options.checkpoint_every, trainer.args.world_size))
        model.train()  # a new adapter around a base in eval mode would hide that mode from the trainer
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise step_out_of_memory(trainer.model) from error
    history = [
        {name: log[name] if name == "step" else float(log[name]) for name in HISTORY_FIELDS}
        for log in trainer.state.log_history
        if "loss" in log
    ]
    # Unsloth's trainer has no runner.
    parts = trainer.micro_batch_runner.parts if hasattr(trainer, "micro_batch_runner") else 1
    facts = {
        "micro_batch": -(-trainer.args.per_device_train_batch_size // parts),
        "accumulation": trainer.args.gradient_accumulation_steps * parts,
        "processes": trainer.args.world_size,
        "sharded": sharded(),
        "halved_for_memory": parts > 1,
        "resumed_from_step": checkpoint_step(checkpoint) if checkpoint else 0,
    }
    dtypes = saved_optimizer_dtypes(checkpoint) or state_dtypes(trainer.optimizer)
    return FitResult(history, dtypes, facts)


def check_lengths(rows: Mapping[str, Sequence[Example]], max_length: int, window: int | None) -> None:
    """Refuse rows, here by what they are called, that are too long.

    Args:
        rows: training and held-out rows.
        max_length: `train.max_length`, in tokens.
        window: the longest sequence the model is made for, in tokens; None if it does not say.

    Raises:
        RowsError: a row would be cut at `max_length`, or is longer than the window.
    """
    for name, examples in rows.items():
        sizes = [len(row.input_ids) for row in examples]
        longest = max(sizes, default=0)
        if window is not None and longest > window:
            raise RowsError(
                f"{sum(size > window for size in sizes)} of {len(sizes)} {name} have more tokens than the "
                f"{window} that the model is made for; the longest has {longest}. Lower "
                "generate.sampling.max_tokens, or use a model with a larger window"
            )
        if longest > max_length:
            cut = sum(size > max_length for size in sizes)
            raise RowsError(
                f"train.max_length {max_length} would cut the completion of {cut} of {len(sizes)} {name}; "
                f"the longest has {longest} tokens. Set `train.max_length: {longest}` or more"
            )


def _progress_callback(on_step: StepCallback, tokens_per_step: float) -> Any:
    """A callback that calls `on_step`, and stops a training whose loss or gradient is not finite."""
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first_step, self.started = state.global_step, time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs or not state.is_world_process_zero:
                return
            step = state.global_step
            if not all(math.isfinite(float(logs[name])) for name in ("loss", "grad_norm")):
                raise RowsError(
                    f"training diverged at step {step}: the loss is not finite; lower train.learning_rate"
                )
            seconds = time.monotonic() - self.started
            speed = tokens_per_step * (step - self.first_step) / seconds
            on_step(step, state.max_steps, float(logs["loss"]), speed)

    return ProgressCallback()


def number_loss(model: Model, examples: Sequence[Example], pad: int, batch: int = 64) -> float:
    """Mean cross entropy in nats per completion token over `examples`, computed in fp32.

    `batch` rows are computed at a time, or as many as fit into memory.

    Raises:
        ModelError: a single row does not fit.
    """
    import torch

    model.eval()
    width = max(len(row.input_ids) for row in examples)
    logits = loss_copies(model.dtype.itemsize) * max(map(_tokens_with_loss, examples))
    size = rows_that_fit(model, width, most=batch, logits=logits, cached=False)
    with torch.inference_mode():
        total = sum(in_batches(examples, lambda rows: _summed_loss(model, rows, pad), size))
    return total / sum(map(_tokens_with_loss, examples))


def _summed_loss(model: Model, rows: Sequence[Example], pad: int) -> float:
    """Cross entropy in nats, summed over the completion tokens of some rows.

    Padded on the right as in training, where a causal model gives the same whether it reads the mask or not:
    Unsloth's kernels read it in some passes only.
    """
    import torch

    width = max(len(row.input_ids) for row in rows)

    def padded(values: Iterable[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values], device=model.device)

    batch = {
        "input_ids": padded((row.input_ids for row in rows), pad),
        "attention_mask": padded(([1] * len(row.input_ids) for row in rows), 0),
        "labels": padded((row.labels for row in rows), IGNORED),
    }
    return float(summed_loss(model, batch))


def _tokens_with_loss(row: Example) -> int:
    return sum(label != IGNORED for label in row.labels)
