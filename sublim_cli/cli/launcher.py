"""From the flags of `sweep` to a launcher; its library is imported only if it is asked for."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.device import THREADS, device, threads, worker_devices
from sublim_cli.sweep.launch import Launcher, Needs

EXTRAS = {"ray": "ray", "slurm": "submitit"}
"""What each launcher but `local` is built on; the extra bears the launcher's name."""


def open_launcher(
    name: str,
    *,
    workers: int | None = None,
    gpus: float | None = None,
    memory: float | None = None,
    ray_address: str | None = None,
    slurm: Sequence[str] = (),
) -> Launcher:
    """The launcher called `name`, set up as the flags say.

    Raises:
        RecipeError: there is none of that name, or a flag is another launcher's.
        MissingExtra: its library is not installed.
    """
    if name not in ("local", *EXTRAS):
        raise RecipeError(f"--launcher {name}: there are local, {', '.join(EXTRAS)}")
    _check_flags(name, gpus=gpus, memory=memory, ray_address=ray_address, slurm=slurm)
    if name == "local":
        from sublim_cli.sweep.local import LocalLauncher

        return LocalLauncher(worker_devices(workers))
    _check_installed(name)
    needs = Needs(threads(), float(device().type == "cuda") if gpus is None else gpus, memory)
    if name == "ray":
        from sublim_cli.sweep.ray import RayLauncher

        return RayLauncher(_address(ray_address or os.environ.get("RAY_ADDRESS")), workers, needs)
    from sublim_cli.sweep.slurm import SlurmLauncher

    return SlurmLauncher(dict(map(_option, slurm)), workers, needs)


def caution(gpus: float | None) -> str | None:
    """What the user should know who asks for GPUs from a machine that has none."""
    if not gpus or device().type == "cuda":
        return None
    return (
        "this machine has no GPU, and `auto` was resolved here: precisions are fp32, the backend is plain. "
        "Name them in the recipe if the workers' GPUs should decide"
    )


def _check_flags(
    name: str, *, gpus: float | None, memory: float | None, ray_address: str | None, slurm: Sequence[str]
) -> None:
    if name == "local" and (gpus is not None or memory is not None):
        raise RecipeError(
            "--gpus and --memory are what ray and slurm are asked for; --launcher local shares this machine "
            f"among --workers, and SUBLIM_DEVICE and {THREADS} say what each takes"
        )
    if name != "ray" and ray_address:
        raise RecipeError(f"--ray-address is for --launcher ray, not {name}")
    if name != "slurm" and slurm:
        raise RecipeError(f"--slurm is for --launcher slurm, not {name}")
    if name == "slurm" and gpus is not None and gpus != int(gpus):
        raise RecipeError(f"--gpus {gpus:g}: Slurm hands out whole GPUs")


def _check_installed(name: str) -> None:
    if find_spec(EXTRAS[name]) is None:
        raise MissingExtra(
            f"--launcher {name} needs {EXTRAS[name]}, which is not installed; "
            f"`pip install 'sublim[{name}]'` adds it"
        )


def _address(address: str | None) -> str | None:
    if address and address.startswith("ray://"):
        raise RecipeError(
            f"--ray-address {address}: Ray's client cannot carry a sweep; "
            "run sublim on a machine of the cluster, with --ray-address auto"
        )
    return address if address and address != "local" else None


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise RecipeError(f"--slurm {text}: must be OPTION=VALUE, such as partition=gpu")
    return name.strip().lstrip("-").replace("-", "_"), value.strip()
