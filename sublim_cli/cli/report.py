"""`sublim report`: the report of what a store holds of a sweep."""

from typing import Annotated

import typer

from sublim_cli.cli import options as o


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
        typer.Option(
            "--figure", help="Write this one figure alone, by the name of its files.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the report of a sweep from what is built, without building anything.

    Cells that are missing are named. Give the flags the sweep was run
    with. Its claims are judged from the same runs: `report.html` begins
    with the verdicts, and `claims.json` beside it holds them as data.
    """
    from sublim_cli.cli.study_command import redraw_and_show, report_and_show

    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    if figure is not None:
        redraw_and_show(loaded, out, figure, json=json)
    else:
        report_and_show(loaded, out, json=json, claims=claims)
