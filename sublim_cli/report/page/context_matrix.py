"""The context matrix: how far each condition moved from the base, in every context. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.report.tables.conditions import Condition


@dataclass(frozen=True)
class MatrixRow:
    """One condition across the contexts; None where it was not asked."""

    label: str
    condition: Condition
    tiles: tuple[SummaryRow | None, ...]


@dataclass(frozen=True)
class ContextMatrix:
    """One trait."""

    target: str
    contexts: tuple[str, ...]
    lines: tuple[MatrixRow, ...]


def matrices(rows: Sequence[SummaryRow]) -> list[ContextMatrix]:
    """A matrix for every trait, without the base: it is what the others are compared with."""
    trained = [row for row in rows if row.condition.role != "base"]
    traits: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in trained:
        traits.setdefault((row.category, row.target), []).append(row)
    return [_matrix(target, own) for (_, target), own in traits.items()]


def at_one_rate(matrix: ContextMatrix, most: int) -> tuple[ContextMatrix, float | None]:
    """A matrix of more than `most` lines without the adapters of all learning rates but one.

    That is the one with the most conditions, of equals the lowest. It is returned beside the matrix; None
    where nothing is left out.
    """
    rates = Counter(sorted(rate for line in matrix.lines if (rate := _adapter_rate(line)) is not None))
    if len(matrix.lines) <= most or len(rates) < 2:
        return matrix, None
    ((chosen, _),) = rates.most_common(1)
    lines = tuple(one for one in matrix.lines if _adapter_rate(one) in (None, chosen))
    return replace(matrix, lines=lines), chosen


def _adapter_rate(line: MatrixRow) -> float | None:
    return line.condition.learning_rate if line.condition.rank is not None else None


def _matrix(target: str, rows: Sequence[SummaryRow]) -> ContextMatrix:
    contexts = tuple(dict.fromkeys(row.eval_context for row in rows))
    places = {(row.condition, row.eval_context): row for row in rows}
    named = {row.condition: row.label for row in rows}
    lines = (
        MatrixRow(label, condition, tuple(places.get((condition, context)) for context in contexts))
        for condition, label in named.items()
    )
    return ContextMatrix(target, contexts, tuple(lines))
