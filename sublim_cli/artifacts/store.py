"""The store of artifacts: ROOT/KIND/DIGEST/.

A build writes into a scratch directory, the record last, and then renames the directory to its place.
"""

import errno
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from filelock import SoftFileLease, Timeout

from sublim_cli.artifacts.record import RECORD, write_record
from sublim_cli.artifacts.step import Artifact, Step, digest, in_order
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
MANIFESTS = "manifests"
"""Directory in the store with a manifest of every study, NAME-IDENTITY.json, and its NAME.claims.lock."""

LEASE = 120.0
"""Seconds without a heartbeat after which a claim made on another machine is no longer valid."""

HEARTBEAT = 10.0
"""Seconds between a builder's heartbeats."""

ABANDONED = 7 * 24 * 3600.0
"""Seconds without a change after which a scratch directory of another machine counts as abandoned. No step
takes as long."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@dataclass(frozen=True)
class Store:
    """A directory of artifacts. A directory without its record does not count."""

    root: Path

    def find(self, step: Step) -> Artifact | None:
        """The step's artifact if it has been built here."""
        path = self._path(step)
        return Artifact(path, digest(step)) if os.path.isfile(f"{path}/{RECORD}") else None

    def begun(self, step: Step) -> bool:
        """Whether the step has been built here, or is being built by a process that still holds its claim."""
        if self.find(step):
            return True
        with suppress(OSError):
            return time.time() - self._claim(step).stat().st_mtime < LEASE
        return False

    @contextmanager
    def claim(self, step: Step, listener: Listener = silent) -> Iterator[None]:
        """Hold the right to build `step`; wait while another process holds it.

        A claim is a file that its holder touches every `HEARTBEAT` seconds. If the holder has died on this
        machine, the claim is taken over at once; if it is on another machine, after `LEASE` seconds without a
        heartbeat. A holder that was suspended, not dead, keeps building after its claim has expired: then two
        processes build the same step, and the second to finish discards its result.
        """
        path = self._claim(step)
        with explain_disk_errors(self.root, makes_directory=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=HEARTBEAT)
            try:
                lease.acquire(timeout=0)
            except Timeout:
                listener(StepWaiting(step.label, digest(step)))
                lease.acquire(poll_interval=0.5)
                _refresh_listing(self._path(step).parent)
        try:
            yield
        finally:
            lease.release()

    def build(self, step: Step, inputs: tuple[Artifact, ...], listener: Listener) -> Artifact:
        """Build `step` in a scratch directory, which becomes its artifact on success."""

        def add_digest(event: Event, /) -> None:
            listener(replace(event, digest=digest(step)) if isinstance(event, Progress) else event)

        listener(StepStarted(step.label, digest(step)))
        path = self._path(step)
        scratch = path.with_name(f".{path.name}-{scratch_name()}")
        started = time.monotonic()
        with explain_disk_errors(self.root):
            try:
                scratch.mkdir(parents=True)
                self.remove_abandoned([step])
                measured = step.build(scratch, inputs, add_digest)
                write_record(step, scratch, measured, time.monotonic() - started)
                _move_into_place(scratch, path)
                shutil.rmtree(checkpoint_dir(scratch), ignore_errors=True)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        artifact = self.find(step)
        if artifact is None:
            raise ArtifactError(f"{step.label}: its artifact vanished from {self.root} while it was built")
        listener(StepFinished(step.label, digest(step), path, time.monotonic() - started))
        return artifact

    def remove_abandoned(self, steps: Sequence[Step]) -> None:
        """Remove the scratch directories of `steps` whose builders no longer run, see `abandoned`."""
        names = {f".{digest(step)}" for step in steps}
        for directory in {self._path(step).parent for step in steps}:
            for scratch in directory.glob(".*-*"):
                if scratch.name.partition("-")[0] in names and abandoned(scratch):
                    shutil.rmtree(scratch, ignore_errors=True)

    def tidy(self, steps: Sequence[Step]) -> None:
        """After other machines built `steps`: make their artifacts visible and remove abandoned scratch."""
        ordered = in_order(steps)
        for directory in {self._path(step).parent for step in ordered}:
            _refresh_listing(directory)
        self.remove_abandoned(ordered)

    def _claim(self, step: Step) -> Path:
        return self.root / CLAIMS / f"{step.kind}-{digest(step)}.lease"

    def _path(self, step: Step) -> Path:
        return Path(f"{self.root}/{step.kind}/{digest(step)}")


