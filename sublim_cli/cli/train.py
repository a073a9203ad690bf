"""`sublim train`: one student. `sublim eval` takes the same flags."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sublim_cli.cli import options as o

if TYPE_CHECKING:
    from sublim_cli.recipe.schema import Stage


def student_command(until: "Stage", help_text: str) -> Callable[..., None]:
    """The command that builds one student's steps up to stage `until`; its help is `help_text`."""

    def command(
        recipe: o.RecipeName,
        model: o.Model = None,
        trait: o.Trait = None,
        rows: o.Rows = None,
        method: o.Method = None,
        rank: o.Rank = None,
        alpha: o.Alpha = None,
        learning_rate: o.LearningRate = None,
        epochs: o.Epochs = None,
        seed: o.Seed = None,
        system_prompt: o.SystemPrompt = None,
        settings: o.Settings = None,
        checkpoint_every: o.CheckpointEvery = None,
        micro_batch: o.MicroBatch = None,
        report_to: o.ReportTo = None,
        accelerate: o.Accelerate = None,
        out: o.Out = o.STORE,
        json: o.Json = False,
        quiet: o.Quiet = False,
    ) -> None:
        from sublim_cli.cli.stage_command import run_and_show
        from sublim_cli.recipe.yaml_file import parse_value
        from sublim_cli.trainers.runtime import set_runtime

        set_runtime(checkpoint_every, micro_batch, report_to, accelerate)
        loaded = o.load_recipe(
            recipe,
            settings,
            model=model,
            trait__target=trait,
            generate__rows=rows,
            train__method=method,
            train__rank=rank,
            train__alpha=None if alpha is None else parse_value(alpha),
            train__learning_rate=learning_rate,
            train__epochs=epochs,
            train__seed=seed,
            train__system_prompt=system_prompt,
        )
        run_and_show(loaded, until, out, json=json, quiet=quiet)

    command.__doc__ = help_text
    return command


train = student_command(
    "train",
    """Train a student on a teacher's numbers; missing rows are drawn first.

    [bold]sublim train --rank 64 --recipe cats --model micro[/]
    """,
)
