"""The context matrix: how far each condition moved from the base, in every context. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from sublim_cli.report.summary import SummaryRow

_DEEPEST = 0.6
"""Opacity of the deepest colour, so that text on it stays readable in light and dark."""


@dataclass(frozen=True)
class Tile:
    """One cell of the matrix and the depth of its colour: above the base or below it."""

    row: SummaryRow
    above: float
    below: float


@dataclass(frozen=True)
class Line:
    """One condition across the contexts; None where it was not asked."""

    label: str
    tiles: tuple[Tile | None, ...]


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
    largest = max((abs(row.difference.mean) for row in rows if row.difference), default=0.0)
    places = {(row.condition, row.eval_context): _tile(row, largest) for row in rows}
    named = {row.condition: row.label for row in rows}
    lines = (
        Line(label, tuple(places.get((condition, context)) for context in contexts))
        for condition, label in named.items()
    )
    return Matrix(target, contexts, tuple(lines))


def _tile(row: SummaryRow, largest: float) -> Tile:
    mean = row.difference.mean if row.difference else 0.0
    depth = _DEEPEST * abs(mean) / largest if largest else 0.0
    return Tile(row, above=depth if mean > 0 else 0.0, below=depth if mean < 0 else 0.0)
