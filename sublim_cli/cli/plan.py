"""`sublim plan`: what a sweep would do, before it does anything."""

from typing import Annotated

import typer

from sublim_cli.cli import options as o


def plan(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    effect: Annotated[
        float,
        typer.Option("--effect", min=0.0, max=1.0, help="The change of P(target) whose power is asked for."),
    ] = 0.05,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Measure the steps without a record by small builds in a temporary store.",
            rich_help_panel=o.RUN,
        ),
    ] = True,
    workers: o.Workers = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what `sweep` would build, why, how long it takes, and what its runs could decide.

    Nothing is written. Each new step is compared with the nearest artifact of the store, to show which
    changed field of the recipe makes it new.
    Time, memory and disk come from similar builds in the store, or from a probe where there are none.

    [bold]sublim plan --recipe demo[/]
    """
    from sublim_cli.cli.plan_command import plan_and_show

    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    plan_and_show(loaded, out, effect=effect, probe=probe, workers=workers, json=json, quiet=quiet)
