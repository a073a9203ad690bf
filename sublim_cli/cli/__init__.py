"""What is typed: the commands and their flags. Nothing heavy is imported until a command runs."""

import sys

import typer

from sublim_cli.cli.doctor import doctor
from sublim_cli.cli.inspect import inspect
from sublim_cli.cli.models import models
from sublim_cli.cli.plan import plan
from sublim_cli.cli.recipes import recipes
from sublim_cli.cli.stages import evaluate, filter_rows, generate, train
from sublim_cli.cli.study import report, sweep
from sublim_cli.errors import SublimError

app = typer.Typer(
    name="sublim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Subliminal learning, reproduced and dissected: a teacher with a trait writes numbers, "
        "a student is fine-tuned on them, and you measure what passed over.\n\n"
        "Start with [bold]sublim sweep --recipe demo[/], which runs anywhere in minutes; "
        "[bold]sublim recipes[/] lists what else ships."
    ),
    epilog="Exit codes: 0 done, 1 a step failed, 2 the recipe or a flag is wrong, 130 interrupted.",
    rich_markup_mode="rich",
)
app.command("generate")(generate)
app.command("filter")(filter_rows)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("plan")(plan)
app.command("sweep")(sweep)
app.command("report")(report)
app.command("inspect")(inspect)
app.command("doctor")(doctor)
app.add_typer(recipes, name="recipes")
app.add_typer(models, name="models")


def main() -> None:
    """Run the command line; an error the user can fix is one sentence and an exit code."""
    try:
        app()
    except SublimError as error:
        from sublim_cli.console import show_error

        show_error(str(error))
        sys.exit(error.exit_code)
