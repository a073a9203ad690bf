"""What a backend must do: draw completions, and say how likely an answer names each item."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sublim_cli.models.chat import Tokenizer
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.schema import SamplingSection

Ids = Sequence[int]
"""Token ids of one prompt."""


@dataclass(frozen=True)
class ItemProbs:
    """How likely one prompt's answer names each item (`preference.forms`).

    `p[i]` is known to lie too low by `uncovered` at most: p ≤ P(item i) ≤ p + uncovered. A sampled `p` is the
    share of `samples` draws; its `uncovered` is 0 and its error is that of a binomial.
    """

    p: tuple[float, ...]
    uncovered: float
    log_form: tuple[float, ...]
    """For each item, log P(the answer opens with its plain name, token by token), in nats."""
    nodes: int = 0
    """How many beginnings of answers were followed."""
    samples: int = 0


class Sampler(Protocol):
    """Draws completions."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the model can write."""

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """The same completions as `sample`'s as token ids, without the token that ends them."""

    def sample(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[str]:
        """One completion a prompt; `rows[i]` and the seed alone decide the noise of the i-th."""


class Scorer(Protocol):
    """Says how likely answers name items."""

    def score(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[ItemProbs]:
        """An `ItemProbs` for each prompt."""
