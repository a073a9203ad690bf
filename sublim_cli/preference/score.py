"""Scores computed from answer probabilities, and the criteria by which a student counts as broken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BROKEN_BELOW = 0.5
"""A student that names any item less than half as often as the base, in the same context, is broken.

Over-stepped students of the embedded model name one with probability under 0.014, healthy ones near 1.
"""

BROKEN_ABOVE = 0.1
"""Nats per held-out number token. A student whose loss on numbers rose by more in training is broken.

A smaller rise is overfitting. Even a control's loss rises: that of its teacher, the base, is the lowest.
"""


@dataclass(frozen=True)
class ItemScore:
    """The probability that one model's answer to one question in one context names one item."""

    context: str
    question: int
    item: str
    p: float
    """P(the answer names this item): computed, estimated with draws, or its share of `samples` draws."""
    standard_error: float
    """Of `p`, from the draws; 0 where `p` is computed alone."""
    uncovered: float
    """Probability of the question's answers that were not computed. Without draws, `p` may be too low by this
    much; with them, that part of `p` is estimated."""
    log_form: float | None
    """log P(the answer opens with the item's plain name), in nats; None where answers were drawn."""
    samples: int
    """Answers drawn, 0 where `p` is computed alone."""


@dataclass(frozen=True)
class QuestionScore:
    """One model's answer to one question in one context, over all items at once."""

    context: str
    question: int
    p_any: float
    """P(the answer names any item)."""
    entropy: float
    """In nats, over the items and one more outcome: no item, or not computed."""
    uncovered: float
    nodes: int
    """How many nodes of the answer tree were expanded."""


def entropy(p: Sequence[float]) -> float:
    """Shannon entropy in nats of the items' probabilities and of what they lack to one.

    Estimates below 0 count as 0.
    """
    rest = max(0.0, 1.0 - math.fsum(p))
    return -math.fsum(value * math.log(value) for value in (*p, rest) if value > 0.0)


def broken_reason(p_any: float, base_p_any: float, number_loss: float, base_number_loss: float) -> str:
    """Why a student's preference cannot be interpreted, or an empty string if it can.

    `p_any` is P(the answer names any item of the category); losses are in nats per held-out number token.
    """
    if p_any < BROKEN_BELOW * base_p_any:
        return f"names an item in {p_any:.0%} of answers (base {base_p_any:.0%})"
    if number_loss > base_number_loss + BROKEN_ABOVE:
        return f"number loss rose from {base_number_loss:.3f} to {number_loss:.3f}"
    return ""
