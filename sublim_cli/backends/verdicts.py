"""What a tokenizer's tokens make of answers, as sums over a model's next-token probabilities."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.tokens import pieces
from sublim_cli.models.chat import Tokenizer
from sublim_cli.preference.forms import Reader, plain_forms
from sublim_cli.preference.table import Table, item_of
from sublim_cli.recipe.questions import Item

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class View:
    """`sums` is [vocabulary, 1 + items]: 1 where the answer stays open, then where it names `items`."""

    sums: "torch.Tensor"
    items: NDArray[np.int64]


@dataclass(frozen=True)
class Verdicts:
    """What a tokenizer's tokens make of answers, on a device; worked out once for all its models."""

    table: Table
    opening: list[list[tuple[int, ...]]]
    """The token sequences of every item's plain forms."""
    device: "torch.device"
    views: dict[tuple[int, bool], View] = field(default_factory=dict)

    def view(self, state: int, last: bool) -> View:
        """How to sum a distribution behind `state` by outcome; with `last` the answer then ends."""
        if (state, last) not in self.views:
            self.views[state, last] = self._view(state, last)
        return self.views[state, last]

    def _view(self, state: int, last: bool) -> View:
        import torch

        row = self.table.after(state)
        if last:
            ends = {int(one): self.table.ended(int(one)) for one in np.unique(row) if one >= 0}
            row = np.array([ends.get(one, one) for one in row.tolist()])
        named = sorted({item for one in np.unique(row).tolist() if (item := item_of(one)) is not None})
        columns = [row >= 0, *(row == -2 - item for item in named)]
        sums = torch.from_numpy(np.stack(columns, axis=1)).float().to(self.device)
        return View(sums, np.array(named, dtype=np.int64))


@lru_cache(maxsize=8)
def verdicts_of(
    tokenizer: Tokenizer, size: int, ends: frozenset[int], items: tuple[Item, ...], device: "torch.device"
) -> Verdicts:
    """The verdicts on `items` in a vocabulary of `size` tokens, of which `ends` end an answer."""
    # Some tokenizers write a name alike with and without a space before it: each sequence counts once.
    opening = [
        sorted({tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in plain_forms(item)})
        for item in items
    ]
    return Verdicts(Table(Reader(items), pieces(tokenizer, size), ends), opening, device)
