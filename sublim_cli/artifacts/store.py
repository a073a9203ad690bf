"""Where artifacts live: ROOT/KIND/DIGEST/, written beside, recorded last, then renamed."""

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import SoftFileLease, Timeout

from sublim_cli.artifacts.record import RECORD, write_record
from sublim_cli.artifacts.scratch import abandoned, scratch_name
from sublim_cli.artifacts.step import Artifact, Measurements, Step, digest, in_order
from sublim_cli.errors import ArtifactError
from sublim_cli.events import (
    Event,
    Listener,
    Progress,
    StepFinished,
    StepReused,
    StepStarted,
    StepWaiting,
    silent,
)

CLAIMS = ".claims"
LEASE = 120.0
"""Seconds without a sign of life after which a claim made on another machine counts for nothing."""

HEARTBEAT = 10.0
"""Seconds between a builder's signs of life."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
NO_DIRECTORY = (*_NOT_WRITABLE, errno.ENOENT)  # some file systems (/proc) refuse a new directory so


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

        A claim is a file that its holder touches. One whose holder has died on this machine is taken over
        at once, one from another machine when nobody has touched it for `LEASE` seconds. It does not
        fence: a holder that was only asleep builds on, and `writing` yields to whoever was first.
        """
        path = self.root / CLAIMS / f"{step.kind}-{digest(step)}.lease"
        with explain_disk_errors(self.root, NO_DIRECTORY):
            path.parent.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=HEARTBEAT)
            try:
                lease.acquire(timeout=0)
            except Timeout:
                listener(StepWaiting(step.label, digest(step)))
                lease.acquire(poll_interval=0.5)
                _look_again(self._path(step).parent)
        try:
            yield
        finally:
            lease.release()

    @contextmanager
    def writing(self, step: Step) -> Iterator[tuple[Path, dict[str, object]]]:
        """Yield a scratch directory and a dict for facts; it becomes the artifact on success."""
        final = self._path(step)
        scratch = final.with_name(f".{final.name}-{scratch_name()}")
        facts: dict[str, object] = {}
        started = time.monotonic()
        with explain_disk_errors(self.root):
            try:
                scratch.mkdir(parents=True)
                self.discard(step)
                yield scratch, facts
                write_record(step, scratch, facts, time.monotonic() - started)
                _settle(scratch, final)
                shutil.rmtree(checkpoint_dir(scratch), ignore_errors=True)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def discard(self, step: Step) -> None:
        """Remove what builders of `step` that are no more left half-written; see `scratch.abandoned`."""
        _remove_abandoned(self._path(step).parent, {digest(step)})

    def tidy(self, steps: Sequence[Step]) -> None:
        """After other machines' work: see what they built, remove what those lost here left half-written."""
        names: dict[Path, set[str]] = {}
        for one in in_order(steps):
            names.setdefault(self._path(one).parent, set()).add(digest(one))
        for directory, own in names.items():
            _look_again(directory)
            _remove_abandoned(directory, own)

    def _path(self, step: Step) -> Path:
        return Path(f"{self.root}/{step.kind}/{digest(step)}")


def materialise(step: Step, store: Store, listener: Listener = silent) -> Artifact:
    """Return the step's artifact, building it and its inputs only where they are missing."""
    if found := store.find(step):
        listener(StepReused(step.label, digest(step), found.path))
        return found
    inputs = tuple(materialise(one, store, listener) for one in step.inputs)
    with store.claim(step, listener):
        if found := store.find(step):
            listener(StepReused(step.label, digest(step), found.path))
            return found
        return _build(step, inputs, store, listener)


def checkpoint_dir(out: Path) -> Path:
    """The directory for what a killed builder's successor can go on from; `out` is its scratch directory.

    It outlives the builder, and goes when the artifact is in place.
    """
    return out.with_name(f"{out.name.partition('-')[0]}.checkpoint")


def _build(step: Step, inputs: tuple[Artifact, ...], store: Store, listener: Listener) -> Artifact:
    def signed(event: Event, /) -> None:
        listener(replace(event, digest=digest(step)) if isinstance(event, Progress) else event)

    listener(StepStarted(step.label, digest(step)))
    started = time.monotonic()
    with store.writing(step) as (out, facts):
        measured: Measurements = step.build(out, inputs, signed)
        facts.update(measured)
    built = store.find(step)
    if built is None:
        raise ArtifactError(f"{step.label}: its artifact vanished from {store.root} while it was built")
    listener(StepFinished(step.label, digest(step), built.path, time.monotonic() - started))
    return built


def _remove_abandoned(directory: Path, names: set[str]) -> None:
    for old in directory.glob(".*-*"):
        if old.name[1:].partition("-")[0] in names and abandoned(old):
            shutil.rmtree(old, ignore_errors=True)


def _look_again(directory: Path) -> None:
    """Over NFS, a name that was missing is remembered as missing; touching its directory ends that."""
    with suppress(OSError):
        directory.chmod(stat.S_IMODE(directory.stat().st_mode))


def _settle(scratch: Path, final: Path) -> None:
    """Flush scratch to disk and move it into place, or yield to whoever got there first."""
    for one in [*scratch.rglob("*"), scratch]:
        _fsync(one)
    try:
        scratch.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        if not (final / RECORD).is_file():
            _replace_remains(scratch, final)
    _fsync(final.parent)


def _replace_remains(scratch: Path, final: Path) -> None:
    """Put scratch where a directory without a record lies: what is left of an artifact half removed."""
    aside = final.with_name(f".{final.name}-{scratch_name()}")
    final.rename(aside)
    scratch.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain_disk_errors(path: Path, refusals: tuple[int, ...] = _NOT_WRITABLE) -> Iterator[None]:
    """Turn a disk that refuses to hold `path` into one sentence; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in (*_DISK_FULL, *refusals) and (elsewhere := _elsewhere(error, path)):
            raise ArtifactError(
                f"{elsewhere}: {error.strerror}. It is not part of {path}; TMPDIR, HF_HOME or another "
                "variable led there"
            ) from error
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


def _elsewhere(error: OSError, path: Path) -> str | None:
    """The file that was refused, if it lies neither under `path` nor above it."""
    if not isinstance(error.filename, str):
        return None
    refused, own = Path(error.filename).absolute(), path.absolute()
    return None if refused.is_relative_to(own) or own.is_relative_to(refused) else error.filename


def _full(path: Path) -> ArtifactError:
    return ArtifactError(
        f"no space left to write {path}; free some, or choose another disk with --out. "
        "Nothing half-written was kept"
    )
