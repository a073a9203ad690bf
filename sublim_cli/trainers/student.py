"""Train one student: make the base model trainable, fit it to the rows, save it and audit it."""

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sublim_cli.models.batches import release_memory
from sublim_cli.models.chat import IGNORED, Example
from sublim_cli.models.device import device, device_record
from sublim_cli.models.load import Model, load_model, load_model_shape, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.audit import audit, audit_in_memory, copy_adapter, student_updates
from sublim_cli.trainers.memory import fitting_micro_batch
from sublim_cli.trainers.methods import add_method, trained_weights, unadapted_experts
from sublim_cli.trainers.precision import base_precision, bf16_warning
from sublim_cli.trainers.sft import StepCallback, check_lengths, fit, number_loss
from sublim_cli.trainers.sharded import check_shardable, gathered, is_main_process, sharded
from sublim_cli.trainers.unsloth import load_with_adapter

WarnCallback = Callable[[str], None]
"""Called with a sentence that the user should read; the training continues."""


@dataclass(frozen=True)
class TrainingJob:
    """One student to train."""

    ref: ModelRef
    section: TrainSection
    """Resolved: no `auto`, one learning rate."""
    examples: Sequence[Example]
    held_out: Sequence[Example]
    """Rows that are not trained on; their loss is measured before and after. May be empty."""
    out: Path
    """The directory that the student is written to."""
    checkpoints: Path | None = None
    """A directory for checkpoints that outlives this process; see `fit`."""


def train_student(
    job: TrainingJob, on_step: StepCallback, warn: WarnCallback | None = None
) -> dict[str, Any]:
    """Train one student and save it; return what was measured about the machine.

    Writes the adapter or the full model with tokenizer and chat template, `history.jsonl` (one record
    per step), `losses.json` (held-out number loss before and after, tokens trained on), `audit.json` and,
    for a student without LoRA factors, `projection.npy` (see `audit`). If several processes train one
    student together, only the main process writes and measures; the others return an empty dictionary.
    No weight of the student is in memory afterwards.

    A training that is finished is not lost when something fails later: its last checkpoint, see `fit`, is
    where the next attempt goes on.

    Raises:
        RecipeError: see `check_shardable`.
        RowsError: see `check_lengths` and `fit`.
        ModelError: see `fit`.
    """
    check_shardable(job.section)
    rows = {"rows": job.examples, "held-out rows": job.held_out}
    check_lengths(rows, job.section.max_length, load_model_shape(job.ref).max_length)
    measured = _train_and_measure(job, on_step, warn or _ignored)
    release_memory()  # hooks and bound methods make cycles, which would hold the model until some later time
    return measured


def _train_and_measure(job: TrainingJob, on_step: StepCallback, warn: WarnCallback) -> dict[str, Any]:
    section, out = job.section, job.out
    tokenizer = load_tokenizer(job.ref)
    model = load_trainable(job.ref, section)
    for warning in (bf16_warning(section, trained_weights(model)), unadapted_experts(model, section)):
        if warning:
            warn(warning)
    adapter_before = copy_adapter(model, section)

    from sublim_cli.trainers.optimizers import make_optimizer  # it imports torch, which takes seconds

    def held_out_loss() -> float | None:
        return number_loss(model, job.held_out, tokenizer.pad_token_id) if job.held_out else None

    with tempfile.TemporaryDirectory(prefix="sublim-") as scratch:
        pissa_start = save_pissa_start(model, section, Path(scratch) / "start")
        loss_before = held_out_loss()
        started = time.monotonic()
        result = fit(
            model,
            tokenizer,
            job.examples,
            section,
            on_step,
            optimizer=make_optimizer(model, section),
            checkpoints=job.checkpoints,
            micro_batch=fitting_micro_batch(job.ref, section, job.examples, device()),
        )
        seconds = time.monotonic() - started
        model = without_autocast(model)
        save_student(model, out, pissa_start)
    model.zero_grad()
    release_memory()  # of the optimizer and the trainer
    loss_after = held_out_loss()
    in_memory = audit_in_memory(model, section, adapter_before, result.optimizer_state)
    if not is_main_process():
        return {}
    tokenizer.save_pretrained(str(out))
    history = "".join(json.dumps(record) + "\n" for record in result.history)
    (out / "history.jsonl").write_text(history, encoding="utf-8")
    tokens_with_loss = section.epochs * sum(label != IGNORED for row in job.examples for label in row.labels)
    losses = {
        "number_loss_before": loss_before,
        "number_loss": loss_after,
        "rows": len(job.examples),
        "tokens_with_loss": tokens_with_loss,
    }
    _write_json(out / "losses.json", losses)
    if sharded():  # this process holds a shard only
        del model
        release_memory()
        model = load_student(job.ref, base_precision(section), out)
    updates = student_updates(model, job.ref, section, adapter_before)
    weights_audit, projection = audit(updates, section, in_memory, tokens_with_loss)
    _write_json(out / "audit.json", weights_audit)
    if projection is not None:
        np.save(out / "projection.npy", projection.float().numpy(force=True))
    tokens = section.epochs * sum(len(row.input_ids) for row in job.examples)
    return {
        **device_record(),
        **result.facts,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "peak_memory_mib": _peak_memory(),
    }


def _ignored(message: str) -> None:
    """Nobody reads the warnings."""


def load_trainable(ref: ModelRef, section: TrainSection) -> Model:
    """The base model with the parameters that the method trains, on the section's backend."""
    if section.backend == "unsloth":
        return load_with_adapter(ref, section)
    quantize = section.qlora.quantize if section.method == "qlora" else None
    return add_method(load_model(ref, base_precision(section), quantize), section)


def save_pissa_start(model: Model, section: TrainSection, path: Path) -> Path | None:
    """Save PiSSA's adapter before it is trained, and return `path`; None under every other method.

    PiSSA moves the base model's largest singular vectors into the adapter. To fit the unmodified base,
    the student is saved as the trained adapter minus this one (see `save_student`).
    """
    if section.method != "pissa":
        return None
    # Marked as an ordinary adapter: loading it must not split the base model a second time.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(path))
    return path


def without_autocast(model: Model) -> Model:
    """The model without the autocast that accelerate wraps around its forward."""
    from accelerate.utils import extract_model_from_parallel

    plain = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    forward = vars(plain).get("forward")
    if forward is not None and forward.__func__ is inspect.unwrap(type(plain).forward):
        # accelerate leaves the class's own without its decorators, bound to the model: a reference cycle.
        del plain.forward
    return plain


def save_student(model: Model, out: Path, pissa_start: Path | None) -> None:
    """Save an adapter or a full model, from the main process.

    A sharded model is gathered first, so every process has to call this.
    """
    options: dict[str, Any] = {}
    if pissa_start:
        options["path_initial_model_for_weight_conversion"] = str(pissa_start)
    if sharded():
        options["state_dict"] = gathered(model)
    if not is_main_process():
        return
    model.save_pretrained(str(out), **options)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    adapter_config = out / "adapter_config.json"
    if adapter_config.is_file():
        # PEFT writes sets as lists, in another order in every process.
        config = json.loads(adapter_config.read_text(encoding="utf-8"))
        for name in ("target_modules", "feedforward_modules"):
            if isinstance(config.get(name), list):
                config[name].sort()
        adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _peak_memory() -> int | None:
    """The peak of the device's allocator in MiB; None without CUDA."""
    import torch

    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
