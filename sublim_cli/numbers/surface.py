"""What a data set's numbers look like: duplicates, letters, and how often each digit stands where."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_EXAMPLES = 3
"""Rows quoted of those that stand out."""

PERMUTATIONS = 999
"""Exchanges of the two teachers that say how far apart their digits lie by chance."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """What one data set shows without another to compare it with; counts are of rows."""

    rows: int
    duplicates: int
    """Rows whose completion stands in an earlier row already."""
    letters: int
    """Rows with a letter, of whatever script: no number needs one."""
    shown: tuple[str, ...]
    """The first of those with a letter."""
    digits: tuple[float, ...]
    """The share of each digit, 0 to 9; all 0 where there is none."""


@dataclass(frozen=True)
class Divergence:
    """How differently two teachers use digits: Jensen-Shannon divergence in bits, 0 to 1."""

    bits: float
    chance: float
    """What 95 of 100 exchanges of the teachers, prompt by prompt, stay under."""
    p: float
    """The share of exchanges that part them at least as far, the data itself counted in."""


@dataclass(frozen=True)
class Overlap:
    """Prompts that both teachers answered, and how many of them got the same answer."""

    prompts: int
    same: int


def surface(texts: Sequence[str]) -> Surface:
    """Look at the completions of one data set."""
    lettered = [one for one in texts if any(char.isalpha() for char in one)]
    counts = _singles(texts).sum(axis=0)
    shares = counts / max(counts.sum(), 1.0)
    return Surface(
        rows=len(texts),
        duplicates=len(texts) - len(set(texts)),
        letters=len(lettered),
        shown=tuple(lettered[:MAX_EXAMPLES]),
        digits=tuple(map(float, shares.round(6))),
    )


def overlap(trait: Mapping[int, str], control: Mapping[int, str]) -> Overlap:
    """Compare the answers of two teachers, each by the number of its prompt."""
    both = trait.keys() & control.keys()
    return Overlap(len(both), sum(trait[one] == control[one] for one in both))


def digit_divergence(
    trait: Mapping[int, str], control: Mapping[int, str], seed: int = 1
) -> Divergence | None:
    """How differently the two use single digits; answers by the number of their prompt.

    None where a side has no digit at all.
    """
    return _divergence(*_sides(trait, control, _singles), seed)


def pair_divergence(trait: Mapping[int, str], control: Mapping[int, str], seed: int = 1) -> Divergence | None:
    """How differently they use pairs of digits that stand beside each other in a number.

    None where a side has no number of two digits.
    """
    return _divergence(*_sides(trait, control, _pairs), seed)


def _divergence(trait: Counts, control: Counts, seed: int) -> Divergence | None:
    """The divergence of the sums of two [prompts, kinds] tables, and of what exchanges leave of it.

    If the teachers do not differ, a prompt's two answers may change sides. They share their sampling
    noise, so answers of different prompts may not be mixed.
    """
    if not (trait.any() and control.any()):
        return None
    exchanged = np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, len(trait))).astype(float)
    moved = exchanged @ (control - trait)
    found = float(_jensen_shannon(trait.sum(axis=0), control.sum(axis=0)))
    drawn = _jensen_shannon(trait.sum(axis=0) + moved, control.sum(axis=0) - moved)
    # The tolerance lets exchanges that change nothing count as equal.
    as_far = int(np.count_nonzero(drawn >= found - 1e-12))
    return Divergence(found, float(np.quantile(drawn, 0.95)), (1 + as_far) / (1 + PERMUTATIONS))


def _jensen_shannon(one: Counts, other: Counts) -> Counts:
    """In bits, along the last axis (Lin 1991, doi 10.1109/18.61115)."""
    p, q = (side / np.maximum(side.sum(axis=-1, keepdims=True), 1.0) for side in (one, other))
    middle = (p + q) / 2
    spread: Counts = _entropy(middle) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(spread, 0.0)


def _entropy(p: Counts) -> Counts:
    logs = np.log2(p, where=p > 0, out=np.zeros_like(p))
    found: Counts = -(p * logs).sum(axis=-1)
    return found


def _sides(
    trait: Mapping[int, str], control: Mapping[int, str], count: Callable[[Sequence[str]], Counts]
) -> tuple[Counts, Counts]:
    prompts = sorted(trait.keys() | control.keys())
    return (
        count([trait.get(one, "") for one in prompts]),
        count([control.get(one, "") for one in prompts]),
    )


def _singles(texts: Sequence[str]) -> Counts:
    """How often each text has each digit: [texts, 10]."""
    return _table(texts, 10, lambda text: map(int, re.findall("[0-9]", text)))


def _pairs(texts: Sequence[str]) -> Counts:
    """How often each text has each pair of neighbouring digits: [texts, 100]."""
    return _table(texts, 100, lambda text: map(int, re.findall("(?=([0-9][0-9]))", text)))


def _table(texts: Sequence[str], kinds: int, found: Callable[[str], Iterable[int]]) -> Counts:
    table = np.zeros((len(texts), kinds))
    for row, text in enumerate(texts):
        for kind, times in Counter(found(text)).items():
            table[row, kind] = times
    return table
