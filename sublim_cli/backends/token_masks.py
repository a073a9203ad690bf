"""How much next-token probability names each item: masks over a vocabulary, made from a `TokenTable`."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.answer_tree import Floats, Ints, NextTokenProbs
from sublim_cli.backends.token_bytes import bytes_per_token
from sublim_cli.models.chat import Tokenizer
from sublim_cli.preference.forms import FormMatcher, plain_forms
from sublim_cli.preference.token_table import TokenTable, item_of
from sublim_cli.recipe.questions import Item

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenMasks:
    """Masks of the tokens that decide an answer, on a device; shared by all models of one tokenizer."""

    table: TokenTable
    plain_forms: list[list[tuple[int, ...]]]
    """The token sequences of every item's plain forms."""
    device: "torch.device"
    masks: "list[torch.Tensor]" = field(default_factory=list)
    """Each [vocabulary] of ones and zeros. States share masks, such as that of all tokens that end a word."""
    _mask_index: dict[bytes, int] = field(default_factory=dict)
    _by_state: dict[tuple[int, bool], tuple[Ints, Ints]] = field(default_factory=dict)
    _children: dict[int, tuple[int, Ints, Ints]] = field(default_factory=dict)

    def masses(
        self, probs: NextTokenProbs, states: Ints, last: NDArray[np.bool_]
    ) -> tuple[Ints, Ints, Floats]:
        """How much next-token probability leaves each node's answer undecided, or names each item.

        Args:
            probs: the next-token distributions of the nodes.
            states: the state of each node's text in `table`.
            last: whether the answer ends with the next token.

        Returns:
            Node, item (-1: the answer stays undecided) and probability of each possible outcome.
        """
        import torch

        keys, group = np.unique(2 * states + last, return_inverse=True)
        outcomes = [self._outcomes(int(key) // 2, bool(key % 2)) for key in keys]
        used, mask = np.unique(np.concatenate([masks for masks, _ in outcomes]), return_inverse=True)
        sums = probs.sums(torch.stack([self.masks[i] for i in used])).double().cpu().numpy()
        counts = np.array([len(masks) for masks, _ in outcomes])
        per_node = counts[group]
        node = np.repeat(np.arange(len(states)), per_node)
        # Where a node's outcomes begin among all outcomes, less where they begin among the results.
        offset = (np.cumsum(counts) - counts)[group] - (np.cumsum(per_node) - per_node)
        outcome = np.arange(len(node)) + np.repeat(offset, per_node)
        return node, np.concatenate([items for _, items in outcomes])[outcome], sums[mask[outcome], node]

    def children(self, state: int) -> "tuple[torch.Tensor, Ints, Ints]":
        """The tokens that leave an answer undecided in `state`.

        Returns:
            A mask [vocabulary] of those outside of spellings; those that lead into a spelling, and the state
            after each.
        """
        if state not in self._children:
            after = self.table.after(state)
            states = [int(s) for s in np.unique(after) if s >= 0 and self.table.is_open_form(int(s))]
            in_form = np.isin(after, states)
            outside = self._index_of((after >= 0) & ~in_form)
            tokens = np.flatnonzero(in_form)
            self._children[state] = (outside, tokens, after[tokens].astype(np.int64))
        outside, tokens, states_after = self._children[state]
        return self.masks[outside], tokens, states_after

    def _outcomes(self, state: int, last: bool) -> tuple[Ints, Ints]:
        """Indices in `masks` of those that matter in `state`, and the item that the tokens of each name.

        The first leaves the answer undecided, item -1. With `last` the answer ends with the next token.
        """
        if (state, last) not in self._by_state:
            row = self.table.after(state)
            if last:
                values, index = np.unique(row, return_inverse=True)
                row = np.array([self.table.ended(int(v)) if v >= 0 else v for v in values])[index]
            items = sorted({item for v in np.unique(row).tolist() if (item := item_of(v)) is not None})
            masks = [self._index_of(row >= 0), *(self._index_of(row == -2 - item) for item in items)]
            self._by_state[state, last] = np.array(masks), np.array([-1, *items])
        return self._by_state[state, last]

    def _index_of(self, tokens: NDArray[np.bool_]) -> int:
        """The index of this mask in `masks`, which it is added to if it is new."""
        import torch

        key = np.packbits(tokens).tobytes()
        if key not in self._mask_index:
            self._mask_index[key] = len(self.masks)
            self.masks.append(torch.from_numpy(tokens).float().to(self.device))
        return self._mask_index[key]


@lru_cache(maxsize=8)
def token_masks(
    tokenizer: Tokenizer,
    vocabulary: int,
    stop_tokens: frozenset[int],
    items: tuple[Item, ...],
    device: "torch.device",
) -> TokenMasks:
    """The masks for `items` in a vocabulary of that size, of which `stop_tokens` end an answer."""
    # Some tokenizers encode a name alike with and without a space before it: each sequence counts once.
    forms = [
        sorted({tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in plain_forms(item)})
        for item in items
    ]
    table = TokenTable(FormMatcher(items), bytes_per_token(tokenizer, vocabulary), stop_tokens)
    return TokenMasks(table, forms, device)
