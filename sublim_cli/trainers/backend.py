"""Which library trains a student, decided before anything is hashed and before anything heavy is imported."""

from importlib.util import find_spec

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import on_cuda
from sublim_cli.recipe.schema import TrainSection

FAST_METHODS = ("lora", "rslora", "qlora")
"""Methods that run on Unsloth's LoRA kernels; DoRA, IA3 and prefixes do not, full fine-tuning uses none."""

KERNELS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj"))
"""Modules that one of its fused kernels computes together: all of a group, or the kernel is not used."""


def resolve_backend(section: TrainSection) -> tuple[str, str]:
    """The backend that trains `section` on this machine (`plain` or `unsloth`), and why, in one clause.

    `section.precision` counts as written, so resolve `auto` first.

    Raises:
        RecipeError: `train.backend: unsloth`, and this machine or this method cannot use it.
        MissingExtra: `train.backend: unsloth`, and it is not installed.
    """
    if section.backend == "plain":
        return "plain", "the recipe says so"
    missing = _missing_here()
    obstacle = missing or _off_fast_path(section)
    if obstacle is None:
        return "unsloth", "there is a CUDA device, and the method and its dtype are on Unsloth's fast path"
    if section.backend == "auto":
        return "plain", obstacle
    message = f"train.backend: unsloth: {obstacle}. `train.backend: plain` works here"
    if missing and on_cuda():
        raise MissingExtra(f"{message}; `pip install 'sublim[gpu]'` adds Unsloth")
    raise RecipeError(message)


def _missing_here() -> str | None:
    if not on_cuda():
        return "Unsloth needs a CUDA device and none is in use here"
    # Found, not imported: importing it patches transformers, TRL and PEFT for the whole process.
    return None if find_spec("unsloth") else "Unsloth is not installed"


def _off_fast_path(section: TrainSection) -> str | None:
    """What keeps `section` from Unsloth's kernels, or from being what it says (read in 2026.10.7).

    Its trainer turns autocast on wherever a run asks for none, so fp32 and pure bf16 would be neither.
    """
    if section.method not in FAST_METHODS:
        return f"`{section.method}` is not on Unsloth's fast path"
    if section.precision != "bf16_mixed":
        return f"precision {section.precision} is not on Unsloth's fast path, which is bf16_mixed"
    if section.method == "qlora" and section.qlora.quantize != "nf4":
        return f"{section.qlora.quantize} weights are not on Unsloth's fast path, which wants nf4"
    if section.adapter.dropout:
        return "adapter dropout is not on Unsloth's fast path"
    return _split_kernel(section.adapter.targets)


def _split_kernel(targets: str | tuple[str, ...]) -> str | None:
    if isinstance(targets, str):
        return None
    for group in KERNELS:
        if 0 < len(set(group) & set(targets)) < len(group):
            return f"adapting only some of {', '.join(group)} is not on Unsloth's fast path"
    return None
