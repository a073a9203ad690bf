"""The context matrix: how far each condition moved from the base, in every context. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from sublim_cli.report.summary import SummaryRow


@dataclass(frozen=True)
class Line:
    """One condition across the contexts; None where it was not asked."""

    label: str
    tiles: tuple[SummaryRow | None, ...]


@dataclass(frozen=True)
class Matrix:
    """One trait."""

    target: str
    contexts: tuple[str, ...]
    lines: tuple[Line, ...]


def matrices(rows: Sequence[SummaryRow]) -> list[Matrix]:
    """A matrix for every trait, without the base: it is what the others are compared with."""
    trained = [row for row in rows if row.condition.role != "base"]
    traits: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in trained:
        traits.setdefault((row.category, row.target), []).append(row)
    return [_matrix(target, own) for (_, target), own in traits.items()]


def _matrix(target: str, rows: Sequence[SummaryRow]) -> Matrix:
    contexts = tuple(dict.fromkeys(row.eval_context for row in rows))
    places = {(row.condition, row.eval_context): row for row in rows}
    named = {row.condition: row.label for row in rows}
    lines = (
        Line(label, tuple(places.get((condition, context)) for context in contexts))
        for condition, label in named.items()
    )
    return Matrix(target, contexts, tuple(lines))
