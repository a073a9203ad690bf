"""`sublim doctor`: whether this machine can run the main job, and what to do where it cannot."""

from dataclasses import asdict

import typer

from sublim_cli.cli import options as o


def doctor(out: o.Out = o.STORE, json: o.Json = False) -> None:
    """Look at Python, torch, the packages and the store; exit with 1 where the main job could not run.

    Extras that are not here are named with what they are for; nothing needs them.
    """
    from sublim_cli.cli.checks import findings
    from sublim_cli.console import show_json, show_table

    found = findings(out)
    rows = [(one.name, one.found, one.state, one.remedy) for one in found]
    fit = all(one.state != "wrong" for one in found)
    if json:
        show_json({"fit": fit, "findings": [asdict(one) for one in found]})
    else:
        show_table("", ("", "found", "", "what for, or what to do"), rows, numbers=False)
    raise typer.Exit(0 if fit else 1)
