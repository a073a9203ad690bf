"""What a table of answer probabilities says: preference, and whether a student still answers at all."""

from collections.abc import Sequence
from dataclasses import dataclass

BROKEN_BELOW = 0.5
"""A student that names any item less than half as often as the base, in the same context, is broken.

Over-stepped students of the embedded model name one with probability under 0.014, healthy ones near 1.
"""


@dataclass(frozen=True)
class Score:
    """Probabilities of one model's answer to one question in one context."""

    context: str
    question: int
    item: str
    p: float
    """P(the answer names this item)."""
    unresolved: float
    """Probability of forms too unlikely to be followed, for the whole question: `p` may lack this much."""


def broken(p_any: float, base_p_any: float, number_loss: float, base_number_loss: float) -> str:
    """Why a student's preference cannot be read, or an empty string.

    Args:
        p_any: P(the answer names any item of the category), the base's beside it.
        number_loss: nats per held-out number token after training, and the base's before.
    """
    if p_any < BROKEN_BELOW * base_p_any:
        return f"names an item in {p_any:.0%} of answers (base {base_p_any:.0%})"
    if number_loss > base_number_loss:
        return f"number loss rose from {base_number_loss:.3f} to {number_loss:.3f}"
    return ""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of one or more values."""
    return sum(values) / len(values)
