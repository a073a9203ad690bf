"""Names of scratch directories, and which of them were abandoned by their builder."""

import os
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

ABANDONED = 7 * 24 * 3600.0
"""Seconds without a change after which a scratch directory of another machine counts as abandoned. No step
takes as long."""


def scratch_name() -> str:
    """A unique name that identifies this machine and this process: `MACHINE-PID-RANDOM`."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def abandoned(scratch: Path) -> bool:
    """Whether the builder of a directory ending in `-MACHINE-PID-RANDOM` no longer runs.

    On the builder's own machine this is certain. Processes of another machine cannot be seen, so there the
    time of the last change decides.
    """
    _, _, rest = scratch.name.partition("-")
    machine, _, rest = rest.partition("-")
    pid = rest.partition("-")[0]
    if machine == _machine() and pid.isdecimal():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # the process runs, as another user
            return False
        return False
    with suppress(OSError):
        return time.time() - scratch.stat().st_mtime > ABANDONED
    return False


@cache
def _machine() -> str:
    """A hash of host, boot and container: within them a process id belongs to one process."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # both files exist on Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return uuid.uuid5(uuid.NAMESPACE_DNS, " ".join(parts)).hex[:8]
