"""`sublim report`: the report of what a store holds of a sweep."""

from sublim_cli.cli import options as o


def report(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
) -> None:
    """Write the report of a sweep from what is built, without building anything.

    Cells that are missing are named. Give the flags the sweep was run with.
    """
    from sublim_cli.cli.study import report_and_show

    wanted = o.recipe_of(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    report_and_show(wanted, out, json=json)
