"""How long `plan` and the report's collection take on a finished sweep of 13,000 artifacts.

    python benchmarks/store_scale.py [--store DIR] [--seeds 11] [--rounds 3]

The recipe is `study-qwen` on the embedded model with more training seeds. Of each kind of artifact one is
really built; the others are made from it, so that every directory, record and file is shaped like a real
one: each has its own record under its own digest, each evaluation its own scores (the built ones, moved a
little by seed), and each loss curve as many steps as study-qwen trains. What no plan and no report reads
(weights, tokenizers) is the same file in many places. The store is read from a warm page cache.

A report keeps notes of what it reads, as the sweep's own report does; so collection is timed twice, on a
store without notes, which nobody has reported on yet, and with them.

Prints the median of some rounds, each in a process of its own: the whole with its imports, and of it the
resolving of the recipe to cells and the rest. Exits with 1 if the whole of `plan`, or collection with notes
once the cells are resolved, takes 5 s. The processor's time is beside it: on a machine that does other work
it is the surer figure.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.record import RECORD, read_record
from sublim_cli.artifacts.step import Artifact, Step, digest, identity, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.cli.options import collect_garbage_rarely
from sublim_cli.pipeline import Study
from sublim_cli.recipe.load import load, vary
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.tables.cache import CACHE_FILE
from sublim_cli.steps.files import HISTORY, SCORES
from sublim_cli.steps.locate import LocateStep
from sublim_cli.steps.train import TrainStep
from sublim_cli.sweep.cells import study

LIMIT = 5.0
"""Seconds that either may take."""

SMALL = {"generate.rows": 132, "generate.held_out": 20, "train.epochs": 1, "generate.sampling.max_tokens": 64}


def recipe(seeds: int) -> Recipe:
    """study-qwen on the embedded model with so many training seeds."""
    return load("study-qwen", {"model": "micro", "sweep.grid.train.seed": list(range(1, seeds + 1))})


def templates(wanted: Recipe, store: Store) -> dict[str, Artifact]:
    """One real artifact of every kind of step, small."""
    only = {"sweep": {"grid": {"train.method": ["lora", "full"]}}, "claims": []}
    few = vary(wanted, {**SMALL, **only, "eval.gates": ["shared_only"]})
    made = {_like(step): step for step in in_order(study(few).steps)}
    return {name: materialise(step, store) for name, step in made.items()}


def _like(step: Step) -> str:
    """What files an artifact of this step has, in words."""
    if isinstance(step, TrainStep):
        return f"train {step.spec.train.method}"
    if isinstance(step, LocateStep):
        return "locate part" if step.spec.part else "locate whole"
    return step.kind


def fill(planned: Study, store: Store, made: dict[str, Artifact]) -> Iterator[Step]:
    """Put an artifact of every step of a study into a store, each from its kind's template."""
    steps = in_order(planned.steps)
    lines = {name: _curve(artifact, 455) for name, artifact in made.items() if name.startswith("train")}
    for index, step in enumerate(steps):
        name = _like(step)
        target = store.root / step.kind / digest(step)
        if not (target / RECORD).is_file():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(made[name].path, target, copy_function=os.link)
            if step.kind == "train":
                _replace(target / HISTORY, lines[name])
            if step.kind == "eval":
                _moved(target / SCORES, index)
            record = read_record(made[name].path)
            record |= {"digest": digest(step), "label": step.label, "identity": identity(step)}
            _replace(target / RECORD, json.dumps(record, indent=2, sort_keys=True).encode())
        yield step


def _curve(artifact: Artifact, steps: int) -> bytes:
    """A loss curve of so many steps, from the few of a small training."""
    few = [json.loads(line) for line in (artifact.path / HISTORY).read_text().splitlines()]
    every = ({**few[index % len(few)], "step": index + 1} for index in range(steps))
    return "".join(f"{json.dumps(line)}\n" for line in every).encode()


def _moved(path: Path, seed: int) -> None:
    """Other scores of the same shape."""
    table = pq.read_table(path)
    p = table["p"].to_numpy() * np.random.default_rng(seed).uniform(0.5, 1.5)
    path.unlink()
    moved = pa.array(np.minimum(p, 1.0))
    pq.write_table(table.set_column(table.schema.get_field_index("p"), "p", moved), path)


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # a linked file: writing into it would change its template
    path.write_bytes(content)


def timed(what: str, seeds: int, root: Path) -> dict[str, Any]:
    """Run one of the two in this process, set up as the command line does: seconds and what was seen."""
    collect_garbage_rarely()
    start = time.monotonic()
    wanted, store = recipe(seeds), Store(root)
    planned = study(wanted)
    resolved = time.monotonic()
    if what == "plan":
        from sublim_cli.sweep.forecast import forecast
        from sublim_cli.sweep.launch import missing_steps

        predicted = forecast(planned, missing_steps(planned.steps, store), [], [], workers=2)
        seen = len(predicted.steps) - len(predicted.new)
    else:
        from sublim_cli.report.collect import collect

        seen = collect(planned, store, wanted).provenance.artifacts
    done = time.monotonic()
    return {
        "seconds": done - start,
        "busy": time.process_time(),
        "resolving": resolved - start,
        "collecting": done - resolved,
        "artifacts": seen,
    }


def main() -> int:
    """Fill a store, time both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, help="keep the store here, else it is thrown away")
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed", choices=("plan", "collect"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timed:
        print(json.dumps(timed(options.timed, options.seeds, options.store)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = options.store or Path(scratch) / "store"
        return compare(root, Path(scratch) / "templates", options.seeds, options.rounds)


def compare(root: Path, beside: Path, seeds: int, rounds: int) -> int:
    """Print how long each took; 1 if one is over the limit."""
    wanted = recipe(seeds)
    made = templates(wanted, Store(root.with_name(f"{root.name}-templates")))
    count = sum(1 for _ in fill(study(wanted), Store(root), made))
    print(f"{count} artifacts\n\n| | whole, median | processor | rounds | resolving the cells | collecting |")
    print("| --- | --- | --- | --- | --- | --- |")
    over = False
    for what, timed_as in (("plan", "plan"), ("first collect", "collect"), ("collect", "collect")):
        command = [sys.executable, __file__, "--timed", timed_as, "--store", str(root), "--seeds", str(seeds)]
        measured = []
        for _ in range(rounds):
            if what == "first collect":
                (root / CACHE_FILE).unlink(missing_ok=True)
            measured.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        assert all(run["artifacts"] == count for run in measured), measured
        median, busy, resolving, collecting = (
            statistics.median(run[name] for run in measured)
            for name in ("seconds", "busy", "resolving", "collecting")
        )
        each = ", ".join(f"{run['seconds']:.1f}" for run in measured)
        print(
            f"| {what} | {median:.1f} s | {busy:.1f} s | {each} | {resolving:.1f} s | {collecting:.1f} s |",
            flush=True,
        )
        over |= {"plan": median, "collect": collecting}.get(what, 0.0) > LIMIT
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())
