"""Scratch directories: whose they are, and which of them nobody will finish."""

import os
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

ABANDONED = 7 * 24 * 3600.0
"""Seconds after which a scratch directory of another machine is given up; no step runs as long."""


def scratch_name() -> str:
    """A name no other builder has, which tells this machine and this process: `MACHINE-PID-RANDOM`."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def abandoned(scratch: Path) -> bool:
    """Whether the builder of a directory ending in `-MACHINE-PID-RANDOM` is no more.

    Certain on its own machine. Of another, whose processes cannot be seen, it goes by the last change.
    """
    _, _, rest = scratch.name.partition("-")
    machine, _, rest = rest.partition("-")
    pid = rest.partition("-")[0]
    if machine == _machine() and pid.isdecimal():
        return not _alive(int(pid))
    with suppress(OSError):
        return time.time() - scratch.stat().st_mtime > ABANDONED
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


@cache
def _machine() -> str:
    """The machine since it was started, and the container: where a process id means one process."""
    about = [socket.gethostname()]
    with suppress(OSError):  # both are Linux's
        about.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        about.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return uuid.uuid5(uuid.NAMESPACE_DNS, " ".join(about)).hex[:8]
