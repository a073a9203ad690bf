"""The report: one page that opens anywhere, the tidy table and the figures, in one directory."""

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sublim_cli import wording
from sublim_cli.artifacts.store import NO_DIRECTORY, explain_disk_errors
from sublim_cli.errors import RecipeError
from sublim_cli.numbers.surface import Divergence
from sublim_cli.preference.score import BROKEN_ABOVE
from sublim_cli.report.claims.wording import document, headline, p_text, runs_text, sentence, wild
from sublim_cli.report.collect import LeakRow, Results
from sublim_cli.report.page.context_matrix import matrices
from sublim_cli.report.page.figures.drawn import figures_of
from sublim_cli.report.page.figures.figure import Figure
from sublim_cli.report.page.figures.files import (
    FORMATS,
    Drawing,
    draw,
    embedded,
    figure_files,
    inline_svg,
    script,
)
from sublim_cli.report.page.figures.sparkline import sparkline
from sublim_cli.report.page.movers import movers
from sublim_cli.report.page.narrative import paragraphs
from sublim_cli.report.page.summary import SummaryRow, summarise
from sublim_cli.report.tables.audits import AuditRow
from sublim_cli.report.tables.conditions import Condition, records
from sublim_cli.report.tables.localisation import share_tables
from sublim_cli.report.tables.provenance import RECIPE

PAGE = "report.html"
FIGURES = "figures"
CLAIMS = "claims.json"
REDRAW = "sublim report --recipe recipe.yaml --out ../.."
"""Typed in the report's directory, which lies two below the store (`cli.study_command.REPORTS`)."""

SIGNS = {"supported": "✓", "refuted": "✗", "underpowered": "?", "incomplete": "…"}
"""So that a verdict is told by more than its colour."""


def write_report(results: Results, directory: Path) -> Path:
    """Write the page, `claims.json`, the tables, `recipe.yaml` and `figures/`. Returns the page's path.

    The tables are `results.parquet` and `.csv`, `items.parquet` with every item of every run, and where
    there are gates or patches `localisation.parquet` and `.csv`. Each
    file is written beside its place and then moved there.

    Raises:
        ArtifactError: the directory cannot be written.
    """
    drawn = {name: list(map(draw, figures)) for name, figures in figures_of(results).items()}
    with explain_disk_errors(directory, NO_DIRECTORY):
        for drawing in chain.from_iterable(drawn.values()):
            _put_figure(drawing, directory)
        _put(directory / "results.csv", results.runs.to_csv(index=False).encode())
        _put(directory / "results.parquet", results.runs.to_parquet(index=False))
        _put(directory / "items.parquet", results.items.to_parquet(index=False))
        if len(results.located):
            _put(directory / "localisation.csv", results.located.to_csv(index=False).encode())
            _put(directory / "localisation.parquet", results.located.to_parquet(index=False))
        _put(directory / CLAIMS, claims_file(results))
        _put(directory / RECIPE, results.provenance.recipe.encode())
        _put(directory / PAGE, render(results, drawn).encode())
    return directory / PAGE


def write_figure(results: Results, directory: Path, name: str) -> list[Path]:
    """Write the files of one figure alone, into `figures/`. Returns their paths.

    Raises:
        RecipeError: the report has no figure of that name.
        ArtifactError: the directory cannot be written.
    """
    there = {one.slug: one for one in chain.from_iterable(figures_of(results).values())}
    if name not in there:
        has = f"it has {wording.listed(list(there))}" if there else "it has none yet"
        raise RecipeError(f"--figure {name}: the report of {results.name} has no such figure; {has}")
    with explain_disk_errors(directory):
        return _put_figure(draw(there[name]), directory)


