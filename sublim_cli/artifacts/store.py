"""Where artifacts live: ROOT/KIND/DIGEST/, written beside, recorded last, then renamed."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sublim_cli.artifacts.record import RECORD, write_record
from sublim_cli.artifacts.step import Artifact, Facts, Step, digest
from sublim_cli.errors import ArtifactError
from sublim_cli.events import (
    Listener,
    StepFinished,
    StepReused,
    StepStarted,
    StepWaiting,
    silent,
)

CLAIMS = ".claims"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_NO_DIRECTORY = (*_NOT_WRITABLE, errno.ENOENT)  # some file systems (/proc) refuse a new directory so


@dataclass(frozen=True)
class Store:
    """A directory of artifacts. A directory without its record does not count."""

    root: Path

    def find(self, step: Step) -> Artifact | None:
        """The step's artifact if it has been built here."""
        path = self._path(step)
        return Artifact(path, digest(step)) if os.path.isfile(f"{path}/{RECORD}") else None

    @contextmanager
    def claim(self, step: Step, listener: Listener = silent) -> Iterator[None]:
        """Hold the right to build `step`; wait while another process holds it.

        The lock belongs to the process, so a killed builder leaves no claim behind.
        """
        path = self.root / CLAIMS / f"{step.kind}-{digest(step)}.lock"
        with explained(self.root, _NO_DIRECTORY):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                listener(StepWaiting(step.label))
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self, step: Step) -> Iterator[tuple[Path, dict[str, object]]]:
        """Yield a scratch directory and a dict for facts; it becomes the artifact on success.

        Call it under `claim`: scratch directories of the same step are then abandoned ones.
        """
        final = self._path(step)
        scratch = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
        facts: dict[str, object] = {}
        started = time.monotonic()
        with explained(self.root):
            try:
                self.discard(step)
                scratch.mkdir(parents=True)
                yield scratch, facts
                write_record(step, scratch, facts, time.monotonic() - started)
                _settle(scratch, final)
                shutil.rmtree(kept_beside(scratch), ignore_errors=True)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def discard(self, step: Step) -> None:
        """Remove what an ended builder of `step` left half-written; no builder may be at work."""
        final = self._path(step)
        for old in final.parent.glob(f".{final.name}-*"):
            shutil.rmtree(old, ignore_errors=True)

    def _path(self, step: Step) -> Path:
        return Path(f"{self.root}/{step.kind}/{digest(step)}")


def materialise(step: Step, store: Store, listener: Listener = silent) -> Artifact:
    """Return the step's artifact, building it and its inputs only where they are missing."""
    if found := store.find(step):
        listener(StepReused(step.label, found.path))
        return found
    inputs = tuple(materialise(one, store, listener) for one in step.inputs)
    with store.claim(step, listener):
        if found := store.find(step):
            listener(StepReused(step.label, found.path))
            return found
        return _build(step, inputs, store, listener)


def kept_beside(out: Path) -> Path:
    """The directory for what a killed builder's successor can go on from; `out` is its scratch directory.

    It outlives the builder, and goes when the artifact is in place.
    """
    return out.with_name(f"{out.name.rpartition('-')[0]}.checkpoint")


def _build(step: Step, inputs: tuple[Artifact, ...], store: Store, listener: Listener) -> Artifact:
    listener(StepStarted(step.label))
    started = time.monotonic()
    with store.writing(step) as (out, facts):
        measured: Facts = step.build(out, inputs, listener)
        facts.update(measured)
    built = store.find(step)
    if built is None:
        raise ArtifactError(f"{step.label}: its artifact vanished from {store.root} while it was built")
    listener(StepFinished(step.label, built.path, time.monotonic() - started))
    return built


def _settle(scratch: Path, final: Path) -> None:
    """Flush scratch to disk and move it into place, or yield to whoever got there first."""
    for one in [*scratch.rglob("*"), scratch]:
        _fsync(one)
    try:
        scratch.rename(final)
    except OSError:
        if not (final / RECORD).is_file():
            raise
    _fsync(final.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path, refusals: tuple[int, ...] = _NOT_WRITABLE) -> Iterator[None]:
    """Turn a disk that refuses to hold `path` into one sentence; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _full(path) from error
        if error.errno in refusals:
            raise ArtifactError(
                f"{path} cannot be written ({error.strerror}); choose a directory of yours: "
                "--out or SUBLIM_OUT sets where artifacts go, --output where filtered rows go"
            ) from error
        raise
    except Exception as error:
        # safetensors and torch report a full disk in exceptions of their own.
        if "No space left" in str(error) or "File too large" in str(error):
            raise _full(path) from error
        raise


def _full(path: Path) -> ArtifactError:
    return ArtifactError(
        f"no space left to write {path}; free some, or choose another disk with --out. "
        "Nothing half-written was kept"
    )
