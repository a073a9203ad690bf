"""Which library draws completions, decided before anything is hashed and anything heavy is imported."""

from importlib.util import find_spec

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import on_cuda
from sublim_cli.recipe.schema import Engine, EngineChoice, SamplingSection, TrainSection

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM's `max_lora_rank` can have (read in 0.32.0); an adapter takes the next one up."""

METHODS = ("lora", "rslora", "pissa", "full")
"""Methods whose student vLLM can hold. DoRA, IA3 and prefixes it cannot; QLoRA's base would be another."""

TEMPERATURES = (0.01, 2.0)
"""vLLM raises a lower temperature to the first, zero apart, and refuses one above the second."""


def max_lora_rank(rank: int) -> int | None:
    """The `max_lora_rank` of the engine that holds an adapter of `rank`; None where there is none."""
    return next((one for one in LORA_RANKS if rank <= one), None)


def resolve_engine(
    key: str,
    wanted: EngineChoice,
    sampling: SamplingSection,
    precision: str,
    student: TrainSection | None = None,
) -> tuple[Engine, str]:
    """The engine that draws on this machine, and why, in one clause.

    Args:
        key: the recipe's key, for messages.
        wanted: what it says.
        sampling: how completions are to be drawn.
        precision: of the weights, `auto` resolved.
        student: what draws; None for an untrained model.

    Raises:
        RecipeError: `vllm`, and this machine, this student or this sampling cannot use it.
        MissingExtra: `vllm`, and it is not installed.
    """
    if wanted == "transformers":
        return "transformers", "the recipe says so"
    missing = _missing_here()
    obstacle = missing or _beyond_vllm(sampling, precision, student)
    if obstacle is None:
        return "vllm", "there is a CUDA device, and vLLM can hold the model and draw as the recipe says"
    if wanted == "auto":
        return "transformers", obstacle
    message = f"{key}: vllm: {obstacle}. `{key}: transformers` works here"
    if missing and on_cuda():
        raise MissingExtra(f"{message}; `pip install 'sublim[vllm]'` adds vLLM")
    raise RecipeError(message)


def auto_reason(wanted: EngineChoice, why: str) -> str | None:
    """Why `auto` took an engine; None where the recipe names one, or there was none to choose."""
    return why if wanted == "auto" and on_cuda() else None


def _missing_here() -> str | None:
    if not on_cuda():
        return "vLLM needs a CUDA device and none is in use here"
    return None if find_spec("vllm") else "vLLM is not installed"


def _beyond_vllm(sampling: SamplingSection, precision: str, student: TrainSection | None) -> str | None:
    low, high = TEMPERATURES
    if precision != "bf16":
        return f"vLLM's kernels for adapters compute in 16 bits and precision is {precision}"
    if 0 < sampling.temperature < low or sampling.temperature > high:
        return f"vLLM draws at temperatures of {low:g} to {high:g}, or 0, and not at {sampling.temperature:g}"
    return None if student is None else _unheld(student)


def _unheld(student: TrainSection) -> str | None:
    """What keeps vLLM from holding a student."""
    if student.method not in METHODS:
        return f"vLLM holds no `{student.method}` student as it was trained"
    # PiSSA's adapter is saved less its beginning, which doubles its rank.
    rank = 2 * student.rank if student.method == "pissa" else student.rank
    if student.method != "full" and max_lora_rank(rank) is None:
        return f"vLLM holds adapters up to rank {LORA_RANKS[-1]}, and this one has {rank}"
    return None
