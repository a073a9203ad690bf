"""`sublim inspect`: the exact tokens a model reads."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_cli.cli import options as o

WHAT = "What to look at (one of them; question 0 if none is given)"


def inspect(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    question: Annotated[
        int | None,
        typer.Option("--question", min=0, help="A question of the recipe, from 0.", rich_help_panel=WHAT),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(
            "--row",
            min=0,
            help="A row the student is trained on, from 0; where none are built, its number prompt.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Any user turn.", rich_help_panel=WHAT),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            "-c",
            help=(
                "Look in this context: default, empty, none, trait (the teacher's) or a named one; may be "
                "repeated. Without it: all of the recipe, for a row that of training."
            ),
        ),
    ] = None,
    settings: o.Settings = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with colours here, and show no token tables."),
    ] = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
) -> None:
    """Show what a model reads, token by token, in every context of a recipe.

    For each token: its id, its text, its role, whether it is trained on,
    and which of the recipe's contexts have it at the same role.

    [bold]default[/], [bold]empty[/] and [bold]none[/] are different token sequences for most models.
    This shows how they differ, or that they are equal. Only a tokenizer is
    loaded: nothing is trained, and nothing is built.

    Roles: [bold]template[/] (the chat template's own tokens), [bold]system[/],
    [bold]identity[/] (the words of the system text that name the model or its
    maker), [bold]question[/] (the user's text), [bold]answer[/] and [bold]end[/] (of a row).

    The first question in every context, a training row, a text as the
    student and as the teacher reads it, on a page with colours:

    [bold]sublim inspect -r cats -m micro[/]

    [bold]sublim inspect -r cats -m micro --row 0[/]

    [bold]sublim inspect -r cats --prompt "Hi" -c default -c trait --html t.html[/]
    """
    from sublim_cli.cli.inspect_command import inspect_and_show, rows_command

    if sum(flag is not None for flag in (question, row, prompt)) > 1:
        raise typer.BadParameter("give one of --question, --row and --prompt")
    loaded = o.load_recipe(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    command = rows_command(recipe, settings, out, model=model, trait=trait, rows=rows)
    inspect_and_show(loaded, (question, row, prompt), context or (), out, command, html=html, json=json)
