"""The work of `plan`: read the store, measure what has no record, show the forecast."""

from collections.abc import Sequence
from pathlib import Path

from sublim_cli.artifacts.record import artifact_records
from sublim_cli.artifacts.store import Store
from sublim_cli.cli.plan_tables import caption, document, headline, tables
from sublim_cli.console import screen, show_json, show_line, show_table, show_warning
from sublim_cli.events import Notice
from sublim_cli.models.device import device_record, worker_devices
from sublim_cli.pipeline import Study, check_buildable
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.power import powers
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.runs import planned_runs
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.estimate import Costs
from sublim_cli.sweep.forecast import Forecast, forecast
from sublim_cli.sweep.launch import missing_steps
from sublim_cli.sweep.probe import probed


def plan_and_show(
    recipe: Recipe, out: Path, *, effect: float, probe: bool, workers: int | None, json: bool, quiet: bool
) -> None:
    """Show what a sweep of `recipe` would do to the store at `out`; nothing is written there."""
    planned, store = study(recipe), Store(out)
    seen, failures = _forecast(planned, store, worker_devices(workers), probe=probe, quiet=quiet)
    runs = planned_runs(planned, StoreReader(store, {})) if seen.new else []
    power = powers(recipe.claims, runs, effect) if seen.new else []
    if json:
        show_json(document(recipe, seen, power, effect, failures, out))
        return
    show_line(headline(recipe, seen))
    for table in tables(seen, power, effect):
        show_line("")
        show_table(table.title, table.columns, table.rows, caption=table.caption, numbers=table.numbers)
    show_line("")
    show_line(caption(seen, out))
    for failure in failures:
        show_warning(f"not measured: {failure}")


def _forecast(
    planned: Study, store: Store, workers: Sequence[str], *, probe: bool, quiet: bool
) -> tuple[Forecast, tuple[str, ...]]:
    """The forecast, and for each failed probe the reason.

    Args:
        workers: the device of each worker.
    """
    new = missing_steps(planned.steps, store)
    check_buildable(new)
    records = artifact_records(store.root) if new else []
    costs = Costs(records, device_record()) if new else Costs([], {})
    unknown = [step for step in new if costs.estimate(step) is None]
    if not (probe and unknown):
        return forecast(planned, new, records, [costs], len(workers)), ()
    with screen(quiet=quiet) as progress:
        progress(Notice("measuring steps without a record in a temporary store; --no-probe leaves it out"))
        with probed(planned, unknown, workers[0], device_record(), progress) as measured:
            estimate = forecast(planned, new, records, [costs, measured.costs], len(workers))
            return estimate, measured.failures
