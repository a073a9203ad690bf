"""What `plan` does after reading its flags: look at the store, measure what no record tells, show it all."""

from collections.abc import Sequence
from pathlib import Path

from sublim_cli.artifacts.record import recorded
from sublim_cli.artifacts.store import Store
from sublim_cli.cli.plan_tables import caption, document, headline, tables
from sublim_cli.console import screen, show_json, show_line, show_table, show_warning
from sublim_cli.events import Notice
from sublim_cli.models.device import device_record, worker_devices
from sublim_cli.pipeline import Study, check
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.power import Power, powers
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.run_rows import planned_runs
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.estimate import Costs
from sublim_cli.sweep.forecast import Forecast, forecast, missing
from sublim_cli.sweep.probe import probed


def plan_and_show(
    recipe: Recipe, out: Path, *, effect: float, probe: bool, workers: int | None, json: bool, quiet: bool
) -> None:
    """Say what a sweep of `recipe` would do to the store at `out`; write nothing there."""
    whole, store = study(recipe), Store(out)
    seen, failures = _foreseen(whole, store, worker_devices(workers), probe=probe, quiet=quiet)
    runs = planned_runs(whole, StoreReader(store, {})) if seen.new else []
    power = powers(recipe.claims, runs, effect) if seen.new else []
    if json:
        show_json(document(recipe, seen, power, effect, failures, out))
    else:
        _show(recipe, seen, power, effect, out)
        for one in failures:
            show_warning(f"not measured: {one}")


def _foreseen(
    whole: Study, store: Store, places: Sequence[str], *, probe: bool, quiet: bool
) -> tuple[Forecast, tuple[str, ...]]:
    """The forecast, and why a probe left something open."""
    lacking = missing(whole, store)
    check(lacking)
    records = recorded(store.root) if lacking else []
    known = Costs(records, device_record()) if lacking else Costs([], {})
    unknown = [one for one in lacking if known.of(one) is None]
    if not (probe and unknown):
        return forecast(whole, lacking, records, [known], len(places)), ()
    with screen(quiet=quiet) as shown:
        shown(
            Notice("measuring what no record tells, in a place that is thrown away; --no-probe leaves it out")
        )
        with probed(whole, unknown, places[0], device_record(), shown) as found:
            return forecast(whole, lacking, records, [known, found.costs], len(places)), found.failures


def _show(recipe: Recipe, seen: Forecast, power: Sequence[Power], effect: float, out: Path) -> None:
    show_line(headline(recipe, seen))
    for one in tables(seen, power, effect):
        show_line("")
        show_table(one.title, one.columns, one.rows, caption=one.caption, numbers=one.numbers)
    show_line("")
    show_line(caption(seen, out))
