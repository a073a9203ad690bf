"""The device and the number of threads to compute with; both depend on the machine, never on a recipe."""

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_cli.errors import RecipeError

if TYPE_CHECKING:
    import torch

THREADS = "SUBLIM_THREADS"
DEVICE = "SUBLIM_DEVICE"
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""CUDA's variable for the GPUs that a process sees: their numbers or names, separated by commas."""


@dataclass(frozen=True)
class Capabilities:
    """What `auto` depends on: whether a CUDA device is in use, and which extras are installed."""

    cuda: bool
    unsloth: bool
    vllm: bool


def on_cuda() -> bool:
    """Whether `device` is a CUDA device. Imports torch, which takes seconds, only if it may be.

    Raises:
        RecipeError: see `device`.
    """
    wanted = os.environ.get(DEVICE)
    if wanted == "cpu" or not (wanted or _may_have_cuda()):
        return False
    return device().type == "cuda"


@cache
def device() -> "torch.device":
    """The device to compute on: `SUBLIM_DEVICE`, else CUDA if available, else the CPU.

    The first call sets the number of threads: `SUBLIM_THREADS`, by default 1. The last bits of a matrix
    product depend on how it is split among threads, so with one thread a recipe gives the same bits
    whether it runs alone or in one of several workers. The artifact records the number.

    Raises:
        RecipeError: `SUBLIM_DEVICE` or `SUBLIM_THREADS` is not valid on this machine.
    """
    import torch

    torch.set_num_threads(threads())
    wanted = os.environ.get(DEVICE)
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(wanted)
    except RuntimeError:
        raise RecipeError(f"{DEVICE}={wanted}: not a device; say cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{DEVICE}={wanted}: this machine has no CUDA device, or torch is a CPU build")
    return chosen


def worker_devices(workers: int | None = None) -> tuple[str, ...]:
    """The device of each worker of a sweep: by default a worker per GPU, or on a CPU `worker_slots`.

    If the number of `workers` is given, they take the GPUs in turn.
    """
    if on_cuda():
        import torch

        chosen = [str(device())] if device().index is not None else []
        names = chosen or [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    else:
        names = [os.environ.get(DEVICE) or "cpu"] * worker_slots()
    return tuple(names[index % len(names)] for index in range(workers or len(names)))


def card_memory() -> int | None:
    """Bytes that the smallest of the GPUs of `worker_devices` has; None on a CPU."""
    if not on_cuda():
        return None
    import torch

    return min(int(torch.cuda.get_device_properties(name).total_memory) for name in worker_devices())


@cache
def _may_have_cuda() -> bool:
    """False only if torch certainly finds no CUDA device: it is a CPU build, or there is no driver."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None or sys.platform != "linux":
        return True
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    for_cuda, for_rocm = (f"{name}: Optional[str] = None" not in version for name in ("cuda", "hip"))
    if for_cuda and not for_rocm:
        try:
            ctypes.CDLL("libcuda.so.1")  # the driver's library, through which torch reaches an NVIDIA GPU
        except OSError:
            return False
    return for_cuda or for_rocm


def worker_slots() -> int:
    """How many workers of `SUBLIM_THREADS` threads fit on the cores this process may use; at least one."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return max(1, cores // threads())


def device_record() -> dict[str, object]:
    """The name of the device and the number of threads, for an artifact's record; no torch on a CPU."""
    if not on_cuda():
        return {"device": "cpu", "threads": threads()}
    import torch

    return {"device": torch.cuda.get_device_name(device()), "threads": threads()}


def single_gpu_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The changes to `environment` by which a process sees one GPU: that of `SUBLIM_DEVICE`, else the first.

    They must be made before CUDA starts in the process, so best before torch is imported. Of several GPUs
    that a process sees, transformers' trainer would use all, each with a part of every batch.

    Raises:
        RecipeError: `SUBLIM_DEVICE` is none of the GPUs that `CUDA_VISIBLE_DEVICES` lists.
    """
    wanted, visible = environment.get(DEVICE, ""), environment.get(VISIBLE)
    kind, _, index = wanted.partition(":")
    if kind not in ("", "cuda") or not (index or "0").isdecimal() or visible == "":
        return {}
    gpus = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    number = int(index or "0")
    if gpus is not None and number >= len(gpus):
        raise RecipeError(
            f"{DEVICE}={wanted}: {VISIBLE}={visible} lists {len(gpus)} GPUs, counted from cuda:0"
        )
    changes = {VISIBLE: str(number) if gpus is None else gpus[number]}
    return {**changes, DEVICE: "cuda:0"} if wanted else changes


def threads() -> int:
    """How many threads a process computes with: `SUBLIM_THREADS`, else one.

    Raises:
        RecipeError: the variable is no whole number of at least 1.
    """
    wanted = os.environ.get(THREADS, "1")
    if not wanted.isdecimal() or int(wanted) < 1:
        raise RecipeError(f"{THREADS}={wanted}: must be a whole number of at least 1")
    return int(wanted)
