"""The context matrix: how far each condition moved from the base, in every context. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.runs import Condition


@dataclass(frozen=True)
class MatrixRow:
    """One condition across the contexts; None where it was not asked."""

    label: str
    condition: Condition
    tiles: tuple[SummaryRow | None, ...]

    @property
    def adapter_rate(self) -> float | None:
        """The learning rate of an adapter; None for full fine-tuning."""
        return self.condition.learning_rate if self.condition.rank is not None else None


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


def at_one_rate(matrix: ContextMatrix, most: int) -> tuple[ContextMatrix, float | None]:
    """A matrix of more than `most` rows with the adapters of a single learning rate.

    That is the rate with the most conditions, the lowest of equals. It is returned beside the matrix; None
    where nothing is left out.
    """
    rates = Counter(sorted(row.adapter_rate for row in matrix.rows if row.adapter_rate is not None))
    if len(matrix.rows) <= most or len(rates) < 2:
        return matrix, None
    ((chosen, _),) = rates.most_common(1)
    rows = tuple(row for row in matrix.rows if row.adapter_rate in (None, chosen))
    return replace(matrix, rows=rows), chosen
