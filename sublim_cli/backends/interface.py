"""What backends share: how completions are drawn, and how likely an answer names each item."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sublim_cli.models.chat import Tokenizer
from sublim_cli.recipe.schema import SamplingSection

Ids = Sequence[int]
"""Token ids of one prompt."""

NumberedPrompt = tuple[int, Ids]
"""A row's number, which with the seed decides its noise, and its prompt."""

NumberedCompletion = tuple[int, list[int]]
"""A row's number, and its completion without the token that ends it."""


@dataclass(frozen=True)
class ItemProbs:
    """How likely the answer to one prompt names each item (`preference.forms`).

    Without `samples`, `p[i]` is a lower bound: p[i] ≤ P(item i) ≤ p[i] + uncovered. With them, what the tree
    covers is exact and the rest, of probability `uncovered`, is estimated by `samples` draws without bias, so
    that an estimate of a small probability may be below 0. The sampled scorer covers nothing: its `p[i]` is
    the share of all answers, and its `uncovered` is 0.
    """

    p: tuple[float, ...]
    standard_error: tuple[float, ...]
    """Of each `p`, from the draws; 0 where there were none."""
    uncovered: float
    log_form: tuple[float, ...]
    """For each item log P(the answer opens with the tokens of its plain name), in nats; empty if sampled."""
    nodes: int = 0
    """Nodes of the answer tree that were expanded."""
    samples: int = 0
    """Answers drawn."""
    tokens: int = 0
    """Tokens of answers that were computed for `p`."""


class Sampler(ABC):
    """Draws completions. A row's noise depends on its number and the seed, not on the rest of the batch."""

    tokenizer: Tokenizer

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens in the model's vocabulary."""

    @abstractmethod
    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """One completion for each prompt as token ids, without the token that ends it.

        `rows[i]` and `sampling.seed` decide the noise of the i-th.
        """

    @abstractmethod
    def stream(
        self,
        prompts: Iterator[NumberedPrompt],
        sampling: SamplingSection,
        after_step: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[NumberedCompletion]:
        """The same for prompts that may have no end. Completions come in the order in which they end.

        Prompts are read as they are needed. `after_step` is called while rows are drawn, with the number of
        tokens drawn since the last call.
        """
