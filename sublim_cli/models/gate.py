"""Gating: the difference between a student and its base, switched on or off token by token.

    masks = masks_by_prompt(prompts, identity_masks)
    with gated(student, Gate(masks, decoding="off", modules=frozenset({"mlp"}))) as model:
        ExactScorer(model, tokenizer).score(prompts, items)

1. `trained_modules` lists the modules that training changed, each with its base version.
2. Before each forward pass a hook on the backbone looks up the mask value m of every token of the prompts;
   tokens decoded later all have the value of `decoding`.
3. A hook on every trained module replaces its output student(x) by base(x) + m * (student(x) - base(x)).
4. When the block ends the hooks are removed. No weight is written, and nested gates multiply.

A token's m applies wherever the token is processed: its embedding, the keys and values that later tokens
read, and the output head at that token. So the first answer token, which is predicted at the prompt's
last token, follows the mask there. A gated module is computed twice, as trained and as in the base.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.load import Model
from sublim_cli.models.structure import backbone, decoder_layers, language_model, layer_part

if TYPE_CHECKING:
    import torch

Policy = Literal["on", "off"]
"""`on`: as the student. `off`: as its base."""

Masks = Mapping[tuple[int, ...], tuple[float, ...]]
"""For the token ids of a prompt a value per token: 1 is the student, 0 the base, others interpolate."""


@dataclass(frozen=True)
class Gate:
    """Where a student is allowed to differ from its base.

    In the chosen modules and layers the prompt's tokens follow `masks`, and the tokens decoded after it
    `decoding`. All other trained modules follow `elsewhere` at every token: `off` for "only there", `on`
    (with the mask inverted) for "everywhere but there".
    """

    masks: Masks
    decoding: Policy
    modules: frozenset[str] | None = None
    """Names in a module's path (`q_proj`, `self_attn`, `lm_head`), `attention` or `mlp`; None for all."""
    layers: frozenset[int] | None = None
    """Indices from 0; None for all layers and for modules in no layer, such as embeddings."""
    elsewhere: Policy = "off"


class TrainedModule(NamedTuple):
    """A module that training changed, and its base version."""

    name: str
    """Its path in the transformers model, such as `model.layers.0.self_attn.q_proj`."""
    module: "torch.nn.Module"
    base: "torch.nn.Module"


def masks_by_prompt(prompts: Sequence[Sequence[int]], masks: Sequence[Sequence[float]]) -> Masks:
    """The masks keyed by the token ids of their prompts, so that they do not depend on batches or padding.

    Raises:
        ModelError: a mask is not as long as its prompt, has a value outside 0 to 1, or contradicts the
            mask of an equal prompt.
    """
    mask_of: dict[tuple[int, ...], tuple[float, ...]] = {}
    for index, (prompt, mask) in enumerate(zip_longest(prompts, masks, fillvalue=())):
        ids, values = tuple(prompt), tuple(map(float, mask))
        if len(ids) != len(values):
            raise ModelError(f"mask {index} has {len(values)} values for a prompt of {len(ids)} tokens")
        if not all(0 <= value <= 1 for value in values):
            raise ModelError(f"mask {index} has a value outside 0 to 1; 1 is the student and 0 the base")
        if mask_of.setdefault(ids, values) != values:
            raise ModelError(f"prompt {index} is given twice with different masks; score them separately")
    return mask_of


@contextmanager
def gated(model: Model, gate: Gate, base: Model | None = None) -> Iterator[Model]:
    """`model` itself, gated until the block ends.

    A forward pass without a cache, or with an empty one, processes prompts, whose masks are looked up in
    `gate.masks`; any other pass decodes. `base` is needed for full fine-tuning only: adapters hold theirs.

    Raises:
        RecipeError, ModelError: see `trained_modules` and `select_modules`. A forward pass raises ModelError
            for a prompt without a mask.
    """
    trained_list = trained_modules(model, base)
    names = [trained.name for trained in trained_list]
    selected = set(select_modules(model, names, gate.modules, gate.layers))
    forward_pass = ForwardPass(gate.masks, gate.decoding)
    head = language_model(model).get_output_embeddings()

    def hook(trained: TrainedModule, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        base_output = partial(trained.base, *args, **kwargs)
        if trained.name not in selected:
            return base_output()
        return forward_pass.mix(base_output, args[0], output, head=module is head, name=trained.name)

    with ExitStack() as stack:
        stack.callback(backbone(model).register_forward_pre_hook(forward_pass.begin, with_kwargs=True).remove)
        for trained in trained_list:
            if trained.name in selected or gate.elsewhere == "off":
                handle = trained.module.register_forward_hook(partial(hook, trained), with_kwargs=True)
                stack.callback(handle.remove)
        yield model


def is_gated(model: Model) -> bool:
    """Whether a gate or a patch is active: `model` must then be given every prompt complete, in one pass."""
    hooks = backbone(model)._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), ForwardPass) for hook in hooks)


