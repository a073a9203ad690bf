"""From a study and its store to tidy results. Reads artifacts, never a model, and notes what it read.

results = collect(study(recipe), Store(Path("runs")), recipe)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.numbers.surface import Divergence, Overlap
from sublim_cli.pipeline import Cell, Study
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.pairing import Answers
from sublim_cli.report.claims.verdict import Verdict
from sublim_cli.report.rates.panels import Panel, fixed_rate, matched_curves
from sublim_cli.report.tables.audits import AuditRow, audit_rows
from sublim_cli.report.tables.conditions import Run, records
from sublim_cli.report.tables.localisation import located_table
from sublim_cli.report.tables.provenance import Provenance, read_provenance
from sublim_cli.report.tables.reader import StoreReader, TrainingRecord
from sublim_cli.report.tables.runs import items_table, runs_table
from sublim_cli.report.tables.varied_keys import varied_keys
from sublim_cli.steps.files import LEAK, REASONS, SURFACE, TEACHER, read_json
from sublim_cli.steps.leak import LeakStep

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
    duplicates: int
    """Of the rows students learn from, how many repeat an earlier one."""
    letters: int
    """Of the same rows, how many hold a letter."""

    @property
    def rate(self) -> float:
        """The share of judged rows kept."""
        return self.kept / self.judged if self.judged else 1.0


@dataclass(frozen=True)
class TeacherRow:
    """What a teacher answers under its own system prompt, as means over the questions."""

    target: str
    context: str
    """Its system prompt."""
    p_target: float
    p_any: float
    first: str
    """The item it names most."""
    p_first: float


@dataclass(frozen=True)
class LeakRow:
    """What of the trait shows in one data set, by itself and beside its control's."""

    title: str
    digest: str
    auc: float
    """Of a plain classifier that tells the two apart; 0.5 is chance."""
    low: float
    high: float
    rows: int
    """Of both sides, that the classifier saw."""
    named: int
    """Rows students learn from that name the target."""
    named_rejected: int
    shown: tuple[str, ...]
    digits: Divergence | None
    """None where a side has nothing to compare."""
    pairs: Divergence | None
    overlap: Overlap


@dataclass(frozen=True)
class Missing:
    """Something the study asks for that the store does not hold."""

    label: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything the report says, before it is put into words.

    For `runs` and `items` see `report.runs`, for `located` `report.localisation`.
    """

    name: str
    runs: pd.DataFrame
    items: pd.DataFrame
    located: pd.DataFrame
    claims: tuple[Verdict, ...]
    matched: tuple[Panel, ...]
    filters: tuple[FilterRow, ...]
    leaks: tuple[LeakRow, ...]
    teachers: tuple[TeacherRow, ...]
    audits: tuple[AuditRow, ...]
    missing: tuple[Missing, ...]
    provenance: Provenance


def collect(study: Study, store: Store, recipe: Recipe, failures: Mapping[str, str] = NO_FAILURES) -> Results:
    """Read what `store` holds of `study`; what it lacks stays visible as missing.

    Args:
        recipe: the one the study was planned from, for the provenance.
        failures: why steps could not be built, by digest, as a launcher returns them.
    """
    shelf = StoreReader(store, failures)
    trainings, settings = _trainings(study, shelf), varied_keys(study.cells)
    runs = runs_table(study, settings, shelf, trainings)
    rows = records(runs)
    located = located_table(study, settings, shelf)
    results = Results(
        name=study.name,
        runs=runs,
        items=items_table(study, shelf),
        located=located,
        claims=tuple(evaluate(recipe.claims, rows, _answers(shelf), records(located))),
        matched=tuple(matched_curves(rows, fixed_rate(recipe))),
        filters=tuple(_filters(study, shelf)),
        leaks=tuple(_leaks(study, shelf)),
        teachers=tuple(_teachers(study, shelf)),
        audits=tuple(audit_rows(runs, trainings)),
        missing=tuple(_missing(study, shelf)),
        provenance=read_provenance(study, shelf, recipe),
    )
    shelf.notes.save()
    return results


def _answers(shelf: StoreReader) -> Answers:
    def of(run: Run) -> tuple[float, ...]:
        contexts = shelf.read.get((run["eval_digest"], run["target"]), {})
        return contexts[run["eval_context"]].answers if run["eval_context"] in contexts else ()

    return of


def _trainings(study: Study, shelf: StoreReader) -> dict[str, TrainingRecord]:
    steps = {digest(one.chain.train): one.chain.train for one in study.cells}
    found = {name: shelf.training(step) for name, step in steps.items()}
    return {name: one for name, one in found.items() if one is not None}


def _filters(study: Study, shelf: StoreReader) -> Iterator[FilterRow]:
    first: dict[str, Cell] = {}  # a data set bears the name of the cell that first uses it
    for cell in study.cells:
        first.setdefault(digest(cell.chain.filter), cell)
    for name, cell in first.items():
        if found := shelf.find(cell.chain.filter):
            counts, seen = read_json(found.path / REASONS), read_json(found.path / SURFACE)
            yield FilterRow(
                cell.chain.filter.title,
                cell.role,
                name,
                **counts,
                duplicates=seen["duplicates"],
                letters=seen["letters"],
            )


def _leaks(study: Study, shelf: StoreReader) -> Iterator[LeakRow]:
    for step in study.leaks:
        if found := shelf.find(step):
            yield _leak(step, read_json(found.path / LEAK))


def _leak(step: LeakStep, found: Mapping[str, Any]) -> LeakRow:
    whole = {
        "shown": tuple(found["shown"]),
        "digits": _divergence(found["digits"]),
        "pairs": _divergence(found["pairs"]),
        "overlap": Overlap(**found["overlap"]),
    }
    return LeakRow(step.title, digest(step), **{**found, **whole})


def _divergence(found: Mapping[str, float] | None) -> Divergence | None:
    return None if found is None else Divergence(**found)


def _teachers(study: Study, shelf: StoreReader) -> Iterator[TeacherRow]:
    for step in study.teachers:
        if found := shelf.find(step):
            section = step.spec
            said = read_json(found.path / TEACHER)
            yield TeacherRow(section.target, section.context.text or section.context.name, **said)


def _missing(study: Study, shelf: StoreReader) -> Iterator[Missing]:
    once = {digest(step): step for step in study.steps}
    for step in once.values():
        if reason := shelf.lacks(step):
            yield Missing(step.label, reason)
