"""The work of `sweep` and `report`: build a study or read it, write its report, show its tables."""

from pathlib import Path

from sublim_cli.artifacts.store import Store
from sublim_cli.cli.stage_command import results_document
from sublim_cli.console import (
    screen,
    show_json,
    show_line,
    show_shares,
    show_summary,
    show_verdicts,
    show_work,
)
from sublim_cli.errors import CellsFailed, RecipeError
from sublim_cli.events import Warned
from sublim_cli.pipeline import check_buildable
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.wording import document, verdict_row
from sublim_cli.report.collect import Results, collect
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.page.write import FORMATS, write_figure, write_report
from sublim_cli.report.tables.localisation import share_tables
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.launch import Launcher, missing_steps
from sublim_cli.sweep.status import sweep_status

REPORTS = "reports"
"""Directory in the store with one directory for each report, named by the recipe."""


def sweep_and_show(
    recipe: Recipe, out: Path, launcher: Launcher, *, caution: str | None, json: bool, quiet: bool
) -> None:
    """Build a study's missing steps with `launcher`, write its report, show its table.

    Raises:
        CellsFailed: after the report, if a step could not be built.
    """
    planned, store = study(recipe), Store(out)
    check_buildable(missing_steps(planned.steps, store))
    with screen(sweep_status(planned), quiet=quiet) as progress:
        if caution:
            progress(Warned(caution))
        failures = launcher.launch(planned.steps, store, progress)
    show_work(progress)
    _write_and_show(collect(planned, store, recipe, failures), store, json=json)
    if failures:
        raise CellsFailed(
            f"{len(failures)} steps could not be built; the report marks the cells that lack them. "
            "Mend the cause and run the same command again: it builds only what is missing"
        )


def report_and_show(recipe: Recipe, out: Path, *, json: bool, claims: bool = False) -> None:
    """Write the report of the part of a study that is built, and show its table or its verdicts.

    Raises:
        RecipeError: the verdicts are asked for and the recipe states no claim.
    """
    if claims and not recipe.claims:
        raise RecipeError(
            f"claims: {recipe.name} states none; add some, such as `claims: [{{kind: transmission}}]`"
        )
    store = Store(out)
    _write_and_show(collect(study(recipe), store, recipe), store, json=json, only_claims=claims)


def redraw_and_show(recipe: Recipe, out: Path, figure: str, *, json: bool) -> None:
    """Write the files of one figure of a report, from the part of the study that is built.

    Raises:
        RecipeError: the report has no such figure.
    """
    store = Store(out)
    results = collect(study(recipe), store, recipe)
    paths = write_figure(results, store.root / REPORTS / results.name, figure)
    if json:
        show_json({"figure": figure, "files": list(map(str, paths))})
    else:
        show_line(f"figure: {paths[0].with_suffix('')}.{{{','.join(FORMATS)}}}")


def _write_and_show(results: Results, store: Store, *, json: bool, only_claims: bool = False) -> None:
    page = write_report(results, store.root / REPORTS / results.name)
    claims = document(results.name, results.claims)
    if json and only_claims:
        show_json({"report": str(page), **claims})
    elif json:
        show_json({"report": str(page), "claims": claims["claims"], **results_document(results)})
    else:
        if not only_claims:
            show_summary(summarise(results))
            show_shares(share_tables(results.located))
        if results.claims:
            show_verdicts([verdict_row(verdict) for verdict in results.claims])
        show_line(f"report: {page}")