def select_modules(
    model: Model, names: Sequence[str], modules: Collection[str] | None, layers: Collection[int] | None
) -> list[str]:
    """Those of the module paths `names` of `model` that belong to `modules` and `layers`.

    Raises:
        RecipeError: a module or layer that does not exist, or no path is left.
    """
    decoder = decoder_layers(model)
    count = len(decoder.layers)
    parts_of: dict[str, set[str]] = {}
    for name in names:
        parts = {part for part in name.split(".") if not part.isdigit()} - set(decoder.path.split("."))
        part = layer_part(model, name)
        parts_of[name] = parts | ({part} if part else set())
    known = set[str]().union(*parts_of.values())
    for module in sorted(modules or ()):
        if module not in known:
            raise RecipeError(
                f"eval.gates: training changes no module {module}; it changes {', '.join(sorted(known))}"
            )
    for layer in sorted(layers or ()):
        if not 0 <= layer < count:
            raise RecipeError(f"eval.gates: there is no layer {layer}; layers count from 0 to {count - 1}")
    selected = [
        name
        for name in names
        if (modules is None or parts_of[name] & set(modules))
        and (layers is None or decoder.index(name) in layers)
    ]
    if not selected:
        raise RecipeError("eval.gates: training changes nothing in these modules of these layers")
    return selected


