"""What `doctor` looks at: one finding a line, each with the remedy where something is wrong."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sublim_cli.errors import SublimError
from sublim_cli.models.device import device_record
from sublim_cli.trainers.import_check import unloadable

State = Literal["ok", "wrong", "not here"]
"""What is wrong keeps the main job from running; what is not here is optional."""

PURPOSE = {
    "gpu": "Unsloth's kernels, 4-bit bases and 8-bit AdamW, on a CUDA device",
    "vllm": "rows and sampled answers through vLLM, on a CUDA device",
    "ray": "a sweep on a Ray cluster",
    "slurm": "a sweep through Slurm",
}
"""The extras of pyproject.toml that something in sublim uses."""

ROOM = 1_000_000_000
"""Bytes that a study of the embedded model needs with room to spare; less is wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` says what it is for or, where it is wrong, what to do."""

    name: str
    found: str
    state: State = "ok"
    remedy: str = ""


def findings(out: Path) -> list[Finding]:
    """Everything, in the order a user would mend it."""
    try:
        about = metadata("sublim")
    except PackageNotFoundError:
        lost = Finding("sublim", "not installed", "wrong", "`make setup`, or `pip install .` in its checkout")
        return [lost, _torch(), _store(out)]
    wanted = [Requirement(one) for one in about.get_all("Requires-Dist") or []]
    return [
        _python(str(about["Requires-Python"])),
        *_packages([one for one in wanted if one.marker is None]),
        _torch(),
        *_extras([one for one in wanted if one.marker is not None]),
        _store(out),
    ]


def _python(bounds: str) -> Finding:
    own = platform.python_version()
    if own in SpecifierSet(bounds):
        return Finding("Python", own)
    return Finding("Python", own, "wrong", f"sublim wants {bounds}; make the environment with such a Python")


def _packages(wanted: list[Requirement]) -> Iterator[Finding]:
    bad = [one for one in wanted if not _fits(one)]
    for one in bad:
        found = _version(one.name) or "missing"
        yield Finding(one.name, found, "wrong", f"`pip install '{one}'`")
    yield Finding("packages", f"{len(wanted) - len(bad)} of {len(wanted)} as sublim wants them")


def _fits(one: Requirement) -> bool:
    found = _version(one.name)
    return found is not None and one.specifier.contains(found, prereleases=True)


def _torch() -> Finding:
    built = _version("torch") or "missing"
    if why := unloadable():
        return Finding("training", f"torch {built}", "wrong", why)
    try:
        here = device_record()
    except SublimError as error:
        return Finding("training", f"torch {built}", "wrong", str(error))
    return Finding("training", f"torch {built} on {here['device']}")


def _extras(wanted: list[Requirement]) -> Iterator[Finding]:
    for extra, purpose in PURPOSE.items():
        own = [one for one in wanted if one.marker and one.marker.evaluate({"extra": extra})]
        lacking = [one.name for one in own if not _fits(one)]
        if lacking:
            yield Finding(f"extra {extra}", f"lacks {', '.join(lacking)}", "not here", purpose)
        else:
            yield Finding(f"extra {extra}", "installed", remedy=purpose)


def _store(out: Path) -> Finding:
    there = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    found = f"{out}, {free / 1e9:.1f} GB free"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("store", found, "wrong", f"{there} cannot be written; choose another with --out")
    if free < ROOM:
        return Finding("store", found, "wrong", "free some, or choose another disk with --out")
    return Finding("store", found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
