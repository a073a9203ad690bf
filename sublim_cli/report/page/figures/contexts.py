"""The context matrix as a heat map: the change of P(target) from the base, in every context."""

from collections import Counter
from dataclasses import replace

import altair as alt

from sublim_cli.report.page.figures.figure import PALETTE, WIDTH, Figure, chart, slug, tooltips
from sublim_cli.report.page.summary import ContextMatrix, SummaryRow
from sublim_cli.wording import bounds, difference, rate, with_bounds

ABOVE, BELOW = PALETTE[1], PALETTE[0]
"""More and less than the base."""

DEEPEST = 0.6
"""Opacity of the darkest tile, so that text on it stays readable in light and dark."""

ROW = 30
"""Pixels of a row of tiles: two lines of a condition's name."""

MOST = 20
"""Above this number of conditions, adapters are drawn at one learning rate only."""


def context_figure(matrix: ContextMatrix) -> Figure:
    """The matrix of one trait."""
    drawn, learning_rate = at_one_rate(matrix, MOST)
    tiles = [(line.label, row) for line in drawn.rows for row in line.tiles if row is not None]
    described = []
    for label, row in tiles:
        mean = row.difference
        change = with_bounds(difference(mean.mean), mean) if mean else row.state
        described.append(f"{label} asked in {row.eval_context} {change}")
    caption = (
        "Orange is above the base and blue below, darker for more; a framed tile is the training context."
    )
    if learning_rate:
        caption += (
            f" Adapters are drawn at learning rate {rate(learning_rate)} only, the one of most conditions; "
            "the table has all."
        )
    return Figure(
        slug=slug("contexts", matrix.target),
        title=f"Change of P({matrix.target}) from the untouched base in the same context",
        description="; ".join(described) + ".",
        caption=caption,
        chart=_heat_map(drawn, tiles),
    )


def at_one_rate(matrix: ContextMatrix, most: int) -> tuple[ContextMatrix, float | None]:
    """A matrix of more than `most` rows with the adapters of a single learning rate, and that rate.

    It is the rate with the most conditions, the lowest of equals; None where nothing is left out.
    """
    adapters = [row.condition for row in matrix.rows if row.condition.rank is not None]
    rates = Counter(sorted(adapter.learning_rate or 0.0 for adapter in adapters))
    if len(matrix.rows) <= most or len(rates) < 2:
        return matrix, None
    ((chosen, _),) = rates.most_common(1)
    rows = (row for row in matrix.rows if row.condition.rank is None or row.condition.learning_rate == chosen)
    return replace(matrix, rows=tuple(rows)), chosen


def _heat_map(matrix: ContextMatrix, tiles: list[tuple[str, SummaryRow]]) -> alt.LayerChart:
    largest = max((abs(row.difference.mean) for _, row in tiles if row.difference), default=0.0)
    edge = {"domain": False, "ticks": False, "grid": False}
    # A condition's name on two lines: before its first comma, and the rest.
    name = "[split(datum.label, ', ')[0], join(slice(split(datum.label, ', '), 1), ', ')]"
    columns = alt.Axis(labelAngle=40, labelLimit=90, orient="top", **edge)
    rows = alt.Axis(labelExpr=name, labelLimit=140, labelFontSize=10, labelOffset=-5, **edge)
    base = chart(_tile(label, row, largest) for label, row in tiles).encode(
        x=alt.X("context:N", title=None, sort=None, axis=columns),
        y=alt.Y("condition:N", title=None, sort=None, axis=rows),
    )
    tooltip = tooltips(
        {
            "condition": "Condition",
            "context": "Asked in",
            "change": "Change",
            "interval": "95 % interval",
            "runs": "Runs",
        }
    )
    return alt.layer(
        base.mark_rect().encode(
            color=alt.when("datum.mean >= 0").then(alt.value(ABOVE)).otherwise(alt.value(BELOW)),
            opacity=alt.Opacity("depth:Q", scale=None, legend=None),
            tooltip=tooltip,
        ),
        base.mark_rect(filled=False, strokeWidth=2, aria=False).transform_filter("datum.trained_here"),
        base.mark_text(fontSize=11, aria=False).encode(text="short:N", tooltip=tooltip),
    ).properties(width=WIDTH, height=ROW * len(matrix.rows))


def _tile(label: str, row: SummaryRow, largest: float) -> dict[str, object]:
    mean = row.difference.mean if row.difference else 0.0
    return {
        "condition": label,
        "context": row.eval_context,
        "mean": mean,
        "depth": DEEPEST * abs(mean) / largest if largest else 0.0,
        "short": difference(mean, 2) if row.difference else row.state,
        "change": difference(mean) if row.difference else row.state,
        "interval": bounds(row.difference) or "one run has none",
        "runs": row.n,
        "trained_here": row.in_training_context,
    }
