"""The context matrix: how far each condition moved from the base, in every context. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.runs import Condition


@dataclass(frozen=True)
class MatrixRow:
    """One condition across the contexts; None where it was not asked."""

    label: str
    condition: Condition
    tiles: tuple[SummaryRow | None, ...]


@dataclass(frozen=True)
class ContextMatrix:
    """The conditions of one trait, without the base: it is what they are compared with."""

    target: str
    contexts: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def context_matrices(summary: Sequence[SummaryRow]) -> list[ContextMatrix]:
    """A matrix for every trait."""
    trained = (row for row in summary if row.condition.role != "base")
    matrices = []
    for (_, target), group in groupby(trained, key=lambda row: (row.category, row.target)):
        rows = list(group)
        contexts = tuple(dict.fromkeys(row.eval_context for row in rows))
        tiles = {(row.condition, row.eval_context): row for row in rows}
        labels = {row.condition: row.label for row in rows}
        matrix_rows = (
            MatrixRow(label, condition, tuple(tiles.get((condition, context)) for context in contexts))
            for condition, label in labels.items()
        )
        matrices.append(ContextMatrix(target, contexts, tuple(matrix_rows)))
    return matrices
