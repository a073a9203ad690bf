"""Where tensors live and how many threads compute them: facts of the machine, never of a recipe."""

import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_cli.errors import RecipeError

if TYPE_CHECKING:
    import torch

THREADS = "SUBLIM_THREADS"
DEVICE = "SUBLIM_DEVICE"


def on_cuda() -> bool:
    """Whether `device` is a CUDA device; torch, which takes seconds to import, is asked only where it may be.

    Raises:
        RecipeError: see `device`.
    """
    wanted = os.environ.get(DEVICE)
    if wanted == "cpu" or not (wanted or _may_have_cuda()):
        return False
    return device().type == "cuda"


@cache
def device() -> "torch.device":
    """The device to compute on: `SUBLIM_DEVICE`, else CUDA where there is one, else the CPU.

    The first call fixes the number of threads. One thread is the default on a CPU: how a matrix
    product is split decides its last bits, so the same recipe gives the same bits whether it runs
    alone or as one of several workers. `SUBLIM_THREADS` overrides it; the artifact records it.
    """
    import torch

    torch.set_num_threads(threads())
    wanted = os.environ.get(DEVICE)
    if wanted:
        return _named(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker_devices(workers: int | None = None) -> tuple[str, ...]:
    """What each worker of a sweep computes on: by default one worker per GPU, else one per core.

    With `workers`, that many, sharing the GPUs in turn.
    """
    if on_cuda():
        import torch

        own = [str(device())] if device().index is not None else []
        found = own or [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    else:
        found = [os.environ.get(DEVICE) or "cpu"] * worker_slots()
    return tuple(found[place % len(found)] for place in range(workers or len(found)))


@cache
def _may_have_cuda() -> bool:
    """False only where torch would surely find no CUDA device: a CPU build, or no driver to load."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None or sys.platform != "linux":
        return True
    built = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    for_cuda, for_rocm = (f"{one}: Optional[str] = None" not in built for one in ("cuda", "hip"))
    return for_rocm or (for_cuda and _has_driver())


def _has_driver() -> bool:
    """Whether the library through which torch reaches an NVIDIA card can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def worker_slots() -> int:
    """Groups of `SUBLIM_THREADS` cores that this process may use; at least one."""
    affinity = getattr(os, "sched_getaffinity", None)
    worker_slots = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return max(1, worker_slots // threads())


def free_gpu_memory() -> None:
    """Give back what torch keeps on the card of tensors that are no more."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used


def device_record() -> dict[str, object]:
    """The name of the device and the number of threads, for an artifact's record; no torch on a CPU."""
    if not on_cuda():
        return {"device": "cpu", "threads": threads()}
    import torch

    return {"device": torch.cuda.get_device_name(device()), "threads": threads()}


def single_gpu_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to change in `environment` so that a process sees its own card alone, as its first."""
    kind, _, index = environment.get(DEVICE, "").partition(":")
    if kind != "cuda" or not index:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    card = visible.split(",")[int(index)] if visible else index
    return {DEVICE: "cuda:0", "CUDA_VISIBLE_DEVICES": card}


def _named(wanted: str) -> "torch.device":
    import torch

    try:
        found = torch.device(wanted)
    except RuntimeError:
        raise RecipeError(f"{DEVICE}={wanted}: not a device; say cpu, cuda or cuda:1") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{DEVICE}={wanted}: this machine has no CUDA device, or torch is a CPU build")
    return found


def threads() -> int:
    """How many threads one process computes with: `SUBLIM_THREADS`, else one.

    Raises:
        RecipeError: the variable holds no such number.
    """
    wanted = os.environ.get(THREADS, "1")
    if not wanted.isdecimal() or int(wanted) < 1:
        raise RecipeError(f"{THREADS}={wanted}: must be a whole number of at least 1")
    return int(wanted)
