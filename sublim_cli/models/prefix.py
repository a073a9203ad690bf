"""What stands before an answer, computed once: prompts, and the learned prefix of a prefix-tuned model."""

from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

from sublim_cli.models.batches import positions

if TYPE_CHECKING:
    import torch


Layers = Sequence[tuple["torch.Tensor", "torch.Tensor"]]
"""For each layer of a model keys and values, [rows, heads, tokens, width]."""


def has_own_cache(model: Any) -> bool:
    """Whether `model` begins with learned keys and values, in a cache that it makes itself."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def prefill(model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
    """The model's output for prompts [rows, length]: their cache, and the last token's logits alone.

    The cache keeps every position whatever the model's sliding window, so that a tree of answers can
    grow behind each prompt.
    """
    from transformers import DynamicCache

    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        past_key_values=None if has_own_cache(model) else DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )


def layers_of(cache: Any) -> Layers:
    """What a cache holds."""
    return [(one.keys, one.values) for one in cache.layers]


def cache_of(layers: Layers) -> Any:
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


def continuing(model: Any) -> Any:
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
