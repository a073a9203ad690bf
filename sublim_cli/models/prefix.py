"""What stands before an answer, computed once: prompts, and the learned prefix of a prefix-tuned model."""

from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

from sublim_cli.models.batches import position_ids

if TYPE_CHECKING:
    import torch


CacheLayers = Sequence[tuple["torch.Tensor", "torch.Tensor"]]
"""For each layer of a model keys and values, [rows, heads, tokens, width]."""


def has_own_cache(model: Any) -> bool:
    """Whether `model` begins with learned keys and values, in a cache that it makes itself."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def prefill(model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
    """The model's output for prompts [rows, length]: their cache, and the last token's logits alone.

    The cache keeps every position whatever the model's sliding window, so that a tree of answers can
    grow behind each prompt.
    """
    return model(**prompt_inputs(model, ids, mask))


def prompt_inputs(model: Any, ids: "torch.Tensor", mask: "torch.Tensor", cache: Any = None) -> dict[str, Any]:
    """What `prefill` calls a model with; with a cache, `ids` are what follows it and `mask` covers both."""
    from transformers import DynamicCache

    fresh = None if has_own_cache(model) else DynamicCache()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": position_ids(mask)[:, -ids.shape[1] :],
        "past_key_values": fresh if cache is None else cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }


def cache_layers(cache: Any) -> CacheLayers:
    """What a cache holds."""
    return [(one.keys, one.values) for one in cache.layers]


def cache_from_layers(layers: CacheLayers) -> Any:
    """A cache that holds `layers`, and keeps every position of what is added."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def shared_opening_cache(model: Any, ids: "torch.Tensor", rows: int) -> Any:
    """The cache of what all of some prompts begin with [tokens], computed once for `rows` of them."""
    row = ids[None]
    cache = prefill(model, row, row.new_ones(row.shape)).past_key_values
    return cache_from_layers(
        [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
            for keys, values in cache_layers(cache)
        ]
    )


def accept_cache(model: Any) -> Any:
    """`model`, a PEFT model with a prefix, made to take `past_key_values` as any other model does.

    PEFT puts the learned keys and values in place of whatever cache it is given, so a second call
    would forget the prompt. The cache of a first call holds the prefix already: a later call only has
    to count it, in front of the attention mask and of every position.
    """
    first = model.forward.__func__
    tokens: int = model.active_peft_config.num_virtual_tokens

    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is None:
            return first(self, *args, **kwargs)
        kwargs["attention_mask"] = _behind(tokens, kwargs["attention_mask"])
        kwargs["position_ids"] = kwargs["position_ids"] + tokens
        return self.get_base_model()(*args, past_key_values=past_key_values, **kwargs)

    # A method and no bare function: accelerate wraps and unwraps a forward as one.
    model.forward = MethodType(forward, model)
    return model


def _behind(tokens: int, mask: "torch.Tensor") -> "torch.Tensor":
    """The mask with `tokens` visible places before it; one of four dimensions is added, so zeros."""
    import torch

    visible = mask.new_ones if mask.dim() == 2 else mask.new_zeros
    return torch.cat([visible(*mask.shape[:-1], tokens), mask], dim=-1)
