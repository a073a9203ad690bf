"""From a study and its store to tidy results. Reads artifacts, never a model.

results = collect(study(recipe), Store(Path("runs")), recipe)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.pipeline import Cell, Study
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.audits import AuditRow, audit_rows
from sublim_cli.report.claims import Verdict, evaluate
from sublim_cli.report.conditions import records
from sublim_cli.report.provenance import Provenance, trace
from sublim_cli.report.readings import Shelf, Training
from sublim_cli.report.runs import runs_table
from sublim_cli.steps.files import LEAK, REASONS, read_json

NO_FAILURES: Mapping[str, str] = {}


@dataclass(frozen=True)
class FilterRow:
    """What the filter made of one data set."""

    title: str
    role: str
    digest: str
    judged: int
    kept: int
    reasons: Mapping[str, int]

    @property
    def rate(self) -> float:
        """The share of judged rows kept."""
        return self.kept / self.judged if self.judged else 1.0


@dataclass(frozen=True)
class LeakRow:
    """How well a plain classifier tells one data set from its control's; 0.5 is chance."""

    title: str
    digest: str
    auc: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Missing:
    """Something the study asks for that the store does not hold."""

    label: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything the report says, before it is put into words. `runs` is the table of `report.runs`."""

    name: str
    runs: pd.DataFrame
    claims: tuple[Verdict, ...]
    filters: tuple[FilterRow, ...]
    leaks: tuple[LeakRow, ...]
    audits: tuple[AuditRow, ...]
    missing: tuple[Missing, ...]
    provenance: Provenance


def collect(study: Study, store: Store, recipe: Recipe, failures: Mapping[str, str] = NO_FAILURES) -> Results:
    """Read what `store` holds of `study`; what it lacks stays visible as missing.

    Args:
        recipe: the one the study was planned from, for the provenance.
        failures: why steps could not be built, by digest, as a launcher returns them.
    """
    shelf = Shelf(store, failures)
    trainings = _trainings(study, shelf)
    runs = runs_table(study, shelf, trainings)
    return Results(
        name=study.name,
        runs=runs,
        claims=tuple(evaluate(recipe.claims, records(runs))),
        filters=tuple(_filters(study, shelf)),
        leaks=tuple(_leaks(study, shelf)),
        audits=tuple(audit_rows(runs, trainings)),
        missing=tuple(_missing(study, shelf)),
        provenance=trace(study, shelf, recipe),
    )


def _trainings(study: Study, shelf: Shelf) -> dict[str, Training]:
    steps = {digest(one.chain.train): one.chain.train for one in study.cells}
    found = {name: shelf.training(step) for name, step in steps.items()}
    return {name: one for name, one in found.items() if one is not None}


def _filters(study: Study, shelf: Shelf) -> Iterator[FilterRow]:
    first: dict[str, Cell] = {}  # a data set bears the name of the cell that first uses it
    for cell in study.cells:
        first.setdefault(digest(cell.chain.filter), cell)
    for name, cell in first.items():
        if found := shelf.find(cell.chain.filter):
            counts = read_json(found.path / REASONS)
            yield FilterRow(cell.chain.filter.title, cell.role, name, **counts)


def _leaks(study: Study, shelf: Shelf) -> Iterator[LeakRow]:
    for step in study.leaks:
        if found := shelf.find(step):
            yield LeakRow(step.title, digest(step), **read_json(found.path / LEAK))


def _missing(study: Study, shelf: Shelf) -> Iterator[Missing]:
    once = {digest(step): step for step in study.steps}
    for step in once.values():
        if reason := shelf.lacks(step):
            yield Missing(step.label, reason)
