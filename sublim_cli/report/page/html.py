"""The page as HTML: one file that needs no other."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from inspect import getmembers, isfunction
from itertools import groupby
from operator import attrgetter

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sublim_cli import wording
from sublim_cli.numbers.surface import Divergence
from sublim_cli.preference.score import BROKEN_ABOVE
from sublim_cli.report.claims import wording as claims_wording
from sublim_cli.report.claims.locking import lock_sentences
from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures.figure import Figure
from sublim_cli.report.page.figures.forest import forest_slug
from sublim_cli.report.page.figures.rendering import (
    embedded_specification,
    inline_svg,
    page_script,
    sparkline,
)
from sublim_cli.report.page.narrative import paragraphs
from sublim_cli.report.page.summary import context_matrices, movers, summarise
from sublim_cli.report.tables.data_sets import LeakRow
from sublim_cli.report.tables.localisation import share_tables

REDRAW = "sublim report --recipe recipe.yaml --out ../.."
"""To be run in the report's directory, two levels below the store (`cli.study.REPORTS`)."""

SIGNS = {"supported": "✓", "refuted": "✗", "underpowered": "?", "incomplete": "…", "descriptive": "–"}
"""So that verdicts differ in more than their colour."""


def page_html(results: Results, figures: Mapping[str, Sequence[Figure]], formats: Sequence[str]) -> str:
    """The page of a report with its figures by section; `formats` are the file endings that it links to."""
    rows = summarise(results)
    forests = {figure.slug: figure for figure in figures["claims"]}
    labels = {(row.target, row.condition): row.label for row in rows}
    order = list(labels)
    script = page_script()
    environment = Environment(
        loader=PackageLoader("sublim_cli.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (
        lock_sentences,
        sparkline,
        inline_svg,
        embedded_specification,
        divergence_text,
        leak_sentence,
    )
    environment.filters |= {
        **dict(getmembers(wording, isfunction)),
        **dict(getmembers(claims_wording, isfunction)),
        **{function.__name__: function for function in functions},
    }
    return environment.get_template("page.html.j2").render(
        results=results,
        summary=paragraphs(results, rows),
        models=[model.split(" (")[0] for model in results.provenance.versions["model"]],
        targets=list(dict.fromkeys(run.target for run in results.runs)),
        trained=len({run.train_digest for run in results.runs if not run.missing} - {""}),
        planned=len({run.train_digest for run in results.runs} - {""}),
        cards=[
            (verdict, forests.get(forest_slug(verdict, place)), sensitivity)
            for place, (verdict, sensitivity) in enumerate(
                zip(results.claims, results.sensitivities, strict=True), start=1
            )
        ],
        signs=SIGNS,
        traits=[
            (target, [list(group) for _, group in groupby(trait_rows, key=attrgetter("condition"))])
            for (_, target), trait_rows in groupby(rows, key=attrgetter("category", "target"))
        ],
        figures=figures,
        formats=formats,
        redraw=REDRAW,
        moved=movers(results.items, rows, results.runs),
        matrices=context_matrices(rows),
        share_tables=share_tables(results.located),
        audits=sorted(results.audits, key=lambda audit: order.index((audit.target, audit.condition))),
        labels=labels,
        runs=results.runs,
        broken_above=BROKEN_ABOVE,
        style=Markup((files("sublim_cli.report.page") / "templates" / "style.css").read_text("utf-8")),
        script=Markup(script),
        script_digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def divergence_text(divergence: Divergence | None) -> str:
    """Bits, and in brackets the bound that chance stays below: `0.00018 (0.00006)`."""
    return "–" if divergence is None else f"{divergence.bits:.5f} ({divergence.chance:.5f})"


def leak_sentence(leak: LeakRow) -> str:
    """What one comparison says."""
    if leak.named:
        return f"{wording.count(leak.named, 'row')} that students learn from name the target: {leak.shown[0]}"
    if leak.auc is None:
        return "no row names the target; there are no rows of a control to compare with"
    if leak.low <= 0.5 <= leak.high:
        return "the classifier does not differ from chance on these rows"
    return f"given one row of each, the classifier picks the trait teacher's {leak.auc:.0%} of the time"