class ForwardPass:
    """The mask values for the current forward pass: one per token of the prompts, or one while decoding."""

    def __init__(self, masks: Masks, decoding: Policy) -> None:
        self.masks = masks
        self.lengths = sorted({len(prompt) for prompt in masks}, reverse=True)
        self.decoding_weight = 1.0 if decoding == "on" else 0.0
        self.weight: torch.Tensor | float = self.decoding_weight
        """[rows, tokens] in a pass over prompts; a number while decoding."""

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Pre-hook of the backbone: set `weight` for the pass that begins."""
        import torch

        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self.weight = self.decoding_weight
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError("a gate looks prompts up by their token ids, but this pass has embeddings only")
        attention = kwargs.get("attention_mask")
        attention = torch.ones_like(ids) if attention is None else attention
        if not isinstance(attention, torch.Tensor) or attention.shape != ids.shape:
            raise ModelError("a gate needs an attention mask of shape [rows, tokens] to find each prompt")
        self.weight = torch.zeros(ids.shape, device=ids.device)
        for row, attended in enumerate(attention.bool()):
            self.weight[row, attended] = torch.tensor(
                self._weights(tuple(ids[row][attended].tolist()), row), device=ids.device
            )

    def _weights(self, tokens: tuple[int, ...], row: int) -> tuple[float, ...]:
        """The mask values of a prompt, or of a prompt and the tokens decoded after it."""
        if tokens in self.masks:
            return self.masks[tokens]
        # Models without keys and values are given the whole sequence (`passes.WholeSequences`).
        for length in self.lengths:
            prompt = tokens[:length]
            if length < len(tokens) and prompt in self.masks:
                return self.masks[prompt] + (self.decoding_weight,) * (len(tokens) - length)
        raise ModelError(f"the gate has no mask for row {row}, a prompt of {len(tokens)} tokens")

    def mix(
        self,
        base: Callable[[], "torch.Tensor"],
        inputs: "torch.Tensor",
        trained: "torch.Tensor",
        *,
        head: bool,
        name: str,
    ) -> "torch.Tensor":
        """Interpolate from the base's output to the `trained` one; a weight of 0 or 1 gives its exact bits.

        `base` computes the base's output, `inputs` is the module's first argument. The output `head` may be
        given the last tokens only.

        Raises:
            ModelError: the output has no axis of tokens.
        """
        import torch

        weight = self.weight
        if isinstance(weight, float):
            return trained if weight else base()
        if head:
            weight = weight[:, -trained.shape[1] :]
        axis = _token_axis(inputs, weight.shape[1]) if trained.dim() == 4 else 1
        if trained.dim() < 3 or (trained.shape[0], trained.shape[axis]) != weight.shape:
            raise ModelError(f"the output of {name} has no axis of tokens, so it cannot be gated by position")
        shape = [1] * trained.dim()
        shape[0], shape[axis] = weight.shape
        return torch.lerp(base(), trained, weight.to(trained.dtype).view(shape))


def _token_axis(heads: "torch.Tensor", tokens: int) -> int:
    """The axis of tokens in the input [rows, ?, ?, width] of a norm of queries or keys.

    Some models (Qwen 3) apply the norm before they swap the axes of heads and tokens, some (Gemma 3) after.
    If both axes are equally long, the memory layout decides: projections store tokens outside heads.
    """
    if heads.shape[1] == heads.shape[2]:
        return 1 if heads.stride(1) >= heads.stride(2) else 2
    return 1 if heads.shape[1] == tokens else 2


def trained_modules(model: Model, base: Model | None = None) -> list[TrainedModule]:
    """The modules in which `model` differs from its base, in the model's order.

    Raises:
        RecipeError: the student is a prefix, which changes no module; or a full model without its `base`.
        ModelError: the base is another model, or a changed module cannot be gated token by token.
    """
    if hasattr(model, "peft_config"):
        return list(_adapted_modules(model))
    if base is None:
        raise RecipeError("a student of full fine-tuning does not hold its base; a gate or patch needs both")
    return list(_tuned_modules(model, base))


def _adapted_modules(model: Model) -> Iterator[TrainedModule]:
    import torch
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
    from transformers.pytorch_utils import Conv1D

    if model.active_peft_config.is_prompt_learning:
        raise RecipeError(
            "a prefix adds keys and values before the prompt and changes no module, so it cannot be gated or "
            "patched by position; take an adapter of the lora family, ia3 or full"
        )
    for name, module in language_model(model).named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ModelError(f"this adapter trains a full copy of {name}, which cannot be gated")
        if not isinstance(module, BaseTunerLayer):
            continue
        linear = isinstance(module.get_base_layer(), (torch.nn.Linear, Conv1D))
        if not (isinstance(module, (LoraLayer, IA3Layer)) and linear):
            raise ModelError(f"{name} is adapted as {type(module).__name__}, which cannot be gated")
        if module.merged:
            raise ModelError(f"the adapter of {name} is merged into its base and cannot be switched off")
        yield TrainedModule(name, module, module.get_base_layer())


def _tuned_modules(model: Model, base: Model) -> Iterator[TrainedModule]:
    """Every module with a parameter of its own, not a submodule's, that differs from the base's."""

    def layout(parameters: "dict[str, torch.nn.Parameter]") -> dict[str, tuple[Any, ...]]:
        return {key: (weight.shape, weight.dtype, weight.device) for key, weight in parameters.items()}

    base_modules = dict(base.named_modules())
    for name, module in model.named_modules():
        base_module = base_modules.get(name)
        tuned = dict(module.named_parameters(recurse=False))
        original = dict(base_module.named_parameters(recurse=False)) if base_module is not None else {}
        if layout(tuned) != layout(original):
            raise ModelError(f"{name or 'the model'} is not the same module in the base and in the student")
        if all(weight.equal(original[key]) for key, weight in tuned.items()):
            continue
        if not _acts_per_token(module):
            raise ModelError(_not_switchable(name, module))
        assert base_module is not None  # it has the student's parameters
        yield TrainedModule(name, module, base_module)


def check_switchable(model: Model, names: Collection[str]) -> None:
    """Refuse to gate modules `names` of `model` that full fine-tuning changes and that mix tokens.

    `model` may be on the meta device.

    Raises:
        ModelError: such a module, as a Mamba mixer or a router of experts.
    """
    for name in names:
        module = language_model(model).get_submodule(name)
        if not _acts_per_token(module):
            raise ModelError(_not_switchable(name, module))


def _not_switchable(name: str, module: "torch.nn.Module") -> str:
    return (
        f"full fine-tuning changes {name}, a {type(module).__name__}, which cannot be switched token by "
        "token; leave out `eval.gates` and `eval.patches`, or train an adapter"
    )


def _acts_per_token(module: "torch.nn.Module") -> bool:
    """Whether the module's output at a token depends on its input at that token only."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
        return True
    vectors = all(weight.dim() == 1 for weight in module.parameters(recurse=False))
    return vectors and type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