def claims_file(results: Results) -> bytes:
    """What `claims.json` holds: the verdicts as plain data."""
    text = json.dumps(document(results.name, results.claims), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def render(results: Results, drawn: Mapping[str, Sequence[Drawing]]) -> str:
    """The page as HTML that needs nothing beside it."""
    rows = summarise(results)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            summary=paragraphs(results, rows),
            models=[one.split(" (")[0] for one in results.provenance.versions["model"]],
            targets=list(dict.fromkeys(results.runs["target"])),
            trained=results.runs.query("train_digest != '' and missing == ''")["train_digest"].nunique(),
            planned=results.runs.query("train_digest != ''")["train_digest"].nunique(),
            signs=SIGNS,
            traits=_traits(rows),
            figures={name: [_shown(one) for one in drawings] for name, drawings in drawn.items()},
            formats=FORMATS,
            redraw=REDRAW,
            moved=movers(results.items, rows, results.runs),
            matrices=matrices(rows),
            localised=share_tables(results.located),
            leaks=[(one, leak_sentence(one)) for one in results.leaks],
            audits=_audits(results.audits, rows),
            runs=records(results.runs),
            broken_above=BROKEN_ABOVE,
            style=Markup(_read("style.css")),
            script=Markup(script()),
            script_digest=b64encode(hashlib.sha256(script().encode()).digest()).decode(),
        )
    )


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page: drawn, and as a specification for the page's script."""

    figure: Figure
    svg: Markup
    spec: Markup


@dataclass(frozen=True)
class TraitTable:
    """The table of one trait: a group of rows, one for each context, for every condition."""

    target: str
    groups: tuple[list[SummaryRow], ...]


@dataclass(frozen=True)
class TrainingTableRow:
    """One row of the training table, with its label and its loss curve drawn."""

    row: AuditRow
    label: str
    curve: Markup


def divergence_text(found: Divergence | None) -> str:
    """Such as `0.00018 (0.00006)`: bits, and what chance stays under."""
    return "–" if found is None else f"{found.bits:.5f} ({found.chance:.5f})"


def leak_sentence(leak: LeakRow) -> str:
    """What one comparison says."""
    if leak.named:
        return f"{wording.count(leak.named, 'row')} that students learn from name the target: {leak.shown[0]}"
    if leak.low <= 0.5 <= leak.high:
        return "the classifier does no better than chance, as far as these rows can tell"
    return f"of one row each, the classifier finds the trait teacher's {leak.auc:.0%} of the time"


def _shown(one: Drawing) -> PageFigure:
    return PageFigure(one.figure, Markup(inline_svg(one)), Markup(embedded(one.figure)))


def _traits(rows: Sequence[SummaryRow]) -> list[TraitTable]:
    found: dict[tuple[str, str], dict[Condition, list[SummaryRow]]] = {}
    for row in rows:
        trait = found.setdefault((row.category, row.target), {})
        trait.setdefault(row.condition, []).append(row)
    return [TraitTable(target, tuple(groups.values())) for (_, target), groups in found.items()]


def _audits(audits: Sequence[AuditRow], rows: Sequence[SummaryRow]) -> list[TrainingTableRow]:
    labels = {(row.target, row.condition): row.label for row in rows}
    ordered = {key: place for place, key in enumerate(labels)}
    found = sorted(audits, key=lambda one: ordered[one.target, one.condition])
    return [
        TrainingTableRow(one, labels[one.target, one.condition], Markup(sparkline(one.loss))) for one in found
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sublim_cli.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "probability": wording.probability,
        "difference": wording.difference,
        "bounds": wording.bounds,
        "ratio": wording.ratio,
        "nats": wording.nats,
        "share": wording.share,
        "many": wording.many,
        "percent": wording.percent,
        "rate": wording.rate,
        "duration": wording.duration,
        "listed": wording.listed,
        "count": wording.count,
        "headline": headline,
        "sentence": sentence,
        "plan": runs_text,
        "wild": wild,
        "p": p_text,
        "divergence": divergence_text,
    }
    return environment


def _read(name: str) -> str:
    return (files("sublim_cli.report.page") / "templates" / name).read_text(encoding="utf-8")


def _put_figure(drawing: Drawing, directory: Path) -> list[Path]:
    (directory / FIGURES).mkdir(parents=True, exist_ok=True)
    files = {directory / FIGURES / name: content for name, content in figure_files(drawing)}
    for path, content in files.items():
        _put(path, content)
    return list(files)


def _put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
