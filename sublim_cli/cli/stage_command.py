"""The work of `generate`, `filter`, `train` and `eval`: build up to a stage, then show its result."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sublim_cli.artifacts.record import checksum, read_record
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import Store
from sublim_cli.console import (
    screen,
    show_json,
    show_line,
    show_reasons,
    show_shares,
    show_summary,
    show_warning,
    show_work,
)
from sublim_cli.pipeline import run, single
from sublim_cli.recipe.schema import Recipe, Rule, Stage, StripRule
from sublim_cli.report.collect import Results, collect
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.tables.localisation import share_tables, shares, shares_document
from sublim_cli.steps.files import LOSSES, REASONS, read_json
from sublim_cli.steps.filter import filter_file, reasons, rejected_path


def run_and_show(recipe: Recipe, until: Stage, out: Path, *, json: bool, quiet: bool) -> None:
    """Build a recipe's steps up to stage `until` and show the artifact of that stage."""
    store = Store(out)
    with screen(quiet=quiet) as progress:
        artifact = run(recipe, until=until, store=store, listener=progress)
    if json:
        show_json(_document(recipe, until, artifact, store))
        return
    show_work(progress)
    if until == "filter":
        show_reasons(read_json(artifact.path / REASONS))
    elif until == "train":
        losses = read_json(artifact.path / LOSSES)
        before, after = losses["number_loss_before"], losses["number_loss"]
        if before is not None:
            show_line(f"number loss on held-out rows: {before:.3f} before, {after:.3f} after")
    elif until == "eval":
        results = collect(single(recipe), store, recipe)
        show_summary(summarise(results))
        show_shares(share_tables(results.located))
    show_line(str(artifact.path))


def filter_and_show(
    source: Path,
    target: Path,
    rules: Sequence[Rule],
    keys: tuple[str, str],
    *,
    strip: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Filter a file of the user's and show how many rows were kept, and why the others were not."""
    if strip and not isinstance(rules[0], StripRule):
        rules = (StripRule(), *rules)
    tally, advice = filter_file(source, target, rules, *keys)
    if advice and not quiet:
        show_warning(advice)
    if json:
        show_json({**reasons(tally), "output": str(target), "rejected": str(rejected_path(target))})
    else:
        show_reasons(reasons(tally))
        show_line(f"kept rows:     {target}")
        show_line(f"rejected rows: {rejected_path(target)}")


def _document(recipe: Recipe, until: Stage, artifact: Artifact, store: Store) -> dict[str, object]:
    document: dict[str, object] = {
        "stage": until,
        "path": str(artifact.path),
        "digest": artifact.digest,
        "checksum": checksum(read_record(artifact.path)),
    }
    if until == "filter":
        document["reasons"] = read_json(artifact.path / REASONS)
    if until == "train":
        document["losses"] = read_json(artifact.path / LOSSES)
    if until == "eval":
        document |= results_document(collect(single(recipe), store, recipe))
    return document


def results_document(results: Results) -> dict[str, object]:
    """A study's summary and the shares of its gates and patches as plain data."""
    return {
        "preferences": [asdict(row) for row in summarise(results)],
        "localisation": shares_document(shares(results.located)),
    }
