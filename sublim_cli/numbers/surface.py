"""Statistics of a data set's numbers: duplicates, letters, and how two teachers differ in their digits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_EXAMPLES = 3
"""Rows quoted as examples."""

PERMUTATIONS = 999
"""Of the permutation test of a divergence."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """Statistics of one data set; counts are of rows."""

    rows: int
    duplicates: int
    """Rows whose completion is that of an earlier row."""
    letters: int
    """Rows with a letter of any script: no number needs one."""
    shown: tuple[str, ...]
    """The first `MAX_EXAMPLES` rows with a letter."""
    digits: tuple[float, ...]
    """The share of each digit, 0 to 9; all 0 where there is no digit."""


@dataclass(frozen=True)
class Divergence:
    """How differently two teachers use digits: Jensen-Shannon divergence in bits, 0 to 1."""

    bits: float
    chance: float
    """The 95th percentile under permutation."""
    p: float
    """The share of permutations with at least this divergence, the data itself counted as one."""


@dataclass(frozen=True)
class Overlap:
    """Prompts that both teachers answered, and how many of them got the same answer."""

    prompts: int
    same: int


def surface(texts: Sequence[str]) -> Surface:
    """The statistics of one data set's completions."""
    with_letters = [text for text in texts if any(char.isalpha() for char in text)]
    counts = _digit_counts(texts, 1).sum(axis=0)
    shares = counts / max(counts.sum(), 1.0)
    return Surface(
        rows=len(texts),
        duplicates=len(texts) - len(set(texts)),
        letters=len(with_letters),
        shown=tuple(with_letters[:MAX_EXAMPLES]),
        digits=tuple(map(float, shares.round(6))),
    )


def overlap(trait: Mapping[int, str], control: Mapping[int, str]) -> Overlap:
    """Compare two teachers' answers, each keyed by the number of its prompt."""
    both = trait.keys() & control.keys()
    return Overlap(len(both), sum(trait[prompt] == control[prompt] for prompt in both))


def digit_divergence(
    trait: Mapping[int, str], control: Mapping[int, str], *, length: int = 1, seed: int = 1
) -> Divergence | None:
    """How differently two teachers use digits, with a permutation test.

    Each permutation swaps the two answers to some prompts. They share their sampling noise, so they are
    exchangeable if the teachers do not differ; answers to different prompts are not.

    Args:
        trait, control: each teacher's answers by the number of their prompt.
        length: 1 compares single digits, 2 pairs of neighbouring digits within a number.
        seed: of the permutations.

    Returns:
        None where either teacher wrote no such digits.
    """
    prompts = sorted(trait.keys() | control.keys())
    a, b = (_digit_counts([side.get(i, "") for i in prompts], length) for side in (trait, control))
    if not (a.any() and b.any()):
        return None
    swapped = np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, len(prompts))).astype(float)
    moved = swapped @ (b - a)
    bits = float(_jensen_shannon(a.sum(axis=0), b.sum(axis=0)))
    permuted = _jensen_shannon(a.sum(axis=0) + moved, b.sum(axis=0) - moved)
    # The tolerance lets swaps that change nothing count as equal.
    as_far = int(np.count_nonzero(permuted >= bits - 1e-12))
    return Divergence(bits, float(np.quantile(permuted, 0.95)), (1 + as_far) / (1 + PERMUTATIONS))


def _jensen_shannon(a: Counts, b: Counts) -> Counts:
    """In bits, along the last axis (Lin 1991, doi 10.1109/18.61115)."""
    p, q = (counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1.0) for counts in (a, b))
    divergence: Counts = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(divergence, 0.0)


def _entropy(p: Counts) -> Counts:
    logs = np.log2(p, where=p > 0, out=np.zeros_like(p))
    entropy: Counts = -(p * logs).sum(axis=-1)
    return entropy


def _digit_counts(texts: Sequence[str], length: int) -> Counts:
    """How often each text has each sequence of `length` neighbouring digits: [texts, 10**length]."""
    counts = np.zeros((len(texts), 10**length))
    for row, text in enumerate(texts):
        for digits in re.findall(f"(?=([0-9]{{{length}}}))", text):
            counts[row, int(digits)] += 1
    return counts
