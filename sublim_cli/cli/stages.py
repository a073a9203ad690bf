"""`sublim generate`, `filter`, `train` and `eval`: build up to a stage of a recipe and show its result."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_cli.cli import options as o

if TYPE_CHECKING:
    from sublim_cli.recipe.schema import Recipe, Stage

_file = partial(typer.Option, rich_help_panel="A file of your own")


def generate(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampler.")] = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Let the teacher answer number prompts until enough of its rows pass the filter."""
    loaded = o.load_recipe(recipe, settings, model, trait, rows, generate__sampling__seed=seed)
    _build_and_show(loaded, "generate", out, json=json, quiet=quiet)


def filter_rows(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="A recipe file or a shipped one's name; for a file of yours, only its rules count.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        _file("--input", "-i", help="Rows to filter: JSONL, a JSON list, CSV or Parquet; gzip too."),
    ] = None,
    target: Annotated[
        Path | None,
        _file(
            "--output",
            help="Where kept rows go, as JSONL; rejected ones go to NAME.rejected.jsonl beside it.",
        ),
    ] = None,
    prompt_key: Annotated[str, _file(help="Key of the prompt.")] = "prompt",
    completion_key: Annotated[str, _file(help="Key of the completion.")] = "completion",
    strip: Annotated[bool, _file("--strip", help="Strip white space first.")] = False,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Keep the rows that are nothing but numbers, and say why the others are not.

    With [bold]--recipe[/]: the teacher's rows; missing ones are drawn first.
    With [bold]--input[/] and [bold]--output[/]: a file of your own, with the keys prompt and completion,
    messages, conversations, or instruction and output.
    """
    if recipe is not None and source is None and target is None:
        loaded = o.load_recipe(recipe, settings, model, trait, rows)
        _build_and_show(loaded, "filter", out, json=json, quiet=quiet)
        return
    if source is None or target is None:
        raise typer.BadParameter("give --recipe, or both --input and --output")

    from sublim_cli.console import show_json, show_line, show_reasons, show_warning
    from sublim_cli.recipe.schema import StripRule
    from sublim_cli.steps.filter import filter_file, reasons, rejected_path

    rules = o.load_recipe(recipe or "cats", settings).filter.rules
    if strip and not isinstance(rules[0], StripRule):
        rules = (StripRule(), *rules)
    tally, advice = filter_file(source, target, rules, prompt_key, completion_key)
    if advice and not quiet:
        show_warning(advice)
    if json:
        show_json({**reasons(tally), "output": str(target), "rejected": str(rejected_path(target))})
    else:
        show_reasons(reasons(tally))
        show_line(f"kept rows:     {target}")
        show_line(f"rejected rows: {rejected_path(target)}")


def _student_command(until: "Stage", help_text: str) -> Callable[..., None]:
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
        from sublim_cli.recipe.yaml_file import parse_value
        from sublim_cli.trainers.runtime import set_runtime

        set_runtime(checkpoint_every, micro_batch, report_to, accelerate)
        loaded = o.load_recipe(
            recipe,
            settings,
            model,
            trait,
            rows,
            train__method=method,
            train__rank=rank,
            train__alpha=None if alpha is None else parse_value(alpha),
            train__learning_rate=learning_rate,
            train__epochs=epochs,
            train__seed=seed,
            train__system_prompt=system_prompt,
        )
        _build_and_show(loaded, until, out, json=json, quiet=quiet)

    command.__doc__ = help_text
    return command


train = _student_command(
    "train",
    """Train a student on a teacher's numbers; missing rows are drawn first.

    [bold]sublim train --rank 64 --recipe cats --model micro[/]

    With rows of your own in place of a teacher's (JSONL, a JSON list, CSV
    or Parquet; gzip too):

    [bold]sublim train --rows rows.jsonl --recipe cats --model micro[/]
    """,
)

evaluate = _student_command(
    "eval",
    """Score one student, and the untouched base, in every context of the recipe.

    The probability that an answer names the target is computed, not
    sampled, unless `eval.scorer` is `sampled`. Missing rows are drawn and
    a missing student is trained first.

    [bold]sublim eval --rank 64 --recipe cats --model micro[/]
    """,
)


def _build_and_show(recipe: "Recipe", until: "Stage", out: Path, *, json: bool, quiet: bool) -> None:
    """Build a recipe's steps up to stage `until` in this process and show the artifact of that stage."""
    from sublim_cli.artifacts.record import checksum, read_record
    from sublim_cli.artifacts.store import Store
    from sublim_cli.cli.study import results_document, show_results
    from sublim_cli.console import screen, show_json, show_line, show_reasons, show_work
    from sublim_cli.events import Notice
    from sublim_cli.pipeline import run, single
    from sublim_cli.recipe.schema import SweepSection
    from sublim_cli.report.collect import collect
    from sublim_cli.steps.files import LOSSES, REASONS, read_json
    from sublim_cli.sweep.launch import missing_steps
    from sublim_cli.sweep.manifest import check_buildable, plan_study, recording
    from sublim_cli.trainers.runtime import gpu_environment

    os.environ.update(gpu_environment(os.environ))  # before torch is imported
    store, recipe = Store(out), recipe.model_copy(update={"sweep": SweepSection()})
    planned, resolved = plan_study(recipe, store, single)
    check_buildable(planned, missing_steps([getattr(planned.cells[0].chain, until)], store))
    with screen(quiet=quiet) as progress:
        if resolved:
            progress(Notice(resolved))
        listener = recording(progress, recipe, planned, store, replace=False)
        artifact = run(recipe, until=until, store=store, listener=listener, resolution=planned.resolution)
    document: dict[str, object] = {
        "stage": until,
        "path": str(artifact.path),
        "digest": artifact.digest,
        "checksum": checksum(read_record(artifact.path)),
    }
    if not json:
        show_work(progress)
    if until == "filter":
        document["reasons"] = counts = read_json(artifact.path / REASONS)
        if not json:
            show_reasons(counts)
    elif until == "train":
        document["losses"] = losses = read_json(artifact.path / LOSSES)
        before, after = losses["number_loss_before"], losses["number_loss"]
        if before is not None and not json:
            show_line(f"number loss on held-out rows: {before:.3f} before, {after:.3f} after")
    elif until == "eval":
        results = collect(planned, store, recipe)
        document |= results_document(results)
        if not json:
            show_results(results)
    if json:
        show_json(document)
    else:
        show_line(str(artifact.path))
