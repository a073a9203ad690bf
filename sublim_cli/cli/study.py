"""What `sweep` and `report` do after reading their flags."""

from pathlib import Path

from sublim_cli.artifacts.store import Store
from sublim_cli.cli.show import localisation, preferences
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
from sublim_cli.pipeline import check
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.wording import document, verdict_row
from sublim_cli.report.collect import Results, collect
from sublim_cli.report.page.figures.files import FORMATS
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.page.write import write_figure, write_report
from sublim_cli.report.tables.localisation import share_tables
from sublim_cli.sweep.board import board
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.forecast import missing
from sublim_cli.sweep.launch import Launcher

REPORTS = "reports"
"""Under the store: a directory for each sweep's report, by the recipe's name."""


def sweep_and_show(
    recipe: Recipe, out: Path, launcher: Launcher, *, caution: str | None, json: bool, quiet: bool
) -> None:
    """Build a study's missing steps with `launcher`, write its report, show its table.

    Raises:
        CellsFailed: after the report, if a step could not be built.
    """
    planned, store = study(recipe), Store(out)
    check(missing(planned, store))
    with screen(board(planned), quiet=quiet) as shown:
        if caution:
            shown(Warned(caution))
        failed = launcher.launch(planned.steps, store, shown)
    show_work(shown)
    _show(collect(planned, store, recipe, failed), store, json=json)
    if failed:
        raise CellsFailed(
            f"{len(failed)} steps could not be built; the report marks the cells that lack them. "
            "Mend the cause and run the same command again: it does only what is missing"
        )


def report_and_show(recipe: Recipe, out: Path, *, json: bool, claims: bool = False) -> None:
    """Write the report of whatever part of a study is built, and show its table or its verdicts.

    Raises:
        RecipeError: the verdicts are asked for and the recipe states no claim.
    """
    if claims and not recipe.claims:
        raise RecipeError(
            f"claims: {recipe.name} states none; add some, such as `claims: [{{kind: transmission}}]`"
        )
    store = Store(out)
    results = collect(study(recipe), store, recipe)
    if claims:
        _show_claims(results, store, json=json)
    else:
        _show(results, store, json=json)


def redraw_and_show(recipe: Recipe, out: Path, figure: str, *, json: bool) -> None:
    """Write the files of one figure of a report, from whatever part of the study is built.

    Raises:
        RecipeError: the report has no such figure.
    """
    store = Store(out)
    results = collect(study(recipe), store, recipe)
    paths = write_figure(results, store.root / REPORTS / results.name, figure)
    if json:
        show_json({"figure": figure, "files": [str(one) for one in paths]})
    else:
        show_line(f"figure: {paths[0].with_suffix('')}.{{{','.join(FORMATS)}}}")


def _show_claims(results: Results, store: Store, *, json: bool) -> None:
    page = write_report(results, store.root / REPORTS / results.name)
    if json:
        show_json({"report": str(page), **document(results.name, results.claims)})
    else:
        show_verdicts([verdict_row(one) for one in results.claims])
        show_line(f"report: {page}")


def _show(results: Results, store: Store, *, json: bool) -> None:
    page = write_report(results, store.root / REPORTS / results.name)
    if json:
        judged = document(results.name, results.claims)["claims"]
        show_json(
            {
                "report": str(page),
                "claims": judged,
                "preferences": preferences(results),
                "localisation": localisation(results),
            }
        )
    else:
        show_summary(summarise(results))
        show_shares(share_tables(results.located))
        if results.claims:
            show_verdicts([verdict_row(one) for one in results.claims])
        show_line(f"report: {page}")
