"""From the flags of `sweep` to a launcher, whose library is imported only if it is named."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import THREADS, device, threads, worker_devices
from sublim_cli.pipeline import Resolution
from sublim_cli.sweep.launch import Launcher, WorkerResources

LIBRARIES = {"ray": "ray", "slurm": "submitit"}
"""The library of each launcher but `local`; the extra that installs it has the launcher's name."""


def open_launcher(
    name: str,
    *,
    workers: int | None,
    gpus: float | None,
    memory: float | None,
    ray_address: str | None,
    slurm: Sequence[str],
) -> Launcher:
    """The launcher called `name`, set up as the flags say.

    Raises:
        RecipeError: no launcher has that name, or a flag belongs to another launcher.
        MissingExtra: its library is not installed.
    """
    if name not in ("local", *LIBRARIES):
        raise RecipeError(f"--launcher {name}: there are local, {', '.join(LIBRARIES)}")
    if name != "ray" and ray_address:
        raise RecipeError(f"--ray-address is for --launcher ray, not {name}")
    if name != "slurm" and slurm:
        raise RecipeError(f"--slurm is for --launcher slurm, not {name}")
    if name == "slurm" and gpus is not None and gpus != int(gpus):
        raise RecipeError(f"--gpus {gpus:g}: Slurm allocates whole GPUs only")
    if name == "local":
        if gpus is not None or memory is not None:
            raise RecipeError(
                "--gpus and --memory are requests to ray and slurm; --launcher local shares this machine "
                f"among --workers, and SUBLIM_DEVICE and {THREADS} say what each takes"
            )
        from sublim_cli.sweep.local import LocalLauncher

        return LocalLauncher(worker_devices(workers))
    if find_spec(LIBRARIES[name]) is None:
        raise MissingExtra(
            f"--launcher {name} needs {LIBRARIES[name]}, which is not installed; "
            f"`pip install 'sublim[{name}]'` adds it"
        )
    resources = WorkerResources(threads(), float(device().type == "cuda") if gpus is None else gpus, memory)
    if name == "ray":
        from sublim_cli.sweep.ray import RayLauncher

        address = ray_address or os.environ.get("RAY_ADDRESS")
        if address and address.startswith("ray://"):
            raise RecipeError(
                f"--ray-address {address}: Ray's client cannot carry a sweep; "
                "run sublim on a machine of the cluster, with --ray-address auto"
            )
        return RayLauncher(None if address == "local" else address or None, workers, resources)
    from sublim_cli.sweep.slurm import SlurmLauncher

    return SlurmLauncher(dict(map(_option, slurm)), workers, resources)


def caution(gpus: float | None, resolution: Resolution | None = None) -> str | None:
    """A warning for a sweep that asks for GPUs but was planned on a machine without one; None otherwise."""
    planned_on_gpu = resolution.machine.cuda if resolution else device().type == "cuda"
    if not gpus or planned_on_gpu:
        return None
    return (
        "this machine has no GPU, and `auto` was resolved here: precisions are fp32, the backend is plain. "
        "Name them in the recipe if the workers' GPUs should decide"
    )


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise RecipeError(f"--slurm {text}: must be OPTION=VALUE, such as partition=gpu")
    return name.strip().lstrip("-").replace("-", "_"), value.strip()
