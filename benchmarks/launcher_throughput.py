"""Two workers against one: how much faster a sweep of twelve cells is.

    python benchmarks/launcher_throughput.py [--rounds 3] [--rows 660]

Runs `sublim sweep` on the embedded model with one worker and with two in turn, each in a store of its own,
and counts everything from the command to its report: starting Python, importing the libraries, steps that
only one worker can do. All runs must end in the same checksums. The machine should have nothing else to do:
its load at the start stands in the table.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sublim_cli.artifacts.record import checksum, read_record

WANTED = 1.7
"""Times the throughput that two workers should reach."""

GRID = "sweep.grid={train.rank: [1, 2, 4, 8, 16], train.seed: [1, 2]}"
"""Ten students; their two controls make it twelve cells."""


def sweep(store: Path, workers: int, rows: int) -> float:
    """Seconds of one sweep."""
    settings = [GRID, "sweep.also=[]", "eval.system_prompts=[default, none]", f"generate.rows={rows}"]
    command = [sys.executable, "-m", "sublim_cli", "sweep", "-r", "demo", "--quiet", "--json"]
    command += ["--out", str(store), "--workers", str(workers)]
    command += [word for setting in settings for word in ("-s", setting)]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def checksums(store: Path) -> dict[str, str]:
    """The payload of every artifact, by its digest."""
    directories = (directory.parent for directory in store.glob("*/[0-9a-f]*/artifact.json"))
    return {directory.name: checksum(read_record(directory)) for directory in directories}


def main() -> None:
    """Measure, and print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="sweeps with each number of workers")
    parser.add_argument("--rows", type=int, default=660, help="rows a student is trained on")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    seen: list[dict[str, str]] = []
    for _ in range(given.rounds):
        for workers, times in seconds.items():
            with tempfile.TemporaryDirectory() as scratch:
                times.append(sweep(Path(scratch), workers, given.rows))
                seen.append(checksums(Path(scratch)))
    print(
        f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} at the start, {given.rounds} rounds, "
        f"{given.rows} rows, {len(seen[0])} steps; checksums of all sweeps "
        f"{'equal' if all(sums == seen[0] for sums in seen) else 'DIFFER'}"
    )
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    print("| workers | seconds, median | each | times one worker |\n| --- | --- | --- | --- |")
    for workers, times in seconds.items():
        each = ", ".join(f"{time_taken:.0f}" for time_taken in times)
        print(f"| {workers} | {medians[workers]:.0f} | {each} | {medians[1] / medians[workers]:.2f} |")
    print(f"wanted of two workers: {WANTED}")


if __name__ == "__main__":
    main()
