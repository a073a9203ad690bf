"""The record of an artifact: identity, checksums and where it came from."""

import hashlib
import json
import platform
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sublim_cli import __version__
from sublim_cli.artifacts.step import Measurements, Step, digest, identity
from sublim_cli.errors import ArtifactError

RECORD = "artifact.json"
PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "numpy"),
    *("bitsandbytes", "unsloth", "unsloth_zoo", "vllm"),
)
"""The packages whose version may move a number; the last four are not always there."""


@dataclass(frozen=True)
class ArtifactRecord:
    """What a record says of the artifact beside it."""

    path: Path
    kind: str
    digest: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def artifact_records(root: Path) -> list[ArtifactRecord]:
    """Every artifact under a store's `root`, in the order of kinds and digests; none where there is no store.

    Raises:
        ArtifactError: a record cannot be read.
    """
    return [
        ArtifactRecord(path, identity["kind"], record["digest"], identity, record["provenance"])
        for path in sorted(one.parent for one in root.glob(f"*/[0-9a-f]*/{RECORD}"))
        for record in (read_record(path),)
        for identity in (record["identity"],)
    ]


def size(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def checksums(path: Path) -> dict[str, str]:
    """sha256 of every file under `path` but the record, by relative name."""
    files = sorted(one for one in path.rglob("*") if one.is_file() and one.name != RECORD)
    return {one.relative_to(path).as_posix(): _sha256(one) for one in files}


def checksum(record: dict[str, Any]) -> str:
    """One hash over an artifact's payload: equal exactly when all its files are."""
    text = json.dumps(record["checksums"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(step: Step, path: Path, facts: Measurements, seconds: float) -> None:
    """Write the record of `step` into its directory `path`; the payload must be complete."""
    record = {
        "digest": digest(step),
        "label": step.label,
        "identity": identity(step),
        "checksums": checksums(path),
        "provenance": {
            **_machine(),
            "seconds": round(seconds, 3),
            # Linux counts ru_maxrss in KiB, and for the whole process, earlier steps included.
            "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **facts,
        },
    }
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    (path / RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """The record of the artifact at `path`.

    Raises:
        ArtifactError: it is missing or not JSON.
    """
    with explain_read_errors(path / RECORD):
        record: dict[str, Any] = json.loads((path / RECORD).read_text(encoding="utf-8"))
    return record


@contextmanager
def explain_read_errors(file: Path) -> Iterator[None]:
    """Turn the loss of an artifact's `file`, or damage to it, into one sentence with the remedy.

    Raises:
        ArtifactError: what is done with it fails for what the file is.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({error}); delete {file.parent} and run again to rebuild it"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _machine() -> dict[str, Any]:
    return {
        "sublim": __version__,
        "git": _git(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout sublim runs from, if it runs from one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = _run("git", "-C", str(here), "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_run("git", "-C", str(here), "status", "--short"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
