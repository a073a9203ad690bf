"""`sublim plan`: what a sweep would do, before it does anything."""

from typing import TYPE_CHECKING, Annotated

import typer

from sublim_cli.cli import options as o

if TYPE_CHECKING:
    from sublim_cli.recipe.schema import Recipe
    from sublim_cli.sweep.card import CardPlan


def plan(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    odds_ratio: Annotated[
        float,
        typer.Option(
            "--odds-ratio", min=1.01, help="The odds ratio of student to base whose power is asked for."
        ),
    ] = 3.0,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Measure the steps without a record by small builds in a temporary store.",
            rich_help_panel=o.RUN,
        ),
    ] = True,
    card: Annotated[
        list[str] | None,
        typer.Option(
            "--card",
            help="Only the peak memory of each step on cards with so many GiB: 24, or 8,24,80; no weights.",
        ),
    ] = None,
    workers: o.Workers = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what `sweep` would build, why, how long it takes, and what its runs could decide.

    Nothing is written. Each new step is compared with the nearest artifact of the store, to show which
    changed field of the recipe makes it new.
    Time, memory and disk come from similar builds in the store, or from a probe where there are none.
    On a machine with a GPU the peak memory of each step stands beside what the GPU has, as with --card.

    [bold]sublim plan --recipe demo[/]
    """
    from sublim_cli.artifacts.record import artifact_records
    from sublim_cli.artifacts.store import Store
    from sublim_cli.cli.card import card_document, show_cards
    from sublim_cli.cli.plan_tables import document, show_forecast
    from sublim_cli.console import screen, show_json, show_warning
    from sublim_cli.events import Notice
    from sublim_cli.models.device import device_record, worker_devices
    from sublim_cli.report.claims.power import powers
    from sublim_cli.report.tables.reader import StoreReader
    from sublim_cli.report.tables.runs import planned_runs
    from sublim_cli.steps.contexts import check_contexts
    from sublim_cli.steps.locate import check_parts
    from sublim_cli.sweep.cells import without_control
    from sublim_cli.sweep.estimate import Costs
    from sublim_cli.sweep.forecast import forecast
    from sublim_cli.sweep.launch import missing_steps
    from sublim_cli.sweep.manifest import plan_study
    from sublim_cli.sweep.probe import probed

    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model, trait, rows)
    if card:
        show_cards_of(loaded, card, json=json)
        return
    store, devices = Store(out), worker_devices(workers)
    planned, resolved = plan_study(loaded, store)
    for warning in filter(None, (resolved, without_control(planned))):
        if not quiet:
            show_warning(warning)
    new = missing_steps(planned.steps, store)
    check_parts(new)
    with screen(quiet=quiet) as progress:
        check_contexts(new, progress)
    records = artifact_records(store.root) if new else []
    sources = [Costs(records, device_record()) if new else Costs([], {})]
    unknown = [step for step in new if sources[0].estimate(step) is None]
    failures: tuple[str, ...] = ()
    if not (probe and unknown):
        estimate = forecast(planned, new, records, sources, len(devices))
    else:
        with screen(quiet=quiet) as progress:
            progress(
                Notice("measuring steps without a record in a temporary store; --no-probe leaves it out")
            )
            with probed(planned, unknown, devices[0], device_record(), progress) as (costs, failures):
                estimate = forecast(planned, new, records, [*sources, costs], len(devices))
    power = powers(loaded.claims, planned_runs(planned, StoreReader(store, {})), odds_ratio) if new else []
    cards = device_plans(loaded) if new else []
    if json:
        show_json(
            {
                **document(loaded, estimate, power, odds_ratio, failures, out),
                "cards": card_document(loaded, cards)["cards"],
            }
        )
        return
    show_forecast(loaded, estimate, power, odds_ratio, out)
    show_cards(loaded, cards)
    show_failures(failures)


def show_cards_of(recipe: "Recipe", sizes: list[str], *, json: bool) -> None:
    """Show the peak memory of a recipe's steps on cards of these sizes."""
    from sublim_cli.cli.card import card_document, card_sizes, show_cards
    from sublim_cli.console import show_json
    from sublim_cli.sweep.card import card_plans

    plans = card_plans(recipe, card_sizes(sizes))
    if json:
        show_json(card_document(recipe, plans))
    else:
        show_cards(recipe, plans)


def device_plans(recipe: "Recipe") -> "list[CardPlan]":
    """The peak memory of a recipe's steps on this machine's GPU; empty without one, or if it is not known."""
    from sublim_cli.console import show_warning
    from sublim_cli.errors import ModelError
    from sublim_cli.models.device import card_memory
    from sublim_cli.sweep.card import GIB, card_plans

    memory = card_memory()
    if memory is None:
        return []
    try:
        return card_plans(recipe, [memory / GIB])
    except ModelError as error:
        show_warning(str(error))
        return []


def show_failures(failures: tuple[str, ...]) -> None:
    """Warn of the steps that a probe could not measure."""
    from sublim_cli.console import show_warning

    for failure in failures:
        show_warning(f"not measured: {failure}")
