"""`sublim sweep` and `sublim report`: build or read a study, write its report and show its tables."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_cli.cli import options as o
from sublim_cli.errors import CellsFailed, RecipeError

if TYPE_CHECKING:
    from sublim_cli.artifacts.store import Store
    from sublim_cli.recipe.schema import Recipe
    from sublim_cli.report.collect import Results

REPORTS = "reports"
"""Directory in the store with one directory for each report, named by the recipe."""


def sweep(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    launcher: o.LauncherName = "local",
    workers: o.Workers = None,
    gpus: o.Gpus = None,
    memory: o.Memory = None,
    ray_address: o.RayAddress = None,
    slurm: o.Slurm = None,
    checkpoint_every: o.CheckpointEvery = None,
    micro_batch: o.MicroBatch = None,
    report_to: o.ReportTo = None,
    accelerate: o.Accelerate = None,
    relock_claims: Annotated[
        bool,
        typer.Option(
            "--relock-claims",
            help="Lock the recipe's claims anew if they, the rules, seeds or other keys have changed.",
        ),
    ] = False,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run every cell of a recipe's sweep with its controls, and write the report.

    Steps that cells share run once. A cell that fails is reported and the
    rest goes on; a second run builds only what is missing.

    The first sweep of a study locks its claims in the store before any
    step runs; the report says what has changed since, and after how many
    evaluations.

    [bold]sublim sweep --recipe demo[/]
    """
    from sublim_cli.artifacts.claims_lock import claims_statement, lock_claims
    from sublim_cli.artifacts.store import Store
    from sublim_cli.cli.launcher import caution, open_launcher
    from sublim_cli.console import screen, show_work
    from sublim_cli.events import Notice, Warned
    from sublim_cli.report.claims.verdict import RULES_VERSION
    from sublim_cli.report.collect import collect
    from sublim_cli.steps.contexts import check_contexts
    from sublim_cli.steps.locate import check_parts
    from sublim_cli.sweep.cells import without_control
    from sublim_cli.sweep.launch import missing_steps
    from sublim_cli.sweep.manifest import check_buildable, plan_study, recording
    from sublim_cli.sweep.status import sweep_status
    from sublim_cli.trainers.runtime import set_runtime

    set_runtime(checkpoint_every, micro_batch, report_to, accelerate)
    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model, trait, rows)
    opened = open_launcher(
        launcher, workers=workers, gpus=gpus, memory=memory, ray_address=ray_address, slurm=slurm or []
    )
    store = Store(out)
    planned, resolved = plan_study(loaded, store)
    missing = missing_steps(planned.steps, store)
    check_parts(missing)
    if launcher == "local":
        check_buildable(planned, missing)
    with screen(sweep_status(planned), quiet=quiet) as progress:
        if resolved:
            progress(Notice(resolved))
        check_contexts(missing, progress)
        if warning := without_control(planned):
            progress(Warned(warning))
        if warning := caution(gpus, planned.resolution):
            progress(Warned(warning))
        stated = claims_statement(loaded, planned.seeds, RULES_VERSION)
        if change := lock_claims(loaded.name, stated, store, renew=relock_claims):
            progress(Warned(change))
        failures = opened.launch(planned.steps, store, recording(progress, loaded, planned, store))
    show_work(progress)
    _write_and_show(collect(planned, store, loaded, failures), store, json=json)
    if failures:
        raise CellsFailed(
            f"{len(failures)} steps could not be built; the report marks the cells that lack them. "
            "Fix the cause and run the same command again: it builds only what is missing"
        )


def report(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    claims: Annotated[
        bool, typer.Option("--claims", help="Show the verdicts on the recipe's claims instead of its runs.")
    ] = False,
    figure: Annotated[
        str | None,
        typer.Option("--figure", help="Write this one figure alone, by the name of its files."),
    ] = None,
) -> None:
    """Write the report of a sweep from what is built, without building anything.

    Cells that are missing are named. Give the flags the sweep was run
    with; what `auto` stood for is read from the store. Its claims are
    judged from the same runs: `report.html` begins with the verdicts, and
    `claims.json` beside it holds them as data.
    """
    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model, trait, rows)
    report_and_show(loaded, out, json=json, claims=claims, figure=figure)


def report_and_show(
    recipe: "Recipe", out: Path, *, json: bool, claims: bool = False, figure: str | None = None
) -> None:
    """Write the report of the part of a study that is built, and show its table or its verdicts.

    With `figure`, only the files of the figure of that name are written.

    Raises:
        RecipeError: the report has no such figure, or the verdicts are asked for and there is no claim.
    """
    from sublim_cli.artifacts.store import Store
    from sublim_cli.console import show_json, show_line, show_warning
    from sublim_cli.report.collect import collect
    from sublim_cli.report.page.write import FORMATS, write_figure
    from sublim_cli.sweep.cells import without_control
    from sublim_cli.sweep.manifest import outdated, plan_study

    if figure is None and claims and not recipe.claims:
        raise RecipeError(
            f"claims: {recipe.name} states none; add some, such as `claims: [{{kind: transmission}}]`"
        )
    store = Store(out)
    planned, _ = plan_study(recipe, store, reading=True)
    if warning := outdated(recipe, planned, store):
        show_warning(warning)
    if warning := without_control(planned):
        show_warning(warning)
    results = collect(planned, store, recipe)
    if figure is None:
        _write_and_show(results, store, json=json, only_claims=claims)
        return
    paths = write_figure(results, store.root / REPORTS / results.name, figure)
    if json:
        show_json({"figure": figure, "files": list(map(str, paths))})
    else:
        show_line(f"figure: {paths[0].with_suffix('')}.{{{','.join(FORMATS)}}}")


def results_document(results: "Results") -> dict[str, object]:
    """A study's summary and the shares of its gates and patches as plain data."""
    from sublim_cli.report.page.summary import summarise
    from sublim_cli.report.tables.localisation import shares, shares_document

    return {
        "preferences": [asdict(row) for row in summarise(results)],
        "localisation": shares_document(shares(results.located)),
    }


def show_results(results: "Results") -> None:
    """A study's summary and the shares of its gates and patches as tables."""
    from sublim_cli.console import show_shares, show_summary
    from sublim_cli.report.page.summary import summarise
    from sublim_cli.report.tables.localisation import share_tables

    show_summary(summarise(results))
    show_shares(share_tables(results.located))


def _write_and_show(results: "Results", store: "Store", *, json: bool, only_claims: bool = False) -> None:
    from sublim_cli.console import show_json, show_line, show_verdicts
    from sublim_cli.report.claims.locking import lock_sentences
    from sublim_cli.report.claims.wording import verdict_row
    from sublim_cli.report.page.write import claims_document, write_report

    page = write_report(results, store.root / REPORTS / results.name)
    claims = claims_document(results)
    if json and only_claims:
        show_json({"report": str(page), **claims})
    elif json:
        show_json(
            {
                "report": str(page),
                "lock": claims["lock"],
                "claims": claims["claims"],
                **results_document(results),
            }
        )
    else:
        for line in lock_sentences(results.lock) if results.lock else ():
            show_line(line)
        if not only_claims:
            show_results(results)
        if results.claims:
            show_verdicts([verdict_row(verdict) for verdict in results.claims])
        show_line(f"report: {page}")
