"""Measure what no record tells: small builds of a study's own stages, in a place that is thrown away.

    with probed(study, steps, device) as found:
        found.costs.of(step)

A worker process like a sweep's builds everything in three sizes. The first pays for the imports; the other
two tell the start of a build from what it takes for every unit of work.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sublim_cli.artifacts.record import artifact_records
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store
from sublim_cli.events import Listener
from sublim_cli.models.reference import weights_bytes
from sublim_cli.pipeline import Cell, Study, chain
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.questions import load_item
from sublim_cli.recipe.schema import Recipe
from sublim_cli.steps.leak import LeakSpec, LeakStep
from sublim_cli.sweep.estimate import Costs
from sublim_cli.sweep.local import LocalLauncher

SIZES = WARM, SMALL, LARGE = 32, 64, 320
"""Rows of the three builds. The last two differ in batches of rows drawn and in optimizer steps."""

HELD_OUT = 16

FULL_PRECISION = 2
"""How many times as large as its files a checkpoint of 16 bits is in fp32, in which a CPU computes."""


@dataclass(frozen=True)
class Probe:
    """What a probe measured, and why it did not measure more: one sentence each."""

    costs: Costs
    failures: tuple[str, ...]


@contextmanager
def probed(
    study: Study, unknown: Sequence[Step], device: str, machine: Mapping[str, object], listener: Listener
) -> Iterator[Probe]:
    """Build small versions of the `unknown` steps of `study` on `device`; they go when the context ends.

    Args:
        machine: what the costs are to hold for, see `models.device.machine`.
    """
    with tempfile.TemporaryDirectory(prefix="sublim-probe-") as scratch:
        store = Store(Path(scratch))
        obstacles: dict[str, None] = {}
        sizes: list[list[Step]] = [[], [], []]
        kinds = {one.kind for one in unknown}
        for cell in _cells(study, {digest(one) for one in unknown}):
            if why := _obstacle(cell, device, store.root):
                obstacles[why] = None
                continue
            for steps, rows in zip(sizes, SIZES, strict=True):
                steps += _small(cell.recipe, rows, kinds)
        warm, *others = sizes
        every = [*warm, *(step for one in others for step in one)]
        failed = LocalLauncher((device,)).launch(every, store, listener) if every else {}
        later = {digest(one) for steps in others for one in in_order(steps)}
        first = {digest(one) for one in in_order(warm)} - later  # the teacher is the same at every size
        records = [one for one in artifact_records(store.root) if one.digest not in first]
        yield Probe(Costs(records, machine, probe=True), tuple(dict.fromkeys([*obstacles, *failed.values()])))


def _cells(study: Study, unknown: Collection[str]) -> list[Cell]:
    """A cell of every method whose training is unknown, of the highest rank; else one of every model."""
    found: dict[tuple[str, str | None], Cell] = {}
    for cell in study.cells:
        train = cell.chain.train
        trains = digest(train) in unknown
        if not trains and not any(
            digest(one) in unknown
            for one in in_order([*cell.chain.evaluations, *filter(None, [cell.chain.teacher])])
        ):
            continue
        key = (train.spec.model.fingerprint, train.spec.train.method if trains else None)
        if key not in found or train.spec.train.rank > found[key].chain.train.spec.train.rank:
            found[key] = cell
    if not found:  # what is unknown belongs to no cell: a comparison of rows
        return list(study.cells[:1])
    trained = {model for model, method in found if method}
    return [cell for (model, method), cell in found.items() if method or model not in trained]


def _small(recipe: Recipe, rows: int, kinds: Collection[str]) -> list[Step]:
    """The stages of `kinds` on so many rows; the large size is asked in a context more."""
    contexts = recipe.eval.model_dump(mode="json")["system_prompts"]
    small = chain(
        vary(
            recipe,
            {
                # A control costs the same, and has no teacher or gates to try.
                "generate.system_prompt": "trait",
                "generate.rows": rows,
                "generate.held_out": min(recipe.generate.held_out, HELD_OUT),
                "train.epochs": 1,
                "eval.system_prompts": contexts[: 2 if rows == LARGE else 1],
            },
        )
    )
    target = load_item(recipe.trait.category, recipe.trait.target)
    found: list[Step] = [small.teacher] if "teacher" in kinds and small.teacher else []
    found += [small.generate] if "generate" in kinds else []
    found += [small.filter] if "filter" in kinds else []
    found += [small.train] if "train" in kinds else []
    if "eval" in kinds:
        found.append(small.eval if "train" in kinds else small.base)
    if "locate" in kinds:
        found += small.locate[-1:]
    if "leak" in kinds:
        found.append(LeakStep(LeakSpec(target=target), (small.filter, small.filter), "probe"))
    return found


def _obstacle(cell: Cell, device: str, scratch: Path) -> str | None:
    """Why a cell is not tried here, although a sweep might succeed."""
    train = cell.chain.train.spec
    model = train.model
    held = weights_bytes(model)
    if held is None:
        return f"the weights of {model.name} are not on this machine, and a plan fetches nothing"
    if device == "cpu" and FULL_PRECISION * held > _memory():
        return (
            f"the weights of {model.name} do not fit into this machine's memory; plan it where it is to run"
        )
    if train.train.method == "full" and len(SIZES) * FULL_PRECISION * held > shutil.disk_usage(scratch).free:
        return f"{scratch.parent} has no room for students of {model.name}; TMPDIR chooses another place"
    return None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
