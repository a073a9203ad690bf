"""Keys and values of rows that begin and end at different times, and attention that reads them as they are.

Rows are aligned at their latest token, as in a batch padded on the left, so models build their masks from an
ordinary attention mask, sliding windows included. New tokens are written in place, a row that ends leaves its
slot to another, and nothing is copied in between. Imported inside functions, since it imports torch and
transformers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sublim_cli.models.prefix import CacheLayers

GROWTH = 64
"""Columns that are added when a cache is full."""

GROUPED = "sdpa_grouped_heads"
"""The name under which transformers finds `grouped_attention`."""


class RowLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer: buffers [slots, heads, columns, width], of which columns `start` to `end` are in use."""

    def __init__(self, slots: int, like: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.start = self.end = 0
        self.lazy_initialization(*like)
        self.keys, self.values = (
            states.new_zeros(slots, states.shape[1], 0, states.shape[3]) for states in like
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens to the first rows; returns the keys and values in use."""
        rows, tokens = key_states.shape[0], key_states.shape[2]
        self.make_room(self.start, tokens)
        self.keys[:rows, :, self.end : self.end + tokens] = key_states
        self.values[:rows, :, self.end : self.end + tokens] = value_states
        self.end += tokens
        return self.keys[:rows, :, self.start : self.end], self.values[:rows, :, self.start : self.end]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.end - self.start

    def make_room(self, before: int, behind: int) -> None:
        """Move the columns in use so that `before` columns precede them and `behind` follow."""
        used = self.end - self.start
        columns = self.keys.shape[2]
        if self.start >= before and self.end + behind <= columns:
            return
        before = 0 if before == self.start else before  # then only the columns behind are wanted
        needed = before + used + behind
        if needed > columns or self.start < before + GROWTH // 2:
            # Zeros, because attention multiplies masked columns by 0, which does not remove a NaN.
            self.keys, self.values = (
                self._moved(
                    states, before, states.new_zeros(*states.shape[:2], needed + GROWTH, states.shape[3])
                )
                for states in (self.keys, self.values)
            )
        else:
            self.keys, self.values = (
                self._moved(states.clone(), before, states) for states in (self.keys, self.values)
            )
        self.start, self.end = before, before + used

    def _moved(self, source: torch.Tensor, before: int, target: torch.Tensor) -> torch.Tensor:
        target[:, :, before : before + self.end - self.start] = source[:, :, self.start : self.end]
        return target


class RowCache:
    """The layers of a model for up to `slots` rows; the first `len(lengths)` slots are in use."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.lengths: list[int] = []
        """Tokens of each row."""
        self.cache = DynamicCache()
        """What the model is given as `past_key_values`."""

    def add(self, layers: CacheLayers, source: Sequence[int], lengths: Sequence[int]) -> None:
        """Add a row for each entry of `source`: the first `lengths[i]` tokens of that row of `layers`."""
        if not self.cache.layers:
            self.cache.layers = [RowLayer(self.slots, like) for like in layers]
        longest, first = max(lengths), len(self.lengths)
        for layer, states in zip(self.cache.layers, layers, strict=True):
            if not self.lengths:
                layer.start = layer.end = 0
            if longest > layer.end:
                layer.make_room(layer.start + longest - layer.end, 0)
                layer.end = max(layer.end, longest)
            for slot, (i, length) in enumerate(zip(source, lengths, strict=True), start=first):
                for buffer, new in zip((layer.keys, layer.values), states, strict=True):
                    buffer[slot, :, layer.end - length : layer.end] = new[i, :, :length]
        self.lengths += lengths
        self._trim()

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep these rows of the slots in use; returns the row that is in each of the first slots now."""
        order = list(range(len(rows)))
        moved = [row for row in rows if row >= len(rows)]
        free = sorted(set(order) - set(rows))
        for slot, row in zip(free, moved, strict=True):
            order[slot] = row
        for layer in self.cache.layers if moved else ():
            for buffer in (layer.keys, layer.values):
                buffer[free, :, layer.start : layer.end] = buffer[moved, :, layer.start : layer.end]
        self.lengths = [self.lengths[row] for row in order]
        self._trim()
        return order

    def advance(self) -> None:
        """Note that the model has appended a token to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def inputs(self, tokens: Sequence[int], device: torch.device) -> dict[str, Any]:
        """The arguments of a model's call that appends a token to every row."""
        lengths = torch.tensor(self.lengths, device=device)
        columns = torch.arange(max(self.lengths), -1, -1, device=device)
        return {
            "input_ids": torch.tensor(tokens, device=device)[:, None],
            "attention_mask": (columns <= lengths[:, None]).long(),
            "position_ids": lengths[:, None],
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }

    def _trim(self) -> None:
        for layer in self.cache.layers:
            layer.start = layer.end - max(self.lengths, default=0)


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The `sdpa` attention of transformers, without a copy of the keys and values for each query head.

    The query heads [rows, heads, tokens, width] that share keys are computed as further queries of one head,
    each with its own row of the mask [rows, 1, tokens, keys].
    """
    rows, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    shared = heads // kv_heads
    masked_alike = tokens == 1 if attention_mask is None else attention_mask.shape[1] == 1
    if shared == 1 or not masked_alike or options.get("position_bias") is not None:
        answer, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return answer, None
    if attention_mask is not None:
        attention_mask = attention_mask.repeat(1, 1, shared, 1)
    answer = scaled_dot_product_attention(
        query.reshape(rows, kv_heads, shared * tokens, width),
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
    )
    return answer.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def without_repeated_heads(model: Any) -> Iterator[None]:
    """`grouped_attention` in a model that uses transformers' `sdpa`; other models are unchanged.

    So are those that look the name up themselves, such as Falcon, whose masks differ by it.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or not model.is_backend_compatible():
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
