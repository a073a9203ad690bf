"""What earlier reports read of a store's artifacts, saved so that the next report does not open them again.

    cache = ReadCache(Path("runs") / CACHE_FILE)
    losses = cache.get(artifact, "losses", lambda: read_json(artifact.path / "losses.json"))
    cache.save()

An artifact never changes. One that was deleted and built anew has a record with another time stamp and is
read again. Without a cache file, or in a store that cannot be written, every artifact is read.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from sublim_cli.artifacts.record import RECORD, explain_read_errors
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import abandoned, scratch_name

CACHE_FILE = ".notes.jsonl"
"""Under the store. It may be deleted at any time."""

VERSION = 3
"""Raise it when something else is saved of an artifact; older entries are then ignored."""


class ReadCache:
    """A file of entries, one a line: version, digest and key; the time of the record; plain JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = ""
        with suppress(OSError, ValueError):
            text = path.read_text(encoding="utf-8")
        lines = (line.partition("\t") for line in text.split("\n") if line.startswith(f"{VERSION} "))
        self._entries = {entry: rest for entry, _, rest in lines}
        self._stamps: dict[str, str] = {}
        self._changed = False

    def get(self, artifact: Artifact, key: str, read: Callable[[], Mapping[str, Any]]) -> Any:
        """What is saved of an artifact under a key; else what `read` returns, which must be plain JSON."""
        entry, stamp = f"{VERSION} {artifact.digest} {key}", self._stamp(artifact)
        saved_stamp, _, text = self._entries.get(entry, "").partition("\t")
        if saved_stamp == stamp:
            with suppress(ValueError):  # a damaged entry is read anew
                return from_json(text)  # four times as fast as the json of the standard library
        value = read()
        self._entries[entry] = f"{stamp}\t{json.dumps(value)}"
        self._changed = True
        return value

    def save(self) -> None:
        """Write the entries for the next report; a store that cannot be written is left as it is."""
        if not self._changed:
            return
        scratch = self._path.with_name(f"{self._path.name}-{scratch_name()}")
        with suppress(OSError):
            for old in self._path.parent.glob(f"{self._path.name}-*"):
                if abandoned(old):
                    old.unlink(missing_ok=True)
            try:
                with scratch.open("w", encoding="utf-8") as file:
                    file.writelines(f"{entry}\t{rest}\n" for entry, rest in self._entries.items())
                scratch.replace(self._path)
            finally:
                scratch.unlink(missing_ok=True)
        self._changed = False

    def _stamp(self, artifact: Artifact) -> str:
        """When the artifact's record was written, in nanoseconds."""
        if artifact.digest not in self._stamps:
            with explain_read_errors(artifact.path / RECORD):
                self._stamps[artifact.digest] = str(os.stat(f"{artifact.path}/{RECORD}").st_mtime_ns)
        return self._stamps[artifact.digest]
