"""Every figure of a report, by the section it stands in. Pure."""

from collections.abc import Mapping, Sequence

from sublim_cli.report.collect import Results
from sublim_cli.report.page.context_matrix import matrices
from sublim_cli.report.page.figures.contexts import context_figure
from sublim_cli.report.page.figures.figure import Figure
from sublim_cli.report.page.figures.localisation import localisation_figure
from sublim_cli.report.page.figures.matched import has_curves, matched_figure
from sublim_cli.report.page.figures.precision import precision_figure, precisions
from sublim_cli.report.page.figures.ranks import rank_figure
from sublim_cli.report.page.rank_curves import rank_curves
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.tables.localisation import share_tables


def figures_of(results: Results) -> Mapping[str, Sequence[Figure]]:
    """All there is to draw: nothing of a section is an empty list."""
    return {
        "ranks": [rank_figure(one) for one in rank_curves(results)],
        "matched": [matched_figure(one) for one in results.matched if has_curves(one)],
        "contexts": [context_figure(one) for one in matrices(summarise(results))],
        "localisation": [localisation_figure(one) for one in share_tables(results.located) if one.locatable],
        "precision": [precision_figure(one) for one in precisions(results)],
    }
