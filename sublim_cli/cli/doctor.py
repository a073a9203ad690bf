"""`sublim doctor`: whether this machine can run the main job, and what to do where it cannot."""

from dataclasses import asdict

import typer

from sublim_cli.cli import options as o


def doctor(out: o.Out = o.STORE, json: o.Json = False) -> None:
    """Look at Python, torch, the packages and the store; exit with 1 where the main job could not run.

    Missing extras are listed with their purpose; the main job needs none of them.
    """
    from sublim_cli.cli.doctor_checks import check_machine
    from sublim_cli.console import show_json, show_table

    checks = check_machine(out)
    rows = [(check.name, check.found, check.state, check.remedy) for check in checks]
    fit = all(check.state != "wrong" for check in checks)
    if json:
        show_json({"fit": fit, "findings": [asdict(check) for check in checks]})
    else:
        show_table("", ("", "found", "", "what for, or what to do"), rows, numbers=False)
    raise typer.Exit(0 if fit else 1)
