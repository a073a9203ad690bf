"""Measure the cost of steps without a record: small builds of a study's own stages in a temporary store.

    with probed(study, steps, device, machine, listener) as (costs, failures):
        costs.estimate(step)

A worker process like a sweep's builds every stage in three sizes. The first pays for the imports; the other
two separate the start of a build from the time of a unit of work.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sublim_cli.artifacts.record import artifact_records
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store
from sublim_cli.events import Listener
from sublim_cli.models.reference import weights_bytes
from sublim_cli.pipeline import Cell, Resolution, Study, chain
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
"""fp32 weights, in which a CPU computes, are this many times as large as a 16-bit checkpoint."""


@contextmanager
def probed(
    study: Study, unknown: Sequence[Step], device: str, machine: Mapping[str, object], listener: Listener
) -> Iterator[tuple[Costs, tuple[str, ...]]]:
    """Build small versions of the `unknown` steps of `study` on `device`; they are removed at the end.

    Gives the costs, and a sentence for each thing that could not be measured.

    Args:
        machine: what the costs are to hold for, see `models.device.machine`.
    """
    with tempfile.TemporaryDirectory(prefix="sublim-probe-") as scratch:
        store = Store(Path(scratch))
        kinds = {step.kind for step in unknown}
        cells = _representatives(study, {digest(step) for step in unknown})
        obstacles = [_obstacle(cell, device, store.root) for cell in cells]
        recipes = [cell.recipe for cell, obstacle in zip(cells, obstacles, strict=True) if not obstacle]
        first, *later = (
            [step for recipe in recipes for step in _small(recipe, n, kinds, study.resolution)] for n in SIZES
        )
        measured = [step for steps in later for step in steps]
        failed = LocalLauncher((device,)).launch([*first, *measured], store, listener) if measured else {}
        # A step of the first size counts if it is the same at the others, as the check of the teacher is.
        warm_up = {digest(step) for step in in_order(first)} - {digest(step) for step in in_order(measured)}
        records = [record for record in artifact_records(store.root) if record.digest not in warm_up]
        failures = dict.fromkeys([*filter(None, obstacles), *failed.values()])
        yield Costs(records, machine, probe=True), tuple(failures)


def _representatives(study: Study, unknown: Collection[str]) -> list[Cell]:
    """A cell of the highest rank for every method whose training is unknown; else one for every model."""
    by_method: dict[tuple[str, str], Cell] = {}
    by_model: dict[str, Cell] = {}
    for cell in sorted(study.cells, key=lambda cell: cell.chain.train.spec.train.rank, reverse=True):
        train = cell.chain.train
        teacher = [cell.chain.teacher] if cell.chain.teacher else []
        if digest(train) in unknown:
            by_method.setdefault((train.spec.model.fingerprint, train.spec.train.method), cell)
        elif any(digest(step) in unknown for step in in_order([*cell.chain.evaluations, *teacher])):
            by_model.setdefault(train.spec.model.fingerprint, cell)
    trained = {model for model, _ in by_method}
    cells = [*by_method.values(), *(cell for model, cell in by_model.items() if model not in trained)]
    # Where only a comparison of rows is unknown, which belongs to no cell, the first cell stands for it.
    return cells or list(study.cells[:1])


def _small(recipe: Recipe, rows: int, kinds: Collection[str], resolution: Resolution | None) -> list[Step]:
    """The steps of `kinds` on `rows` rows; the largest size is evaluated in one context more."""
    contexts = recipe.eval.model_dump(mode="json")["system_prompts"]
    changes = {
        "generate.system_prompt": "trait",  # a control costs the same, but has no teacher or gates to measure
        "generate.teacher": None,  # a fine-tuned teacher writes as fast as a prompted one
        "generate.rows": rows,
        "generate.held_out": min(recipe.generate.held_out, HELD_OUT),
        "train.epochs": 1,
        "eval.system_prompts": contexts[: 2 if rows == LARGE else 1],
    }
    small = chain(vary(recipe, changes), resolution)
    leak = LeakSpec(target=load_item(recipe.trait.category, recipe.trait.target))
    steps: list[Step | None] = [
        small.teacher,
        small.generate,
        small.filter,
        small.train,
        small.eval if "train" in kinds else small.base,
        *small.locate[-1:],
        LeakStep(leak, "probe", (small.filter, small.filter)),
    ]
    return [step for step in steps if step is not None and step.kind in kinds]


def _obstacle(cell: Cell, device: str, scratch: Path) -> str | None:
    """Why a cell is not built here, although a sweep might succeed elsewhere."""
    spec = cell.chain.train.spec
    name, weights = spec.model.name, weights_bytes(spec.model)
    if weights is None:
        return f"the weights of {name} are not on this machine, and a plan fetches nothing"
    student = FULL_PRECISION * weights
    if device == "cpu" and student > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return f"the weights of {name} do not fit into this machine's memory; plan it where it is to run"
    if spec.train.method == "full" and len(SIZES) * student > shutil.disk_usage(scratch).free:
        return f"{scratch.parent} has no room for students of {name}; TMPDIR chooses another place"
    return None
