"""The report: one page that opens anywhere, the tidy table and the figures, in one directory."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sublim_cli.artifacts.store import NO_DIRECTORY, explained
from sublim_cli.report import wording
from sublim_cli.report.audits import AuditRow
from sublim_cli.report.collect import LeakRow, Results
from sublim_cli.report.conditions import Condition, records
from sublim_cli.report.curves import RankCurve, rank_curves
from sublim_cli.report.figures import figure_files, inline_svg, sparkline
from sublim_cli.report.matrix import matrices
from sublim_cli.report.provenance import RECIPE
from sublim_cli.report.summary import SummaryRow, summarise
from sublim_cli.report.told import told
from sublim_cli.report.verdicts import document, p_text, runs_text, sentence, wild

PAGE = "report.html"
FIGURES = "figures"
CLAIMS = "claims.json"


def write_report(results: Results, directory: Path) -> Path:
    """Write `report.html`, `claims.json`, `results.parquet`, `results.csv`, `recipe.yaml` and `figures/`.

    Each file is written beside its place and then moved there. Returns the page's path.

    Raises:
        ArtifactError: the directory cannot be written.
    """
    curves = rank_curves(results)
    with explained(directory, NO_DIRECTORY):
        (directory / FIGURES).mkdir(parents=True, exist_ok=True)
        for curve in curves:
            for name, content in figure_files(curve):
                _put(directory / FIGURES / name, content)
        _put(directory / "results.csv", results.runs.to_csv(index=False).encode())
        _put(directory / "results.parquet", results.runs.to_parquet(index=False))
        _put(directory / CLAIMS, claims_file(results))
        _put(directory / RECIPE, results.provenance.recipe.encode())
        _put(directory / PAGE, render(results, curves).encode())
    return directory / PAGE


def claims_file(results: Results) -> bytes:
    """What `claims.json` holds: the verdicts as plain data."""
    text = json.dumps(document(results.name, results.claims), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def render(results: Results, curves: Sequence[RankCurve]) -> str:
    """The page as HTML that needs nothing beside it."""
    rows = summarise(results)
    template = _environment().from_string(_read("page.html.j2"))
    return template.render(
        results=results,
        summary=told(results, rows),
        models=[one.split(" (")[0] for one in results.provenance.versions["model"]],
        traits=_traits(rows),
        figures=[Figure(one, Markup(inline_svg(one))) for one in curves],
        matrices=matrices(rows),
        leaks=[(one, leak_sentence(one)) for one in results.leaks],
        audits=_audits(results.audits, rows),
        runs=records(results.runs),
    )


@dataclass(frozen=True)
class Figure:
    """A curve and its drawing."""

    curve: RankCurve
    svg: Markup


@dataclass(frozen=True)
class Trait:
    """The table of one trait: a group of rows, one for each context, for every condition."""

    target: str
    groups: tuple[list[SummaryRow], ...]


@dataclass(frozen=True)
class Audit:
    """One row of the training table, with its label and its loss curve drawn."""

    row: AuditRow
    label: str
    curve: Markup


def leak_sentence(leak: LeakRow) -> str:
    """What one AUC means."""
    if leak.low <= 0.5 <= leak.high:
        return "no better than chance, as far as these rows can tell"
    return f"of one row each, it finds the trait teacher's {leak.auc:.0%} of the time"


def _traits(rows: Sequence[SummaryRow]) -> list[Trait]:
    found: dict[tuple[str, str], dict[Condition, list[SummaryRow]]] = {}
    for row in rows:
        trait = found.setdefault((row.category, row.target), {})
        trait.setdefault(row.condition, []).append(row)
    return [Trait(target, tuple(groups.values())) for (_, target), groups in found.items()]


def _audits(audits: Sequence[AuditRow], rows: Sequence[SummaryRow]) -> list[Audit]:
    labels = {(row.target, row.condition): row.label for row in rows}
    ordered = {key: place for place, key in enumerate(labels)}
    found = sorted(audits, key=lambda one: ordered[one.target, one.condition])
    return [Audit(one, labels[one.target, one.condition], Markup(sparkline(one.loss))) for one in found]


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "probability": wording.probability,
        "difference": wording.difference,
        "bounds": wording.bounds,
        "ratio": wording.ratio,
        "nats": wording.nats,
        "share": wording.share,
        "many": wording.many,
        "rate": wording.rate,
        "duration": wording.duration,
        "listed": wording.listed,
        "sentence": sentence,
        "plan": runs_text,
        "wild": wild,
        "p": p_text,
    }
    return environment


def _read(name: str) -> str:
    return (files("sublim_cli.report") / name).read_text(encoding="utf-8")


def _put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
