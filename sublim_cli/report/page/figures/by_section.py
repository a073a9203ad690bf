"""Every figure of a report, by the section of the page it stands in."""

from sublim_cli.report.collect import Results
from sublim_cli.report.page.figures.contexts import context_figure
from sublim_cli.report.page.figures.figure import Figure
from sublim_cli.report.page.figures.forest import forest_figure
from sublim_cli.report.page.figures.localisation import localisation_figure
from sublim_cli.report.page.figures.matched import matched_figure
from sublim_cli.report.page.figures.precision import precision_figures
from sublim_cli.report.page.figures.rank_curves import rank_figures
from sublim_cli.report.page.figures.rate_grid import rate_grid_figures
from sublim_cli.report.page.summary import context_matrices, summarise
from sublim_cli.report.tables.localisation import share_tables


def figures_by_section(results: Results) -> dict[str, list[Figure]]:
    """All figures; a section without any has an empty list."""
    forests = (forest_figure(verdict, place) for place, verdict in enumerate(results.claims, start=1))
    return {
        "claims": [figure for figure in forests if figure],
        "ranks": list(rank_figures(results)),
        "rates": list(rate_grid_figures(results)),
        "matched": [
            matched_figure(panel)
            for panel in results.matched
            # The curve at one learning rate alone is the rank curve's.
            if any(curve.points for curve in panel.curves if curve.kind != "fixed")
        ],
        "contexts": [context_figure(matrix) for matrix in context_matrices(summarise(results))],
        "localisation": [
            localisation_figure(rows)
            for rows in share_tables(results.located)
            if any(row.share for row in rows)
        ],
        "precision": list(precision_figures(results)),
    }
