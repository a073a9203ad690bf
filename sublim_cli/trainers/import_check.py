"""Whether the libraries that train can be loaded: an environment can be broken though all is installed."""

import logging
from importlib.metadata import PackageNotFoundError, version


def unloadable() -> str | None:
    """Why TRL's trainer cannot be imported here, and what to do; None if it can."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its advice on kernels is no finding
    try:
        from trl import SFTTrainer  # noqa: F401  # what every training needs
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"TRL's trainer cannot be imported: {first}. {_remedy()}"
    return None


def _remedy() -> str:
    torch, vision = _version("torch"), _version("torchvision")
    if torch and vision and "+cpu" in torch and "+cpu" not in vision:
        # The `gpu` extra brings a torchvision for CUDA, which fails beside a torch without it.
        return (
            f"torch {torch} is a CPU build and torchvision {vision} is not: `pip uninstall torchvision "
            "unsloth unsloth_zoo` for a machine without a GPU, or install a CUDA build of torch"
        )
    return "Install sublim into a fresh environment: `make setup`, or `pip install sublim` in a new venv"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
