"""`sublim filter`: rows of a recipe's teacher, or of a file of the user's own."""

from pathlib import Path
from typing import Annotated

import typer

from sublim_cli.cli import options as o

FILE = "A file of your own"


def filter_rows(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="A recipe file or a shipped one's name; for a file of yours, only its rules count.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="JSONL to filter.", rich_help_panel=FILE)
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Where kept rows go; rejected ones go to NAME.rejected.jsonl beside it.",
            rich_help_panel=FILE,
        ),
    ] = None,
    prompt_key: Annotated[str, typer.Option(help="Key of the prompt.", rich_help_panel=FILE)] = "prompt",
    completion_key: Annotated[
        str, typer.Option(help="Key of the completion.", rich_help_panel=FILE)
    ] = "completion",
    strip: Annotated[
        bool, typer.Option("--strip", help="Strip white space first.", rich_help_panel=FILE)
    ] = False,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Keep the rows that are nothing but numbers, and say why the others are not.

    With [bold]--recipe[/]: the teacher's rows; missing ones are drawn first.
    With [bold]--input[/] and [bold]--output[/]: a file of your own, one JSON object a line.
    """
    from sublim_cli.cli.stage_command import filter_and_show, run_and_show

    changes = {"model": model, "trait__target": trait, "generate__rows": rows}
    if source is not None and target is not None:
        rules = o.load_recipe(recipe or "cats", settings).filter.rules
        keys = (prompt_key, completion_key)
        filter_and_show(source, target, rules, keys, strip=strip, json=json, quiet=quiet)
    elif recipe is not None and source is None and target is None:
        loaded = o.load_recipe(recipe, settings, **changes)
        run_and_show(loaded, "filter", out, json=json, quiet=quiet)
    else:
        raise typer.BadParameter("give --recipe, or both --input and --output")
