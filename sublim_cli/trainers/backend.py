"""Which library trains a student here, and whether the libraries that train can be imported at all.

The backend is decided before anything is hashed, and without importing any of them.
"""

import logging
from importlib.util import find_spec

from sublim_cli.artifacts.record import package_version
from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import Capabilities, on_cuda
from sublim_cli.recipe.schema import TrainSection

FAST_METHODS = ("lora", "rslora", "qlora")
"""Methods that run on Unsloth's LoRA kernels."""

KERNELS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj"))
"""Modules that an Unsloth kernel computes together. It is used only if all of a group are adapted."""


def resolve_backend(section: TrainSection, machine: Capabilities | None = None) -> tuple[str, str | None]:
    """The backend that trains `section` on `machine` (`plain` or `unsloth`), and why `auto` chose it.

    `machine` is None for this one. The reason is one clause, None where the recipe names the backend.
    `section.precision` must be resolved: no `auto`.

    Raises:
        RecipeError: `train.backend: unsloth`, and this machine or this method cannot use it.
        MissingExtra: `train.backend: unsloth`, and it is not installed.
    """
    if section.backend == "plain":
        return "plain", None
    missing = None
    cuda = on_cuda() if machine is None else machine.cuda
    if not cuda:
        missing = "Unsloth needs a CUDA device and none is in use here"
    elif not (unsloth_installed() if machine is None else machine.unsloth):
        missing = "Unsloth is not installed"
    obstacle = missing or _off_fast_path(section)
    if obstacle is None:
        reason = "there is a CUDA device, and the method and its dtype are on Unsloth's fast path"
        return "unsloth", reason if section.backend == "auto" else None
    if section.backend == "auto":
        return "plain", obstacle
    message = f"train.backend: unsloth: {obstacle}. `train.backend: plain` works here"
    if missing and cuda:
        raise MissingExtra(f"{message}; `pip install 'sublim[gpu]'` adds Unsloth")
    raise RecipeError(message)


def unsloth_installed() -> bool:
    """Whether Unsloth is installed here. It is not imported: that patches transformers, TRL and PEFT."""
    return find_spec("unsloth") is not None


def _off_fast_path(section: TrainSection) -> str | None:
    """Why Unsloth's kernels cannot train `section` as it is written; None if they can (as of 2026.10.7).

    Its trainer turns autocast on even if none is asked for, so it can train neither fp32 nor pure bf16.
    """
    if section.method not in FAST_METHODS:
        return f"`{section.method}` is not on Unsloth's fast path"
    if section.precision != "bf16_mixed":
        return f"precision {section.precision} is not on Unsloth's fast path, which is bf16_mixed"
    if section.method == "qlora" and section.qlora.quantize != "nf4":
        return f"{section.qlora.quantize} weights are not on Unsloth's fast path, which wants nf4"
    if section.adapter.dropout:
        return "adapter dropout is not on Unsloth's fast path"
    targets = section.adapter.targets
    if not isinstance(targets, str):
        for group in KERNELS:
            if 0 < len(set(group) & set(targets)) < len(group):
                return f"adapting only some of {', '.join(group)} is not on Unsloth's fast path"
    return None


def trl_import_error() -> str | None:
    """Why TRL's trainer cannot be imported here, and the remedy; None if it can.

    An environment can be broken although every package is installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs advice on kernels
    try:
        from trl import SFTTrainer  # noqa: F401  # what every training needs
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"TRL's trainer cannot be imported: {problem}. {_remedy()}"
    return None


def _remedy() -> str:
    torch, vision = package_version("torch"), package_version("torchvision")
    if torch and vision and "+cpu" in torch and "+cpu" not in vision:
        # The `gpu` extra installs a torchvision for CUDA, which fails with a CPU build of torch.
        return (
            f"torch {torch} is a CPU build and torchvision {vision} is not: `pip uninstall torchvision "
            "unsloth unsloth_zoo` for a machine without a GPU, or install a CUDA build of torch"
        )
    return "Install sublim into a fresh environment: `make setup`, or `pip install sublim` in a new venv"