def materialise(step: Step, store: Store, listener: Listener = silent) -> Artifact:
    """Return the step's artifact, building it and its inputs only where they are missing."""
    if artifact := store.find(step):
        listener(StepReused(step.label, digest(step), artifact.path))
        return artifact
    inputs = tuple(materialise(needed, store, listener) for needed in step.inputs)
    with store.claim(step, listener):
        if artifact := store.find(step):
            listener(StepReused(step.label, digest(step), artifact.path))
            return artifact
        return store.build(step, inputs, listener)


def scratch_name() -> str:
    """A unique name that identifies this machine and this process: `MACHINE-PID-RANDOM`."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def abandoned(scratch: Path) -> bool:
    """Whether the builder of a directory named `…-MACHINE-PID-RANDOM` no longer runs.

    On the builder's own machine this is certain. Processes of another machine cannot be seen, so there the
    time of the last change decides.
    """
    match scratch.name.split("-"):
        case [_, machine, pid, *_] if machine == _machine() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except OSError as error:  # a PermissionError: the process runs, as another user
                return isinstance(error, ProcessLookupError)
            return False
    with suppress(OSError):
        return time.time() - scratch.stat().st_mtime > ABANDONED
    return False


@cache
def _machine() -> str:
    """A hash of host, boot and container; while it is the same, a process id names the same process."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # both files exist on Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return uuid.uuid5(uuid.NAMESPACE_DNS, " ".join(parts)).hex[:8]


def write_durably(path: Path, text: str) -> None:
    """Write a file at once or not at all: flushed to the disk under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{scratch_name()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def checkpoint_dir(out: Path) -> Path:
    """The directory for checkpoints of a step whose scratch directory is `out`.

    It outlives a killed builder, so that the next one can resume, and is removed once the artifact exists.
    """
    return out.with_name(f"{out.name.partition('-')[0]}.checkpoint")


def _refresh_listing(directory: Path) -> None:
    """Make new names in `directory` visible: setting the mode clears what an NFS client has cached of it."""
    with suppress(OSError):
        directory.chmod(stat.S_IMODE(directory.stat().st_mode))


def _move_into_place(scratch: Path, path: Path) -> None:
    """Flush `scratch` to disk and rename it to `path`, unless another builder's artifact is already there."""
    for written in [*scratch.rglob("*"), scratch]:
        _fsync(written)
    try:
        scratch.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        if not (path / RECORD).is_file():  # the remains of an artifact that was partly removed
            remains = path.with_name(f".{path.name}-{scratch_name()}")
            path.rename(remains)
            scratch.rename(path)
            shutil.rmtree(remains, ignore_errors=True)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain_disk_errors(path: Path, *, makes_directory: bool = False) -> Iterator[None]:
    """Turn a failure to write under `path` into an error that names the remedy; others pass unchanged.

    Args:
        makes_directory: whether the block creates directories, which some file systems (/proc) refuse with
            the error of a missing file.

    Raises:
        ArtifactError: the disk is full, or `path` cannot be written.
    """
    refusals = (*_NOT_WRITABLE, errno.ENOENT) if makes_directory else _NOT_WRITABLE
    try:
        yield
    except Exception as error:
        number, reason, filename = (getattr(error, name, None) for name in ("errno", "strerror", "filename"))
        # safetensors and torch report a full disk in exceptions of their own.
        message = "" if isinstance(error, OSError) else str(error)
        disk_full = number in _DISK_FULL or "No space left" in message or "File too large" in message
        if not disk_full and number not in refusals:
            raise
        if isinstance(filename, str):
            refused, root = Path(filename).absolute(), path.absolute()
            if not (refused.is_relative_to(root) or root.is_relative_to(refused)):
                raise ArtifactError(
                    f"{filename}: {reason}. It is not in {path}; check TMPDIR, HF_HOME and similar variables"
                ) from error
        if disk_full:
            raise ArtifactError(
                f"no space left to write {path}; free some, or choose another disk with --out. "
                "Nothing half-written was kept"
            ) from error
        raise ArtifactError(
            f"{path} cannot be written ({reason}); choose a directory of yours: "
            "--out or SUBLIM_OUT sets where artifacts go, --output where filtered rows go"
        ) from error
