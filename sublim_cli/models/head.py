"""The output head apart from the layers below it, so that logits need not all be there at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sublim_cli.models.gate import body, language_model
from sublim_cli.models.load import Model

if TYPE_CHECKING:
    import torch

Head = Callable[["torch.Tensor"], "torch.Tensor"]
"""From states [places, width] to logits [places, vocabulary]."""


def with_states(model: Model, **inputs: Any) -> "tuple[Any, torch.Tensor]":
    """A forward pass's output, and what its head was given: [rows, tokens, width]."""
    seen: list[torch.Tensor] = []
    hook = body(model).register_forward_hook(lambda module, args, out: seen.append(out.last_hidden_state))
    try:
        out = model(**inputs)
    finally:
        hook.remove()
    return out, seen[-1]


def head_of(model: Model, states: "torch.Tensor", logits: "torch.Tensor") -> Head | None:
    """The head, or None where logits are more than its output: some models cap or scale them.

    It is told by trying: `logits` are what the model made of `states`, to the last bit.
    """
    head: Head | None = language_model(model).get_output_embeddings()
    return head if head is not None and head(states).to(logits).equal(logits) else None
