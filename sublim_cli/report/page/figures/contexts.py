"""The context matrix as a heat map: the change of P(target) from the base, in every context. Pure."""

from collections.abc import Sequence

from sublim_cli.report.page.context_matrix import ContextMatrix, at_one_rate
from sublim_cli.report.page.figures import figure as f
from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.wording import bounds, difference, rate

ROW = 30
"""Pixels of a line of tiles: two lines of a condition's name."""
MOST = 20
"""Conditions that are drawn in any case. Where there are more, adapters are drawn at one learning rate."""


def context_figure(matrix: ContextMatrix) -> f.Figure:
    """The matrix of one trait."""
    shown, at = at_one_rate(matrix, MOST)
    rows = [(line.label, row) for line in shown.lines for row in line.tiles if row is not None]
    return f.Figure(
        slug=f.slug("contexts", matrix.target),
        title=f"Change of P({matrix.target}) from the untouched base in the same context",
        description="; ".join(f"{label} asked in {row.eval_context} {_said(row)}" for label, row in rows)
        + ".",
        caption=(
            "Orange is above the base and blue below, deeper for more; a framed tile is the context of "
            "training."
            + (
                f" Adapters at learning rate {rate(at)}, where most were trained; the table has all."
                if at
                else ""
            )
        ),
        spec=_spec(shown, rows),
    )


def _spec(matrix: ContextMatrix, rows: Sequence[tuple[str, SummaryRow]]) -> f.Spec:
    largest = max((abs(row.difference.mean) for _, row in rows if row.difference), default=0.0)
    edge = {"domain": False, "ticks": False, "grid": False}
    name = "[split(datum.label, ', ')[0], join(slice(split(datum.label, ', '), 1), ', ')]"
    place = {
        "x": f.category("context", axis={"labelAngle": 40, "labelLimit": 90, "orient": "top", **edge}),
        "y": f.category(
            "condition",
            axis={"labelExpr": name, "labelLimit": 140, "labelFontSize": 10, "labelOffset": -5, **edge},
        ),
    }
    told = {"condition": "Condition", "context": "Asked in", "told": "Change"}
    hint = f.hints(**told, interval="95 % interval", runs="Runs")
    fill = {"condition": {"test": "datum.mean >= 0", "value": f.ABOVE}, "value": f.BELOW}
    frame = {"type": "rect", "filled": False, "strokeWidth": 2, "aria": False, **f.LINE}
    return {
        "width": f.WIDTH,
        "height": ROW * len(matrix.lines),
        "data": {"values": [_tile(label, row, largest) for label, row in rows]},
        "encoding": place,
        "layer": [
            {
                "mark": "rect",
                "encoding": {"color": fill, "opacity": f.quantity("depth", scale=None, legend=None), **hint},
            },
            {"mark": frame, "transform": [{"filter": "datum.own"}]},
            {
                "mark": {"type": "text", "fontSize": 11, "aria": False, **f.TEXT},
                "encoding": {"text": f.category("short"), **hint},
            },
        ],
    }


def _tile(label: str, row: SummaryRow, largest: float) -> dict[str, object]:
    mean = row.difference.mean if row.difference else 0.0
    return {
        "condition": label,
        "context": row.eval_context,
        "mean": mean,
        "depth": f.DEEPEST * abs(mean) / largest if largest else 0.0,
        "short": difference(mean, 2) if row.difference else row.state,
        "told": difference(mean) if row.difference else row.state,
        "interval": bounds(row.difference) or "one run has none",
        "runs": row.n,
        "own": row.in_training_context,
    }


def _said(row: SummaryRow) -> str:
    return (
        f"{difference(row.difference.mean)} {bounds(row.difference)}".rstrip()
        if row.difference
        else row.state
    )
