"""The context matrix as a heat map: the change of P(target) from the base, in every context. Pure."""

from sublim_cli.report.figures import figure as f
from sublim_cli.report.matrix import Matrix
from sublim_cli.report.summary import SummaryRow
from sublim_cli.report.wording import bounds, difference

ROW = 34
"""Pixels of a line of tiles: two lines of a condition's name."""


def context_figure(matrix: Matrix) -> f.Figure:
    """The matrix of one trait."""
    tiles = [(line.label, tile) for line in matrix.lines for tile in line.tiles if tile is not None]
    largest = max((abs(row.difference.mean) for _, row in tiles if row.difference), default=0.0)
    told = [f"{label} asked in {row.eval_context} {_said(row)}" for label, row in tiles]
    return f.Figure(
        slug=f.slug("contexts", matrix.target),
        title=f"Change of P({matrix.target}) from the untouched base in the same context",
        description="; ".join(told) + ".",
        caption=(
            "Orange is above the base and blue below, deeper for more; "
            "a framed tile is the context of training."
        ),
        spec=_spec(matrix, [_tile(label, row, largest) for label, row in tiles]),
    )


def _spec(matrix: Matrix, tiles: list[dict[str, object]]) -> f.Spec:
    below = {"labelAngle": -40, "labelLimit": 90, "orient": "top", "domain": False, "ticks": False}
    beside = {"labelExpr": "split(datum.label, ', ')", "labelLimit": 130, "domain": False, "ticks": False}
    place = {
        "x": f.category("context", axis=below),
        "y": f.category("condition", axis=beside),
    }
    fill = {
        "condition": {"test": "datum.mean >= 0", "value": f.ABOVE},
        "value": f.BELOW,
    }
    hint = f.hints(
        condition="Condition", context="Asked in", told="Change", interval="95 % interval", runs="Runs"
    )
    own = [one for one in tiles if one["own"]]
    frame = {"type": "rect", "filled": False, "strokeWidth": 2, "aria": False, **f.LINE}
    return {
        "width": f.WIDTH,
        "height": ROW * len(matrix.lines),
        "layer": [
            f.layer(
                tiles,
                {"type": "rect"},
                **place,
                color=fill,
                opacity=f.quantity("depth", scale=None, legend=None),
                **hint,
            ),
            *([f.layer(own, frame, **place)] if own else []),
            f.layer(
                tiles,
                {"type": "text", "fontSize": 11, "aria": False, **f.TEXT},
                **place,
                text=f.category("short"),
                **hint,
            ),
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
