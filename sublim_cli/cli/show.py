"""What the commands do after reading their flags: run, then show what came out."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sublim_cli.artifacts.record import checksum, read_record
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import Store
from sublim_cli.console import (
    Screen,
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
from sublim_cli.report.tables.conditions import records
from sublim_cli.report.tables.localisation import share_tables, shares, shares_document
from sublim_cli.steps.files import LOSSES, REASONS, read_json
from sublim_cli.steps.filter import filter_file, reasons, rejected_beside


def run_and_show(recipe: Recipe, until: Stage, out: Path, *, json: bool, quiet: bool) -> None:
    """Build a recipe's chain up to a stage and show the artifact that stage left."""
    store = Store(out)
    with screen(quiet=quiet) as shown:
        artifact = run(recipe, until=until, store=store, listener=shown)
    if json:
        show_json(_document(recipe, until, artifact, store))
    else:
        _show(recipe, until, artifact, store, shown)


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
    """Filter a file of the user's and show the table of reasons."""
    if strip and not isinstance(rules[0], StripRule):
        rules = (StripRule(), *rules)
    tally, advice = filter_file(source, target, rules, *keys)
    if advice and not quiet:
        show_warning(advice)
    if json:
        show_json({**reasons(tally), "output": str(target), "rejected": str(rejected_beside(target))})
    else:
        show_reasons(reasons(tally))
        show_line(f"kept rows:     {target}")
        show_line(f"rejected rows: {rejected_beside(target)}")


def _show(recipe: Recipe, until: Stage, artifact: Artifact, store: Store, shown: Screen) -> None:
    show_work(shown)
    match until:
        case "filter":
            show_reasons(read_json(artifact.path / REASONS))
        case "train":
            losses = read_json(artifact.path / LOSSES)
            before, after = losses["number_loss_before"], losses["number_loss"]
            if before is not None:
                show_line(f"number loss on held-out rows: {before:.3f} before, {after:.3f} after")
        case "eval":
            results = collect(single(recipe), store, recipe)
            show_summary(summarise(results))
            show_shares(share_tables(results.located))
        case _:
            pass
    show_line(str(artifact.path))


def _document(recipe: Recipe, until: Stage, artifact: Artifact, store: Store) -> dict[str, object]:
    record = read_record(artifact.path)
    document: dict[str, object] = {
        "stage": until,
        "path": str(artifact.path),
        "digest": artifact.digest,
        "checksum": checksum(record),
    }
    if until == "filter":
        document["reasons"] = read_json(artifact.path / REASONS)
    if until == "train":
        document["losses"] = read_json(artifact.path / LOSSES)
    if until == "eval":
        results = collect(single(recipe), store, recipe)
        document["preferences"] = preferences(results)
        document["localisation"] = localisation(results)
    return document


def preferences(results: Results) -> list[dict[str, object]]:
    """A study's summary as plain data."""
    return [asdict(row) for row in summarise(results)]


def localisation(results: Results) -> list[dict[str, object]]:
    """The shares of every gate and patch as plain data."""
    return shares_document(shares(records(results.located)))
