"""What a backend must do: draw completions, and give the probability of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sublim_cli.preference.trie import Node
from sublim_cli.recipe.schema import Sampling

Ids = Sequence[int]
"""Token ids of one prompt."""


@dataclass(frozen=True)
class Answer:
    """Probabilities of one prompt's answer: `p[i]` names item i; `unresolved` was not followed."""

    p: tuple[float, ...]
    unresolved: float


class Sampler(Protocol):
    """Draws completions."""

    def sample(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: Sampling) -> list[str]:
        """One completion a prompt; `rows[i]` and the seed alone decide the noise of the i-th."""


class Scorer(Protocol):
    """Gives exact answer probabilities."""

    def score(self, prompts: Sequence[Ids], forms: Node, items: int) -> list[Answer]:
        """For each prompt, P(the answer opens with a form of item i and the form ends there)."""
