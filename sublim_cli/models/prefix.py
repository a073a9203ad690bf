"""Keys and values of prompts, computed once and reused for every answer; also for prefix-tuned models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sublim_cli.models.batches import position_ids

if TYPE_CHECKING:
    import torch

CacheLayers = Sequence[tuple["torch.Tensor", "torch.Tensor"]]
"""Keys and values of each layer of a model, [rows, heads, tokens, width]."""


def has_own_cache(model: Any) -> bool:
    """Whether `model` starts with learned keys and values, in a cache that it creates itself."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def prefill(model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
    """The model's output for prompts [rows, length]: their cache, and the logits at the last token only.

    The cache keeps all positions, even if the model has a sliding window, so that a tree of answers can
    continue each prompt.
    """
    return model(**prompt_inputs(model, ids, mask))


def prompt_inputs(model: Any, ids: "torch.Tensor", mask: "torch.Tensor", cache: Any = None) -> dict[str, Any]:
    """The arguments of `prefill`'s call. With a `cache`, `ids` continue it and `mask` covers both."""
    from transformers import DynamicCache

    if cache is None and not has_own_cache(model):
        cache = DynamicCache()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": position_ids(mask)[:, -ids.shape[1] :],
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }


def cache_layers(cache: Any) -> CacheLayers:
    """The keys and values of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_from_layers(layers: CacheLayers) -> Any:
    """A cache of `layers` that keeps all positions that are added."""
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
    """The cache of the tokens `ids` [tokens] that `rows` prompts begin with, computed once for all."""
    row = ids[None]
    cache = prefill(model, row, row.new_ones(row.shape)).past_key_values
    return cache_from_layers(
        [
            (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
            for keys, values in cache_layers(cache)
        ]
    )


def accept_cache(model: Any) -> Any:
    """`model`, a PEFT model with a prefix, changed to accept `past_key_values` as other models do.

    PEFT replaces any cache that it is given by the learned keys and values, so a second call would lose
    the prompt. The cache of a first call includes the prefix, so a later call goes to the base model,
    with the prefix's tokens added to the attention mask and to the positions.
    """
    peft_class = type(model)
    tokens: int = model.active_peft_config.num_virtual_tokens

    def with_prefix(mask: "torch.Tensor") -> "torch.Tensor":
        import torch

        # A mask of two dimensions is 1 where a token is visible; one of four is added to the scores.
        visible = mask.new_ones if mask.dim() == 2 else mask.new_zeros
        return torch.cat([visible(*mask.shape[:-1], tokens), mask], dim=-1)

    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is None:
            return peft_class.forward(self, *args, **kwargs)
        kwargs["attention_mask"] = with_prefix(kwargs["attention_mask"])
        kwargs["position_ids"] = kwargs["position_ids"] + tokens
        return self.get_base_model()(*args, past_key_values=past_key_values, **kwargs)

    # Not bound to the model, which would then hold itself and outlive its last use.
    model.__class__ = type(peft_class.__name__, (peft_class,), {"forward": forward})
    return model
