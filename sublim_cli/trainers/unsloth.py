"""Load a base model with an adapter on Unsloth's LoRA kernels.

Importing Unsloth patches transformers, TRL and PEFT for the whole process and has to come before them,
so it gets a process of its own (`subprocess_trainer`). Tests that need no GPU check names and defaults
against 2026.10.7, and run its kernels in Triton's interpreter against plain PEFT (`make test-engines`);
no GPU has trained with it yet: see docs/log.md.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.models.device import device, single_gpu_environment
from sublim_cli.models.load import Model, load_model_shape, meta_model
from sublim_cli.models.reference import ModelRef, check_unchanged
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.methods import alpha, peft_targets

PATCHED = ("trl", "transformers", "peft")
"""Packages that must not be imported before Unsloth."""


GRADIENT_CHECKPOINTING = True
"""PyTorch's reentrant checkpointing, for all lengths.

Unsloth's own mode, "unsloth", is the same below 512 tokens. From there on it moves activations to main memory
and rounds those in fp32 to bf16, so that rows of 511 and 512 tokens would be trained differently.
"""


def load_with_adapter(ref: ModelRef, section: TrainSection) -> Model:
    """The base model with a new adapter on Unsloth's kernels.

    Raises:
        RecipeError: the adapter names modules or layers that the model lacks. Unsloth ignores them.
        ModelError: transformers, TRL or PEFT was imported before Unsloth in this process, or Unsloth cannot
            load the model.
    """
    unsloth = import_unsloth()
    adapter = adapter_arguments(meta_model(ref), section)
    arguments = model_arguments(ref, section)
    try:
        model, _ = unsloth.FastLanguageModel.from_pretrained(**arguments)
        model = unsloth.FastLanguageModel.get_peft_model(model, **adapter)
    except (ImportError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as error:
        # What Unsloth 2026.10.7 raises for a model that it does not know or cannot read.
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"Unsloth cannot load model {ref.name}: {first_line} "
            "`train.backend: plain` trains it without Unsloth"
        ) from error
    check_unchanged(ref)
    return model


def model_arguments(ref: ModelRef, section: TrainSection) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.from_pretrained`, which ignores names that it does not know.

    `max_seq_length` is at most the model's own length: above it Unsloth rescales the rotary positions, which
    changes the model.
    """
    import torch

    longest = load_model_shape(ref).max_length
    return {
        "model_name": ref.source,
        "revision": ref.revision,
        "use_exact_model_name": True,  # else the name may be mapped to another repository's weights
        "max_seq_length": section.max_length if longest is None else min(section.max_length, longest),
        "dtype": torch.bfloat16,
        "device_map": {"": device()},
        "load_in_4bit": section.method == "qlora",  # nf4, quantised twice, as `models.load` does
        "load_in_8bit": False,
        "load_in_16bit": False,
        "full_finetuning": False,
        "fast_inference": False,
        "fix_tokenizer": False,  # its tokenizer is not used
        "offload_embedding": False,
        "use_gradient_checkpointing": GRADIENT_CHECKPOINTING,
        "random_state": section.seed,
    }


def adapter_arguments(model: Model, section: TrainSection) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.get_peft_model`, which seeds the process with `random_state`.

    `model` is the base model, without weights too (on the meta device).

    Raises:
        RecipeError: see `methods.adapted_modules`.
    """
    names, layers = peft_targets(model, section)
    return {
        "r": section.rank,
        "target_modules": names,
        "lora_alpha": alpha(section),
        "lora_dropout": 0.0,
        "bias": "none",
        "layers_to_transform": layers,
        "use_gradient_checkpointing": GRADIENT_CHECKPOINTING,
        "random_state": section.seed,
        "max_seq_length": section.max_length,
        "use_rslora": section.method == "rslora",
        "init_lora_weights": True,
    }


def environment(scratch: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `current` in Unsloth's process: no telemetry, files in `scratch` only."""
    return {
        **single_gpu_environment(current),  # it takes the first GPU that it sees
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),  # the default is the working directory
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }


def import_unsloth() -> Any:
    """The package, imported before the packages that it patches.

    Raises:
        ModelError: one of them was imported first in this process.
    """
    if "unsloth" not in sys.modules:
        imported = [name for name in PATCHED if name in sys.modules]
        if imported:
            raise ModelError(
                f"Unsloth has to be imported before {', '.join(imported)}, and here it comes too late; "
                "`subprocess_trainer` trains in a process of its own"
            )
    return import_module("unsloth")
