"""Every figure of a report, by the section it stands in. Pure."""

from collections.abc import Mapping, Sequence

from sublim_cli.report.collect import Results
from sublim_cli.report.curves import rank_curves
from sublim_cli.report.figures.contexts import context_figure
from sublim_cli.report.figures.figure import Figure
from sublim_cli.report.figures.localisation import localisation_figure
from sublim_cli.report.figures.matched import has_curves, matched_figure
from sublim_cli.report.figures.precision import precision_figure, precisions
from sublim_cli.report.figures.ranks import rank_figure
from sublim_cli.report.localisation import localised
from sublim_cli.report.matrix import matrices
from sublim_cli.report.summary import summarise


def figures_of(results: Results) -> Mapping[str, Sequence[Figure]]:
    """All there is to draw: nothing of a section is an empty list."""
    return {
        "ranks": [rank_figure(one) for one in rank_curves(results)],
        "matched": [matched_figure(one) for one in results.matched if has_curves(one)],
        "contexts": [context_figure(one) for one in matrices(summarise(results))],
        "localisation": [localisation_figure(one) for one in localised(results) if one.locatable],
        "precision": [precision_figure(one) for one in precisions(results)],
    }
