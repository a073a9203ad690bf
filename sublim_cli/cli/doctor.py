"""`sublim doctor`: whether this machine can run the main job, and what to do where it cannot."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sublim_cli.cli import options as o
from sublim_cli.errors import SublimError

State = Literal["ok", "wrong", "not here"]
"""`wrong` keeps the main job from running; `not here` is an optional part that is not installed."""

PURPOSES = {
    "gpu": "Unsloth's kernels, 4-bit bases and 8-bit AdamW, on a CUDA device",
    "vllm": "rows and sampled answers through vLLM, on a CUDA device",
    "ray": "a sweep on a Ray cluster",
    "slurm": "a sweep through Slurm",
    "gguf": "`sublim models get`",
}
"""What each extra of pyproject.toml is for."""

LEAST_FREE = 1_000_000_000
"""Free bytes that a study of the embedded model needs, with a margin."""


@dataclass(frozen=True)
class Check:
    """The result of one check; `remedy` is the purpose of an extra or, where `state` is wrong, the fix."""

    name: str
    found: str
    state: State = "ok"
    remedy: str = ""


def doctor(out: o.Out = o.STORE, json: o.Json = False) -> None:
    """Look at Python, torch, the packages and the store; exit with 1 where the main job could not run.

    Missing extras are listed with their purpose; the main job needs none of them.
    """
    from sublim_cli.console import show_json, show_table

    checks = _checks(out)
    rows = [(check.name, check.found, check.state, check.remedy) for check in checks]
    fit = all(check.state != "wrong" for check in checks)
    if json:
        show_json({"fit": fit, "findings": [asdict(check) for check in checks]})
    else:
        show_table("", ("", "found", "", "what for, or what to do"), rows, numbers=False)
    raise typer.Exit(0 if fit else 1)


def _checks(out: Path) -> list[Check]:
    """All checks, in the order a user would fix what is wrong."""
    try:
        package = metadata("sublim")
    except PackageNotFoundError:
        remedy = "`make setup`, or `pip install .` in its checkout"
        return [Check("sublim", "not installed", "wrong", remedy), _training(), _store(out)]
    requirements = [Requirement(text) for text in package.get_all("Requires-Dist") or []]
    return [
        _python(str(package["Requires-Python"])),
        *_packages([requirement for requirement in requirements if requirement.marker is None]),
        _training(),
        *_extras([requirement for requirement in requirements if requirement.marker is not None]),
        _store(out),
    ]


def _python(bounds: str) -> Check:
    running = platform.python_version()
    if running in SpecifierSet(bounds):
        return Check("Python", running)
    remedy = f"sublim needs {bounds}; make the environment with such a Python"
    return Check("Python", running, "wrong", remedy)


def _packages(requirements: list[Requirement]) -> Iterator[Check]:
    unmet = [requirement for requirement in requirements if not _is_met(requirement)]
    for requirement in unmet:
        installed = _version(requirement.name) or "missing"
        yield Check(requirement.name, installed, "wrong", f"`pip install '{requirement}'`")
    met = len(requirements) - len(unmet)
    yield Check("packages", f"{met} of {len(requirements)} in a version that sublim supports")


def _is_met(requirement: Requirement) -> bool:
    installed = _version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def _training() -> Check:
    from sublim_cli.models.device import device_record
    from sublim_cli.trainers.backend import trl_import_error

    installed = f"torch {_version('torch') or 'missing'}"
    if reason := trl_import_error():
        return Check("training", installed, "wrong", reason)
    try:
        return Check("training", f"{installed} on {device_record()['device']}")
    except SublimError as error:
        return Check("training", installed, "wrong", str(error))


def _extras(requirements: list[Requirement]) -> Iterator[Check]:
    for extra, purpose in PURPOSES.items():
        missing = [
            requirement.name
            for requirement in requirements
            if requirement.marker
            and requirement.marker.evaluate({"extra": extra})
            and not _is_met(requirement)
        ]
        if missing:
            yield Check(f"extra {extra}", f"lacks {', '.join(missing)}", "not here", purpose)
        else:
            yield Check(f"extra {extra}", "installed", remedy=purpose)


def _store(out: Path) -> Check:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{out}, {free / 1e9:.1f} GB free"
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Check("store", text, "wrong", f"{existing} cannot be written; choose another with --out")
    if free < LEAST_FREE:
        return Check("store", text, "wrong", "free some space, or choose another disk with --out")
    return Check("store", text)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
