"""`sublim generate`: the teacher's rows."""

from typing import Annotated

import typer

from sublim_cli.cli import options as o


def generate(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the sampler.", show_default=False)
    ] = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Let the teacher answer number prompts until enough of its rows pass the filter."""
    from sublim_cli.cli.stage_command import run_and_show

    loaded = o.load_recipe(
        recipe,
        settings,
        model=model,
        trait__target=trait,
        generate__rows=rows,
        generate__sampling__seed=seed,
    )
    run_and_show(loaded, "generate", out, json=json, quiet=quiet)
