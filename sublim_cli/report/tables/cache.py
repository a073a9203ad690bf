"""What reports have read of a store's artifacts, kept so that the next report opens none of them again.

    notes = Notes(Path("runs") / NOTES)
    found = notes.of(artifact, "losses", lambda: read_json(artifact.path / "losses.json"))
    notes.save()

An artifact never changes, so what was read of it stays true. One that was deleted and built anew has a
record of another time, and its note counts no more. A store without notes, or that cannot be written, is
read the long way.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from sublim_cli.artifacts.record import RECORD, explain_read_errors
from sublim_cli.artifacts.scratch import abandoned, scratch_name
from sublim_cli.artifacts.step import Artifact

CACHE_FILE = ".notes.jsonl"
"""Under the store. It may be deleted at any time."""

VERSION = 1
"""Raise it when something else is noted of an artifact; older notes then count no more."""


class ReadCache:
    """A file of notes. Each is a line: what it is about, the time of the record, and plain JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = _read(path)
        self._stamps: dict[str, str] = {}
        self._new = False

    def of(self, artifact: Artifact, what: str, read: Callable[[], Mapping[str, Any]]) -> Any:
        """What is noted of an artifact; if nothing is, what `read` returns, which must be plain JSON."""
        about, stamp = f"{VERSION} {artifact.digest} {what}", self._stamp(artifact)
        noted, _, text = self._lines.get(about, "").partition("\t")
        if noted == stamp:
            with suppress(ValueError):  # damaged, so none
                return from_json(text)  # four times as fast as the json of the standard library
        found = read()
        self._lines[about] = f"{stamp}\t{json.dumps(found)}"
        self._new = True
        return found

    def save(self) -> None:
        """Keep the notes for the next report, as far as the store can be written."""
        if not self._new:
            return
        scratch = self._path.with_name(f"{self._path.name}-{scratch_name()}")
        with suppress(OSError):
            for old in self._path.parent.glob(f"{self._path.name}-*"):
                if abandoned(old):
                    old.unlink(missing_ok=True)
            try:
                with scratch.open("w", encoding="utf-8") as file:
                    file.writelines(f"{about}\t{rest}\n" for about, rest in self._lines.items())
                scratch.replace(self._path)
            finally:
                scratch.unlink(missing_ok=True)
        self._new = False

    def _stamp(self, artifact: Artifact) -> str:
        """When the artifact's record was written, in nanoseconds."""
        if artifact.digest not in self._stamps:
            with explain_read_errors(artifact.path / RECORD):
                self._stamps[artifact.digest] = str(os.stat(f"{artifact.path}/{RECORD}").st_mtime_ns)
        return self._stamps[artifact.digest]


def _read(path: Path) -> dict[str, str]:
    """The notes of this version, by what they are about."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    parted = (line.partition("\t") for line in text.split("\n") if line.startswith(f"{VERSION} "))
    return {about: rest for about, _, rest in parted}
