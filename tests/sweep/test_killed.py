"""Kill -9 of the launcher at random moments: the same checksums, no artifact built twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 20

pytestmark = pytest.mark.slow


def begun(err: str) -> list[str]:
    """The labels of the steps that a sweep said it began."""
    return [line[2:] for line in err.splitlines() if line.startswith("· ")]


def kill_after(seconds: float, running) -> str:
    """Kill the program alone, as the system would; its workers are on their own. What it had said."""
    try:
        return running.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.kill(running.pid, signal.SIGKILL)
    return running.communicate(timeout=120)[1]


def test_twenty_kills_at_random_moments_change_nothing(sublim, tiny, alone, finished, checksums, tmp_path):
    started = time.monotonic()
    quiet = sublim(*tiny(12), "--out", "quiet", "--workers", "2")
    quiet.communicate()
    undisturbed = time.monotonic() - started
    assert checksums(tmp_path / "quiet") == alone(12)
    moments, kills, stores = random.Random(1), 0, 0
    while kills < KILLS:
        stores += 1
        store = tmp_path / f"store{stores}"
        kills += sweep_to_the_end(store, sublim, tiny, finished, moments, 0.6 * undisturbed)
        assert checksums(store) == alone(12)
        assert not list(tmp_path.glob("store*/*/.*-*"))
    assert stores > 1
    # Seen with `pytest -s`, for benchmarks/results/launchers.md.
    sys.stderr.write(f"{kills} kills in {stores} sweeps; undisturbed, one took {undisturbed:.0f} s\n")


def sweep_to_the_end(store: Path, sublim, tiny, finished, moments: random.Random, most: float) -> int:
    """Run a sweep again and again, killed at a random moment each time it lasts so long; how often it was."""
    kills, code = 0, None
    while code != 0:
        before = finished(store)
        running = sublim(*tiny(12), "--out", str(store), "--workers", "2")
        err = kill_after(moments.uniform(0, most), running)
        code = running.returncode
        assert code in (0, -signal.SIGKILL), err
        kills += code != 0
        labels = begun(err)
        assert len(labels) == len(set(labels))
        assert not before.keys() & labels
        assert before.items() <= finished(store).items()
    return kills
