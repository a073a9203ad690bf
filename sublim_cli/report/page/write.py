"""The report's directory: the page, the tables, the verdicts and the figures.

Altair and the renderer take a second to import, so the functions that draw import them.
"""

import json
import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.artifacts.store import explain_disk_errors
from sublim_cli.errors import RecipeError
from sublim_cli.report.claims.locking import lock_document
from sublim_cli.report.claims.verdict import RULES_VERSION
from sublim_cli.report.claims.wording import document
from sublim_cli.report.collect import Results
from sublim_cli.report.tables.frames import frame
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.provenance import RECIPE
from sublim_cli.report.tables.runs import Run
from sublim_cli.wording import listed

if TYPE_CHECKING:
    from sublim_cli.report.page.figures.figure import Figure

PAGE = "report.html"
FIGURES = "figures"
FORMATS = ("svg", "png", "pdf", "vl.json")


def write_report(results: Results, directory: Path) -> Path:
    """Write the page, `claims.json`, the tables, `recipe.yaml` and `figures/`. Returns the page's path.

    The tables are `results.parquet` and `.csv`, `items.parquet` with every item of every run, and where
    there are gates or patches `localisation.parquet` and `.csv`. Each file is written under a temporary
    name and then renamed.

    Raises:
        ArtifactError: the directory cannot be written.
    """
    from sublim_cli.report.page.figures.by_section import figures_by_section
    from sublim_cli.report.page.html import page_html

    figures = figures_by_section(results)
    claims = json.dumps(claims_document(results), indent=2, ensure_ascii=False, allow_nan=False)
    with explain_disk_errors(directory, makes_directory=True):
        for figure in chain.from_iterable(figures.values()):
            _write_figure(figure, directory)
        runs = frame(results.runs, Run)
        _write(directory / "results.csv", runs.to_csv(index=False).encode())
        _write(directory / "results.parquet", runs.to_parquet(index=False))
        _write(directory / "items.parquet", results.items.to_parquet(index=False))
        if results.located:
            located = frame(results.located, LocatedRun)
            _write(directory / "localisation.csv", located.to_csv(index=False).encode())
            _write(directory / "localisation.parquet", located.to_parquet(index=False))
        _write(directory / "claims.json", f"{claims}\n".encode())
        _write(directory / RECIPE, results.provenance.recipe.encode())
        _write(directory / PAGE, page_html(results, figures, FORMATS).encode())
    return directory / PAGE


def claims_document(results: Results) -> dict[str, Any]:
    """Verdicts, how they depend on margins and seeds, the version of their rules, the lock; as plain data."""
    lock = lock_document(results.lock) if results.lock else None
    return {
        "study": results.name,
        "rules": RULES_VERSION,
        "lock": lock,
        **document(results.name, results.claims, results.sensitivities),
    }


def write_figure(results: Results, directory: Path, name: str) -> list[Path]:
    """Write the files of one figure alone, into `figures/`. Returns their paths.

    Raises:
        RecipeError: the report has no figure of that name.
        ArtifactError: the directory cannot be written.
    """
    from sublim_cli.report.page.figures.by_section import figures_by_section

    figures = {figure.slug: figure for figure in chain.from_iterable(figures_by_section(results).values())}
    if name not in figures:
        has = f"it has {listed(list(figures))}" if figures else "it has none yet"
        raise RecipeError(f"--figure {name}: the report of {results.name} has no such figure; {has}")
    with explain_disk_errors(directory):
        return _write_figure(figures[name], directory)


def _write_figure(figure: "Figure", directory: Path) -> list[Path]:
    from sublim_cli.report.page.figures.rendering import figure_files

    (directory / FIGURES).mkdir(parents=True, exist_ok=True)
    files = {
        directory / FIGURES / f"{figure.slug}.{kind}": text for kind, text in figure_files(figure).items()
    }
    for path, content in files.items():
        _write(path, content)
    return list(files)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
