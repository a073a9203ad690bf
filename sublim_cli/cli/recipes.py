"""`sublim recipes`: the experiments that ship with sublim."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from sublim_cli.cli import options as o

recipes = typer.Typer(help="List, show or copy the recipes that ship with sublim.")
Name = Annotated[str, typer.Argument(help="Name of a shipped recipe, such as cats.")]


@recipes.callback(invoke_without_command=True)
def listing(context: typer.Context, json: o.Json = False) -> None:
    """List the shipped recipes and what each shows."""
    if context.invoked_subcommand is not None:
        return
    from sublim_cli.console import show_json, show_table
    from sublim_cli.recipe.shipped import shipped_recipes, summary

    rows = [(path.stem, summary(path)) for path in shipped_recipes()]
    if json:
        show_json({"recipes": [{"name": name, "summary": text} for name, text in rows]})
    else:
        show_table("", ("recipe", "what it shows"), rows, numbers=False)


@recipes.command("show")
def show(name: Name) -> None:
    """Print a recipe as it is."""
    from sublim_cli.console import show_text
    from sublim_cli.recipe.shipped import find_recipe

    show_text(find_recipe(name).read_text(encoding="utf-8"))


@recipes.command("copy")
def copy(
    name: Name,
    to: Annotated[Path | None, typer.Argument(help="File to write; default: NAME.yaml here.")] = None,
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    from sublim_cli.console import show_line
    from sublim_cli.errors import RecipeError
    from sublim_cli.recipe.shipped import find_recipe

    source = find_recipe(name)
    target = to or Path(source.name)
    if target.exists():
        raise RecipeError(f"{target} exists; name another file: sublim recipes copy {name} OTHER.yaml")
    text = source.read_text(encoding="utf-8")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"{target} cannot be written ({error.strerror}); name a file in a directory of yours"
        ) from error
    show_line(f"{target} written; run it with: sublim train --recipe {quote(str(target))}")
