"""The parts of a transformers causal language model: backbone, numbered layers, output head."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sublim_cli.models.load import Model

if TYPE_CHECKING:
    import torch

Head = Callable[["torch.Tensor"], "torch.Tensor"]
"""From hidden states [positions, width] to logits [positions, vocabulary]."""


def language_model(model: Model) -> Model:
    """The transformers model, without the PEFT wrapper around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def backbone(model: Model) -> Model:
    """The transformers model below its output head; every forward pass runs through it."""
    return language_model(model).base_model


def layer_count(model: Model) -> int:
    """How many layers a model has."""
    return int(language_model(model).config.get_text_config().num_hidden_layers)


def layer_index(name: str) -> int | None:
    """The index of the layer that contains a module, from its path; None for embeddings, norm and head."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def forward_with_states(model: Model, **inputs: Any) -> "tuple[Any, torch.Tensor]":
    """The output of a forward pass, and the last hidden states [rows, tokens, width] its head received."""
    states: list[torch.Tensor] = []
    hook = backbone(model).register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state)
    )
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    return output, states[-1]


def plain_head(model: Model, states: "torch.Tensor", logits: "torch.Tensor") -> Head | None:
    """The output head, or None if the model does more to its output than that (caps or scales the logits).

    Tested on `logits`, which the model computed from `states`: the head must give the same bits.
    """
    head: Head | None = language_model(model).get_output_embeddings()
    return head if head is not None and head(states).to(logits).equal(logits) else None
