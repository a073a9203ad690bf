"""Unsloth: a base model with an adapter on its LoRA kernels.

Importing it patches transformers, TRL and PEFT for the whole process, and it has to come before them:
`apart` gives it a process of its own. Names and defaults are checked against 2026.10.7 by a test that
needs no GPU; no GPU has trained with it yet: see docs/log.md.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.models.device import single_gpu_environment
from sublim_cli.models.load import Model
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.methods import PLACES, alpha

PATCHED = ("trl", "transformers", "peft")
"""What Unsloth has to be imported before."""


def trainable(ref: ModelRef, section: TrainSection) -> Model:
    """The base model with a fresh adapter on Unsloth's kernels.

    Raises:
        ModelError: transformers, TRL or PEFT was imported before Unsloth in this process.
    """
    FastLanguageModel = first().FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(**loading(ref, section))
    return FastLanguageModel.get_peft_model(model, **adapting(section))


def loading(ref: ModelRef, section: TrainSection) -> dict[str, Any]:
    """What `FastLanguageModel.from_pretrained` is given; it swallows a name it does not know."""
    import torch

    return {
        "model_name": ref.source,
        "revision": ref.revision,
        "use_exact_model_name": True,  # else the name may be mapped to another repository's weights
        "max_seq_length": section.max_length,
        "dtype": torch.bfloat16,
        "load_in_4bit": section.method == "qlora",  # nf4, quantised twice, as `models.load` does
        "load_in_8bit": False,
        "load_in_16bit": False,
        "full_finetuning": False,
        "fast_inference": False,
        "fix_tokenizer": False,  # its tokenizer is not used
        "offload_embedding": False,
        "use_gradient_checkpointing": "unsloth",
        "random_state": section.seed,
    }


def adapting(section: TrainSection) -> dict[str, Any]:
    """What `FastLanguageModel.get_peft_model` is given; it reseeds the whole process with `random_state`."""
    return {
        "r": section.rank,
        "target_modules": _targets(section),
        "lora_alpha": alpha(section),
        "lora_dropout": 0.0,
        "bias": "none",
        "layers_to_transform": _layers(section),
        "use_gradient_checkpointing": "unsloth",
        "random_state": section.seed,
        "max_seq_length": section.max_length,
        "use_rslora": section.method == "rslora",
        "init_lora_weights": True,
    }


def _targets(section: TrainSection) -> list[str]:
    targets = section.adapter.targets
    return list(PLACES[targets] if isinstance(targets, str) else targets)


def _layers(section: TrainSection) -> list[int] | None:
    if section.adapter.layers is None:
        return None
    first, last = section.adapter.layers
    return list(range(first, last + 1))


def environment(scratch: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """What its process needs beside `ours`: it writes into `scratch` alone, and phones nobody."""
    return {
        **single_gpu_environment(ours),  # it takes the first it sees
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),  # else it is the working directory
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }


def first() -> Any:
    """Unsloth, imported before what it patches.

    Raises:
        ModelError: it comes too late in this process.
    """
    if "unsloth" not in sys.modules:
        early = [name for name in PATCHED if name in sys.modules]
        if early:
            raise ModelError(
                f"Unsloth has to be imported before {', '.join(early)}, and here it comes too late; "
                "`trainers.apart` trains in a process of its own"
            )
    return import_module("unsloth")
