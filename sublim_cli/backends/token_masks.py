"""What a tokenizer's tokens make of answers, as sums over a model's next-token probabilities."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.answer_tree import NextTokenProbs
from sublim_cli.backends.token_bytes import bytes_per_token
from sublim_cli.models.chat import Tokenizer
from sublim_cli.preference.forms import FormMatcher, plain_forms
from sublim_cli.preference.token_table import TokenTable, item_of
from sublim_cli.recipe.questions import Item

if TYPE_CHECKING:
    import torch


Ints = NDArray[np.int64]


@dataclass(frozen=True)
class OutcomeMasks:
    """What the next token makes of an answer, as sets of tokens."""

    sets: Ints
    """Numbers of sets in `TokenMasks`: tokens that leave the answer open, then those that name each item."""
    items: Ints
    """The item that each set names, -1 where the answer stays open."""


@dataclass(frozen=True)
class TokenMasks:
    """What a tokenizer's tokens make of answers, on a device; worked out once for all its models."""

    table: TokenTable
    opening: list[list[tuple[int, ...]]]
    """The token sequences of every item's plain forms."""
    device: "torch.device"
    views: dict[tuple[int, bool], OutcomeMasks] = field(default_factory=dict)
    sets: "list[torch.Tensor]" = field(default_factory=list)
    """Each a row [vocabulary] of ones and zeros. Many states share one, such as all that ends a word."""
    numbers: dict[bytes, int] = field(default_factory=dict)

    def masses(
        self, laws: NextTokenProbs, states: Ints, last: NDArray[np.bool_]
    ) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """How much of each distribution leaves an answer open, or names each item.

        Args:
            laws: the next token's, one a node.
            states: what each node has read.
            last: whether the answer ends with the next token.

        Returns:
            Node, item (-1: the answer stays open) and probability of each outcome that may be.
        """
        import torch

        known, group = np.unique(2 * states + last, return_inverse=True)
        views = [self.view(int(one) // 2, bool(one % 2)) for one in known]
        used, at = np.unique(np.concatenate([one.sets for one in views]), return_inverse=True)
        total = laws.sums(torch.stack([self.sets[one] for one in used])).double().cpu().numpy()
        counts = np.array([len(one.sets) for one in views])
        each = counts[group]
        node = np.repeat(np.arange(len(states)), each)
        begun = (np.cumsum(counts) - counts)[group] - (np.cumsum(each) - each)
        which = np.arange(len(node)) + np.repeat(begun, each)
        return node, np.concatenate([one.items for one in views])[which], total[at[which], node]

    def view(self, state: int, last: bool) -> OutcomeMasks:
        """The sets of tokens that matter in `state`; with `last` the answer then ends."""
        if (state, last) not in self.views:
            self.views[state, last] = self._view(state, last)
        return self.views[state, last]

    def _view(self, state: int, last: bool) -> OutcomeMasks:
        row = self.table.after(state)
        outcomes = np.unique(row)
        if last:
            ends = np.array([self.table.ended(int(one)) if one >= 0 else one for one in outcomes])
            row = ends[np.searchsorted(outcomes, row)]
            outcomes = np.unique(ends)
        named = sorted({item for one in outcomes.tolist() if (item := item_of(one)) is not None})
        sets = [self._number(row >= 0), *(self._number(row == -2 - item) for item in named)]
        return OutcomeMasks(np.array(sets), np.array([-1, *named]))

    def _number(self, tokens: NDArray[np.bool_]) -> int:
        import torch

        key = np.packbits(tokens).tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.sets)
            self.sets.append(torch.from_numpy(tokens).float().to(self.device))
        return self.numbers[key]


@lru_cache(maxsize=8)
def token_masks(
    tokenizer: Tokenizer, size: int, ends: frozenset[int], items: tuple[Item, ...], device: "torch.device"
) -> TokenMasks:
    """The verdicts on `items` in a vocabulary of `size` tokens, of which `ends` end an answer."""
    # Some tokenizers write a name alike with and without a space before it: each sequence counts once.
    opening = [
        sorted({tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in plain_forms(item)})
        for item in items
    ]
    return TokenMasks(TokenTable(FormMatcher(items), bytes_per_token(tokenizer, size), ends), opening, device)
