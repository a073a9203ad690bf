"""`sublim inspect`: the exact tokens a model reads."""

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sublim_cli.cli import options as o
from sublim_cli.errors import RecipeError

_subject = partial(typer.Option, rich_help_panel="What to look at (one of them; question 0 if none is given)")


def inspect(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    question: Annotated[
        int | None, _subject("--question", min=0, help="A question of the recipe, from 0.")
    ] = None,
    row: Annotated[
        int | None,
        _subject(
            "--row",
            min=0,
            help="A row the student is trained on, from 0; where none are built, its number prompt.",
        ),
    ] = None,
    prompt: Annotated[str | None, _subject("--prompt", help="Any user turn.")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            "-c",
            help=(
                "Look in this context: default, empty, none, trait (the teacher's) or a named one; may be "
                "repeated. Without it: all of the recipe; for a row the training context only."
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
    from sublim_cli.artifacts.store import Store
    from sublim_cli.cli.inspect_tables import show_inspection
    from sublim_cli.console import show_json, show_line
    from sublim_cli.inspection.render import document, write_page
    from sublim_cli.inspection.view import InspectedTurn, inspect_turn, question_turn, row_turn
    from sublim_cli.pipeline import single
    from sublim_cli.sweep.manifest import plan_study

    if sum(flag is not None for flag in (question, row, prompt)) > 1:
        raise typer.BadParameter("give one of --question, --row and --prompt")
    loaded = o.load_recipe(recipe, settings, model, trait, rows)
    if row is not None:
        store = Store(out)
        planned, _ = plan_study(loaded, store, single, reading=True)
        turn = row_turn(loaded, row, store, planned.cells[0].chain.filter)
    elif prompt is not None:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RecipeError("--prompt: holds bytes that are no text; write it in UTF-8") from error
        turn = InspectedTurn("text", None, prompt)
    else:
        turn = question_turn(loaded, question or 0)
    inspection = inspect_turn(loaded, turn, context or ())
    words = ["sublim", "filter", "--recipe", recipe]
    for flag, value in (("--model", model), ("--trait", trait), ("--rows", rows)):
        words += [] if value is None else [flag, str(value)]
    for setting in settings or []:
        words += ["--set", setting]
    command = shlex.join(words if out == o.STORE else [*words, "--out", str(out)])
    if html is not None:
        write_page(inspection, html, command)
    if json:
        page = {} if html is None else {"page": str(html)}
        show_json({**document(inspection, command), **page})
        return
    show_inspection(inspection, command, tokens=html is None)
    if html is not None:
        show_line(f"page: {html}")
