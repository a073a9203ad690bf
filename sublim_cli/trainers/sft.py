"""Supervised fine-tuning through TRL. The only file that names SFTTrainer."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_cli.errors import RowsError
from sublim_cli.models.batches import attention_mask, left_padded, position_ids
from sublim_cli.models.chat import IGNORED, Example, Tokenizer
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.arguments import arguments
from sublim_cli.trainers.checkpoints import checkpointer, discard_torn, newest, step_of
from sublim_cli.trainers.oom import does_not_fit
from sublim_cli.trainers.precision import kept, state_dtypes
from sublim_cli.trainers.runtime import runtime
from sublim_cli.trainers.sft_trainer import lean
from sublim_cli.trainers.sharded import check_checkpoint, sharded

Report = Callable[[int, int, float, float], None]
"""Called after every optimizer step with the step, the number of steps, the loss and tokens/s so far."""

CURVE = ("step", "loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class Fitted:
    """What a training leaves beside the weights."""

    history: list[dict[str, float]]
    """One record a step: step, loss, learning_rate, grad_norm."""
    optimizer_state: dict[str, list[str]]
    """Dtypes of what the optimizer remembered, by name."""
    facts: dict[str, Any]
    """How it was run here: micro-batch, accumulation, processes, the step it was resumed from."""


def fit(
    model: Model,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    section: TrainSection,
    report: Report,
    *,
    optimizer: Any = None,
    checkpoints: Path | None = None,
) -> Fitted:
    """Train `model` in place.

    The rows arrive as token ids and labels, which TRL passes on untouched: tokenising, masking and
    truncating are sublim's own. `optimizer` is a ready torch optimizer over the model's trainable
    parameters; None is AdamW. `checkpoints` is a directory that outlives this process: a whole
    checkpoint found there is gone on from, and new ones are written there if the runtime asks for them.

    Raises:
        RowsError: no token carries loss, or a completion would be cut at `max_length`.
        RecipeError: see `arguments` and `check_checkpoint`.
        ModelError: one row is too much for the device's memory.
    """
    check_examples(examples, section.max_length)
    knobs = runtime()
    keep = checkpoints is not None and bool(knobs.checkpoint_every or newest(checkpoints))
    with _directory(checkpoints if keep else None) as out:
        discard_torn(out)
        start = newest(out)
        check_checkpoint(start)
        base = _trainer_of(section.backend)
        trainer = _made(base, model, tokenizer, examples, arguments(section, out, knobs), optimizer)
        if knobs.report_to == "tensorboard":
            trainer.add_callback(_tensorboard(checkpoints))
        trainer.add_callback(_reporter(report, _tokens_per_row(examples) * section.batch_size))
        if keep and knobs.checkpoint_every is not None:
            trainer.add_callback(checkpointer(knobs.checkpoint_every, trainer.args.world_size))
        _train(trainer, start)
    facts = {**_facts(trainer), "resumed_from_step": step_of(start)}
    return Fitted(_curve(trainer), state_dtypes(trainer.optimizer), facts)


def _train(trainer: Any, start: Path | None) -> None:
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except torch.OutOfMemoryError as error:
        raise does_not_fit(trainer.model) from error


@contextmanager
def _directory(checkpoints: Path | None) -> Iterator[Path]:
    """`checkpoints`, or a directory that goes when the training ends."""
    if checkpoints is not None:
        yield checkpoints
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _trainer_of(backend: str) -> Any:
    """TRL's trainer; Unsloth has patched it for its kernels, and there it stays as it is."""
    from trl import SFTTrainer

    return SFTTrainer if backend == "unsloth" else lean(SFTTrainer)


