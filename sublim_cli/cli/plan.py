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
            help="Measure what no record tells with small builds in a place that is thrown away.",
            rich_help_panel=o.RUN,
        ),
    ] = True,
    workers: o.Workers = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what `sweep` would build, why, how long it takes, and what its runs could decide.

    Nothing is written. What is built already is counted, and each new step is compared with the nearest
    artifact of the store: the field that differs is what a change of the recipe costs.
    Time, memory and disk come from earlier builds like it, and where there are none from a probe.

    [bold]sublim plan --recipe demo[/]
    """
    from sublim_cli.cli.plan_command import plan_and_show

    o.expect_a_study()
    wanted = o.recipe_of(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    plan_and_show(wanted, out, effect=effect, probe=probe, workers=workers, json=json, quiet=quiet)
