"""A prefix-tuned model that can go on from a cache, which PEFT's own forward begins anew."""

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
    """The mask [rows, length] with `tokens` visible places before it."""
    import torch

    return torch.cat([mask.new_ones(len(mask), tokens), mask], dim=1)