def _made(
    kind: Any, model: Model, tokenizer: Tokenizer, examples: Sequence[Example], args: Any, optimizer: Any
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [{"input_ids": one.input_ids, "labels": one.labels} for one in examples]
    side = tokenizer.padding_side
    with kept(model):
        trainer = kind(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
    # Given to the constructor, a sharded trainer would refuse it.
    trainer.optimizer = optimizer
    tokenizer.padding_side = side  # Unsloth's trainer turns it round, and the tokenizer is saved
    # The same rows as Python lists: fetched from Arrow, they would be decoded anew in every epoch.
    trainer.train_dataset = rows
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    return trainer


def _tensorboard(checkpoints: Path | None) -> Any:
    """TensorBoard's callback, writing to STORE/tensorboard/DIGEST; its own place goes with the scratch."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    where = Path("tensorboard")
    if checkpoints is not None:
        where = checkpoints.parent.parent / "tensorboard" / checkpoints.stem.lstrip(".")
    return TensorBoardCallback(SummaryWriter(log_dir=str(where)))


def _reporter(report: Report, tokens: float) -> Any:
    """A callback that reports progress; `tokens` is the mean number of an optimizer step's."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first, self.started = state.global_step, time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                seconds = time.monotonic() - self.started
                speed = tokens * (state.global_step - self.first) / seconds
                _check_finite(state.global_step, logs)
                report(state.global_step, state.max_steps, float(logs["loss"]), speed)

    return Reporter()


def _check_finite(step: int, logs: Mapping[str, Any]) -> None:
    if not all(math.isfinite(float(logs[name])) for name in ("loss", "grad_norm")):
        raise RowsError(
            f"training diverged at step {step}: the loss is no number any more; lower train.learning_rate"
        )


def _curve(trainer: Any) -> list[dict[str, float]]:
    """The loss curve from the first step on, those before a resume included."""
    return [
        {name: log[name] if name == "step" else float(log[name]) for name in CURVE}
        for log in trainer.state.log_history
        if "loss" in log
    ]


def _facts(trainer: Any) -> dict[str, Any]:
    pieces = trainer.halving.pieces if hasattr(trainer, "halving") else 1
    return {
        "micro_batch": -(-trainer.args.per_device_train_batch_size // pieces),
        "accumulation": trainer.args.gradient_accumulation_steps * pieces,
        "processes": trainer.args.world_size,
        "sharded": sharded(),
        "halved_for_memory": pieces > 1,
    }


def _tokens_per_row(examples: Sequence[Example]) -> float:
    return sum(len(one.input_ids) for one in examples) / len(examples)


def number_loss(model: Model, examples: Sequence[Example], pad: int, batch: int = 64) -> float:
    """Mean cross entropy in nats per completion token over `examples`, computed in fp32."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(examples), batch):
            chunk = examples[start : start + batch]
            logits, labels = _completion_logits(model, chunk, pad)
            carried = labels != IGNORED
            total += torch.nn.functional.cross_entropy(
                logits[carried].float(), labels[carried], reduction="sum"
            ).item()
            count += int(carried.sum())
    return total / count


def _completion_logits(model: Model, examples: Sequence[Example], pad: int) -> Any:
    """Logits and labels of the last tokens, as many as the longest completion has."""
    ids = [one.input_ids for one in examples]
    longest = max(sum(label != IGNORED for label in one.labels) for one in examples)
    mask = attention_mask(ids, model.device)
    # Padded on the left, completions end together: the head is computed for those positions only.
    logits = model(
        input_ids=left_padded(ids, pad, model.device),
        attention_mask=mask,
        position_ids=position_ids(mask),
        use_cache=False,
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    labels = left_padded([one.labels for one in examples], IGNORED, model.device)
    return logits, labels[:, -longest:]


def check_examples(examples: Sequence[Example], max_length: int) -> None:
    """Refuse rows that would train nothing or be cut.

    Raises:
        RowsError: see `fit`.
    """
    if not any(label != IGNORED for one in examples for label in one.labels):
        raise RowsError("no token of these rows carries loss: every completion is empty")
    longest = max(len(one.input_ids) for one in examples)
    cut = sum(len(one.input_ids) > max_length for one in examples)
    if cut:
        raise RowsError(
            f"train.max_length {max_length} would cut the completion of {cut} of {len(examples)} rows; "
            f"the longest has {longest} tokens. Set `train.max_length: {longest}` or more"
        )
