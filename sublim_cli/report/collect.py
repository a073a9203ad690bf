"""From a study and its store to everything the report says. Reads artifacts, never a model.

    results = collect(study(recipe), Store(Path("runs")), recipe)

Values flow one way: the store's artifacts become tables, the tables learning rates and verdicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from sublim_cli.artifacts.claims_lock import claims_statement, read_locks
from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ArtifactError
from sublim_cli.pipeline import Study
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.locking import LockStatus, lock_status
from sublim_cli.report.claims.sensitivity import Sensitivity, sensitivities
from sublim_cli.report.claims.verdict import RULES_VERSION, Verdict
from sublim_cli.report.rates.panels import Panel, fixed_rate, matched_curves
from sublim_cli.report.tables.audits import AuditRow, audit_rows
from sublim_cli.report.tables.data_sets import (
    FilterRow,
    LeakRow,
    TeacherRow,
    filter_rows,
    leak_rows,
    teacher_rows,
)
from sublim_cli.report.tables.frames import items_table
from sublim_cli.report.tables.localisation import LocatedRun, located_runs
from sublim_cli.report.tables.provenance import Provenance, read_provenance
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.runs import Run, study_runs
from sublim_cli.report.tables.varied_keys import varied_keys

NO_FAILURES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Missing:
    """Something the study asks for that the store does not hold."""

    label: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything the report says, before it is put into words. `items`: see `tables.frames.ITEMS`."""

    name: str
    runs: tuple[Run, ...]
    items: pd.DataFrame
    located: tuple[LocatedRun, ...]
    claims: tuple[Verdict, ...]
    lock: LockStatus | None
    """None if the study has neither claims nor a lock."""
    matched: tuple[Panel, ...]
    filters: tuple[FilterRow, ...]
    leaks: tuple[LeakRow, ...]
    teachers: tuple[TeacherRow, ...]
    audits: tuple[AuditRow, ...]
    missing: tuple[Missing, ...]
    provenance: Provenance

    @cached_property
    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """How each verdict of `claims` depends on its margin and on any one seed."""
        return tuple(sensitivities(self.claims, self.runs, self.located))


def collect(study: Study, store: Store, recipe: Recipe, failures: Mapping[str, str] = NO_FAILURES) -> Results:
    """Read what `store` holds of `study`, planned from `recipe`; what it lacks is listed as missing.

    `failures` says by digest why steps could not be built, as a launcher returns them.
    """
    reader = StoreReader(store, failures)
    keys = varied_keys(study.cells)
    train_steps = {digest(cell.chain.train): cell.chain.train for cell in study.cells}
    trainings = {name: record for name, step in train_steps.items() if (record := reader.training(step))}
    runs = study_runs(study, keys, reader, trainings)
    located = located_runs(study, keys, reader)
    steps = {digest(step): step for step in study.steps}
    results = Results(
        name=study.name,
        runs=tuple(runs),
        items=items_table(study, reader),
        located=tuple(located),
        claims=tuple(evaluate(recipe.claims, runs, located)),
        lock=_lock_status(study, store, recipe, reader),
        matched=tuple(matched_curves(runs, fixed_rate(recipe))),
        filters=tuple(filter_rows(study, reader)),
        leaks=tuple(leak_rows(study, reader)),
        teachers=tuple(teacher_rows(study, reader)),
        audits=tuple(audit_rows(runs, trainings, reader.mean_cosine)),
        missing=tuple(Missing(step.label, why) for step in steps.values() if (why := reader.missing(step))),
        provenance=read_provenance(study, reader, recipe),
    )
    reader.cache.save()
    return results


def _lock_status(study: Study, store: Store, recipe: Recipe, reader: StoreReader) -> LockStatus | None:
    fault = ""
    try:
        locks = read_locks(study.name, store)
    except ArtifactError as error:
        locks, fault = [], str(error)
    if not (locks or fault or recipe.claims):
        return None
    built = [artifact for step in study.evaluations if (artifact := reader.find(step))]
    finished = [reader.record(artifact).get("finished") for artifact in built]
    now = claims_statement(recipe, study.seeds, RULES_VERSION)
    return lock_status(locks, now, finished, len(study.evaluations), fault)
