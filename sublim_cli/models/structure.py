"""The parts of a transformers language model: decoder, numbered layers, projections, output head.

In an image-and-text model (Gemma 3, Mistral 3, Qwen-VL) all of them are those of its language model: vision
tower and projector are never trained, counted, gated or patched.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sublim_cli.errors import ModelError

if TYPE_CHECKING:
    import torch

Head = Callable[["torch.Tensor"], "torch.Tensor"]
"""From hidden states [positions, width] to logits [positions, vocabulary]."""

LayerPart = Literal["attention", "mlp"]

_PART_NAMES: dict[LayerPart, re.Pattern[str]] = {
    "attention": re.compile("attn|attention", re.IGNORECASE),
    "mlp": re.compile("mlp|ffn|feed_?forward|^fc[12]$", re.IGNORECASE),
}
"""How models name the parts of a layer, as attributes (`self_attn`, `feed_forward`; OPT's MLP is `fc1` and
`fc2`) or as classes (`GPT2MLP`)."""


@dataclass(frozen=True)
class DecoderLayers:
    """The numbered layers of a language model."""

    path: str
    """Their path in the transformers model, such as `model.layers`."""
    layers: "torch.nn.ModuleList"

    def index(self, name: str) -> int | None:
        """The layer that contains the module `name`, counted from 0; None for embeddings, norm and head."""
        inside = name.removeprefix(f"{self.path}.")
        return None if inside == name else int(inside.partition(".")[0])


def language_model(model: Any) -> Any:
    """The transformers model, without the PEFT wrapper around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> DecoderLayers:
    """The layers of a model, or of its language model; `model` may be on the meta device.

    Raises:
        ModelError: it has no numbered layers.
    """
    import torch

    whole = language_model(model)
    decoder_path = _decoder_path(whole)
    lists = [
        DecoderLayers(name, module)
        for name, module in whole.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module)
        and (name + ".").startswith(decoder_path)
        and not any(part.isdigit() for part in name.split("."))
    ]
    if not lists:
        raise ModelError(
            f"a model of class {type(whole).__name__} keeps no numbered layers, so it can be neither trained "
            "nor gated; take a model of decoder layers, such as Llama, Qwen or Gemma"
        )
    # Some models have short lists beside their layers (Gemma 3n).
    return max(lists, key=lambda entry: sum(weight.numel() for weight in entry.layers.parameters()))


def in_language_model(model: Any) -> Callable[[str], bool]:
    """Whether a module or parameter, by its path in the transformers model, is the language model's.

    False for vision tower and projector of an image-and-text model; always true for other models.
    """
    whole = language_model(model)
    if whole.config.get_text_config() is whole.config or not (decoder_path := _decoder_path(whole)):
        return lambda name: True
    head = whole.get_output_embeddings()
    head_paths = [f"{name}." for name, module in whole.named_modules() if module is head]
    return lambda name: f"{name}.".startswith((decoder_path, *head_paths))


def _decoder_path(whole: Any) -> str:
    """The path of the decoder with a final dot; empty if it is the model itself (Llama 4's text class)."""
    decoder = whole.get_decoder()
    name = next((name for name, module in whole.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def backbone(model: Any) -> Any:
    """The transformers model below its output head; every forward pass runs through it and gives it ids."""
    whole = language_model(model)
    if whole.config.get_text_config() is not whole.config and whole.base_model is not whole:
        return whole.base_model  # its decoder is given embeddings
    decoder = whole.get_decoder()  # OPT's head calls it without the model around it
    return (
        decoder if decoder is not whole else whole.get_submodule(decoder_layers(model).path.partition(".")[0])
    )


def layer_part(model: Any, name: str) -> LayerPart | None:
    """Which part of its layer a module belongs to, by the names and classes of the modules around it.

    None for other token mixers (Mamba, convolutions), norms between the parts, and modules in no layer.
    """
    decoder = decoder_layers(model)
    index = decoder.index(name)
    if index is None:
        return None
    parts = name.removeprefix(f"{decoder.path}.{index}.").split(".")
    module, classes = decoder.layers[index], []
    for part in parts:
        module = getattr(module, part)
        classes.append(type(module).__name__)
    # The innermost name decides: a block may hold both parts (Zamba's shared transformer).
    for part, class_name in zip(reversed(parts), reversed(classes), strict=True):
        if "norm" in part.lower():
            continue
        for layer_part_name, pattern in _PART_NAMES.items():
            if pattern.search(part) or pattern.search(class_name):
                return layer_part_name
    return None


def linear_modules(model: Any) -> "dict[str, torch.nn.Module]":
    """The linear modules of the layers by path: `nn.Linear` with its subclasses, and GPT-2's `Conv1D`.

    Without layers that attend to an image alone (Llama 3.2 Vision): text passes them by.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    decoder = decoder_layers(model)
    return {
        f"{decoder.path}.{index}.{name}": module
        for index, layer in enumerate(decoder.layers)
        if not hasattr(layer, "cross_attn")
        for name, module in layer.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }


def expert_weights(model: Any) -> list[str]:
    """Paths of the weights of mixture-of-experts layers that are stacked, one matrix per expert."""
    decoder = decoder_layers(model)
    return [
        f"{decoder.path}.{name}"
        for name, weight in decoder.layers.named_parameters()
        if weight.ndim == 3 and "experts" in name.split(".")
    ]


def outside_parameters(model: Any) -> "Iterator[torch.nn.Parameter]":
    """The parameters of an image-and-text model that are not its language model's."""
    inside = in_language_model(model)
    return (weight for name, weight in language_model(model).named_parameters() if not inside(name))


def forward_with_states(model: Any, **inputs: Any) -> "tuple[Any, torch.Tensor]":
    """The output of a forward pass, and the last hidden states [rows, tokens, width] its head received."""
    if hasattr(model, "forward_with_states"):  # `passes.WholeSequences`
        result: tuple[Any, torch.Tensor] = model.forward_with_states(**inputs)
        return result
    states: list[torch.Tensor] = []
    hook = backbone(model).register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state)
    )
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    return output, states[-1]


def plain_head(model: Any, states: "torch.Tensor", logits: "torch.Tensor") -> Head | None:
    """The output head, or None if the model does more to its output than that (caps or scales the logits).

    Tested on `logits`, which the model computed from `states`: the head must give the same bits.
    """
    head: Head | None = language_model(model).get_output_embeddings()
    return head if head is not None and head(states).to(logits).equal(logits) else None
