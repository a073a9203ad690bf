"""One student: a base model made trainable, trained on rows, saved as others can open it."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sublim_cli.models.chat import IGNORED, Example
from sublim_cli.models.device import device_record
from sublim_cli.models.load import Model, load_model, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.audit import Account, audit
from sublim_cli.trainers.methods import add_method, trained
from sublim_cli.trainers.precision import base_precision, bf16_warning
from sublim_cli.trainers.sft import Report, fit, number_loss
from sublim_cli.trainers.sharded import check_shardable, first, gathered, sharded
from sublim_cli.trainers.unsloth import trainable as trainable_on_unsloth

Warn = Callable[[str], None]
"""Called with a sentence the user should read; the training goes on."""


def train_student(
    ref: ModelRef,
    section: TrainSection,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    out: Path,
    report: Report,
    checkpoints: Path | None = None,
    *,
    warn: Warn | None = None,
) -> dict[str, Any]:
    """Train one student and save it under `out`; return what was measured about the machine.

    Writes the adapter or the whole model with tokenizer and chat template, `history.jsonl` (one
    record a step), `losses.json` (held-out number loss before and after, tokens trained on), and
    `audit.json` and `sketch.npy` (see `audit`). `section` is resolved: no `auto`, one learning rate.
    For `checkpoints` see `fit`. Of several processes that train one student the first writes and
    measures; the others return nothing.

    Raises:
        RecipeError: see `check_shardable`.
    """
    check_shardable(section)
    tokenizer = load_tokenizer(ref)
    model = trainable(ref, section)
    caution = bf16_warning(section, trained(model))
    if caution and warn:
        warn(caution)
    account = Account(model, section)
    with tempfile.TemporaryDirectory(prefix="sublim-") as scratch:
        begun = beginning(model, section, Path(scratch) / "beginning")
        before = number_loss(model, held_out, tokenizer.pad_token_id) if held_out else None
        started = time.monotonic()
        optimizer = _optimizer(model, section)
        fitted = fit(
            model, tokenizer, examples, section, report, optimizer=optimizer, checkpoints=checkpoints
        )
        seconds = time.monotonic() - started
        model = bare(model)
        after = number_loss(model, held_out, tokenizer.pad_token_id) if held_out else None
        live = account.live(model, fitted.optimizer_state)
        save_student(model, out, begun)
    del model, optimizer, account
    if not first():
        return {}
    tokenizer.save_pretrained(str(out))
    _write_lines(out / "history.jsonl", fitted.history)
    carried = sum(label != IGNORED for one in examples for label in one.labels) * section.epochs
    losses = {
        "number_loss_before": before,
        "number_loss": after,
        "rows": len(examples),
        "tokens_with_loss": carried,
    }
    _write(out / "losses.json", losses)
    account_of_weights, sketched = audit(ref, section, out, live, carried)
    _write(out / "audit.json", account_of_weights)
    np.save(out / "sketch.npy", sketched.astype(np.float32))
    tokens = sum(len(one.input_ids) for one in examples) * section.epochs
    return {
        **device_record(),
        **fitted.facts,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "peak_memory_mib": _peak_memory(),
    }


def trainable(ref: ModelRef, section: TrainSection) -> Model:
    """The base model with what the method trains, on the section's backend."""
    if section.backend == "unsloth":
        return trainable_on_unsloth(ref, section)
    quantize = section.qlora.quantize if section.method == "qlora" else None
    return add_method(load_model(ref, base_precision(section), quantize), section)


def beginning(model: Model, section: TrainSection, place: Path) -> Path | None:
    """PiSSA's fresh adapter, kept under `place`; None under every other method.

    PiSSA takes its first adapter out of the base. To be an adapter of the untouched base, the trained
    one has to be saved less the first.
    """
    if section.method != "pissa":
        return None
    # What is saved is no start but an adapter; PEFT would otherwise split the base once more.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(place))
    return place


def bare(model: Model) -> Model:
    """The model without the autocast that accelerate wraps around its forward."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_fp32_wrapper=False)


def save_student(model: Model, out: Path, begun: Path | None) -> None:
    """Save an adapter or a whole model from the first process; `begun` is what `beginning` kept.

    A sharded model is gathered for it, in which every process takes part.
    """
    more: dict[str, Any] = {"path_initial_model_for_weight_conversion": str(begun)} if begun else {}
    if sharded():
        more["state_dict"] = gathered(model)
    if first():
        model.save_pretrained(str(out), **more)
        _in_order(out / "adapter_config.json")
        (out / "README.md").unlink(missing_ok=True)  # PEFT's form, which nobody fills in


def _in_order(path: Path) -> None:
    """Sort an adapter's lists of modules: PEFT writes sets, in another order in every process."""
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _optimizer(model: Model, section: TrainSection) -> Any:
    from sublim_cli.trainers.optimizers import make_optimizer  # its classes are torch's, which takes seconds

    return make_optimizer(model, section)


def _peak_memory() -> int | None:
    """The most the device's allocator held, in MiB; None without CUDA, where nobody counts."""
    import torch

    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: Sequence[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
