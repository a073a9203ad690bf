"""Patching: activations of the student copied into a forward pass of its base, at chosen tokens.

    masks = masks_by_prompt(prompts, identity_masks)
    patch = Patch(masks, kinds=frozenset({"mlp"}), decoding="off", layers=frozenset({0, 1}))
    with patched(student, patch) as model:
        ExactScorer(model, tokenizer).score(prompts, items)

1. Inside the block every trained module computes as in the base (hooks, as for gates), so the model is
   the base.
2. Before each pass over prompts the student runs over the same tokens, and the outputs of the patched
   modules are recorded. With `decoding="on"` it also runs while decoding, on a cache of its own.
3. In the base's pass each patched module's output is moved to the recorded one by the mask's value m.

The keys and values that a patched token leaves in the cache are the base's, computed from patched states.
So with all residuals of a prompt patched and `decoding="off"`, the first answer token is the student's and
later tokens depend on both models.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.gate import ForwardPass, Masks, Policy, TrainedModule, trained_modules
from sublim_cli.models.load import Model
from sublim_cli.models.structure import backbone, decoder_layers, layer_part

if TYPE_CHECKING:
    import torch

Kind = Literal["residual", "attention", "mlp"]
"""`residual`: the output of a layer. `attention`, `mlp`: the output of that module of it, before a norm that
some models apply to it and before it is added to the residual stream."""


@dataclass(frozen=True)
class Patch:
    """Which activations are the student's: `kinds` of `layers`, at the tokens of `masks`.

    `decoding` says whether the tokens decoded after the prompt are patched too. A mask value between 0 and
    1 interpolates between base and student.
    """

    masks: Masks
    kinds: frozenset[Kind]
    decoding: Policy
    layers: frozenset[int] | None = None
    """Indices from 0; None for all."""


@contextmanager
def patched(model: Model, patch: Patch, base: Model | None = None) -> Iterator[Model]:
    """`model` itself, computing as its patched base until the block ends.

    `base` is needed for full fine-tuning only. For passes over prompts and decoding passes see `gate.gated`.

    Raises:
        RecipeError: an unknown layer; or see `gate.trained_modules`.
        ModelError: the model has no such layers or modules; or see `gate.trained_modules`; and, in a pass,
            a prompt without a mask.
    """
    trained_list = trained_modules(model, base)
    modules = patched_modules(model, patch.kinds, patch.layers)
    forward_pass = _PatchedPass(backbone(model), patch)
    with ExitStack() as stack:
        body = forward_pass.backbone
        stack.callback(body.register_forward_pre_hook(forward_pass.begin, with_kwargs=True).remove)
        stack.callback(body.register_forward_hook(forward_pass.end).remove)
        for trained in trained_list:
            hook = partial(forward_pass.compute_base, trained)
            stack.callback(trained.module.register_forward_hook(hook, with_kwargs=True).remove)
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(forward_pass.patch, name)).remove)
        yield model


class _PatchedPass(ForwardPass):
    """A forward pass of the base, preceded by one of the student in which activations are recorded."""

    def __init__(self, backbone: "torch.nn.Module", patch: Patch) -> None:
        super().__init__(patch.masks, patch.decoding)
        self.backbone = backbone
        self.patches_decoding = patch.decoding == "on"
        """Whether the student runs while decoding too; its cache is then stored in the base's."""
        self.student_runs = False
        self.recorded: dict[str, torch.Tensor] = {}
        self.student_layers: list[Any] = []
        """The student's cache layers, from the end of its pass to the end of the base's."""

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Pre-hook of the backbone: run the student over the same tokens first."""
        if self.student_runs:
            return
        super().begin(module, args, kwargs)
        if isinstance(self.weight, float) and not self.patches_decoding:
            return
        cache = None
        if kwargs.get("use_cache") is not False:  # else whole sequences are computed, and nothing is kept
            cache = self._student_cache(kwargs.get("past_key_values"))
            kwargs = {**kwargs, "past_key_values": cache, "use_cache": self.patches_decoding}
        self.student_runs = True
        try:
            self.backbone(*args, **kwargs)
        finally:
            self.student_runs = False
        self.student_layers = cache.layers if cache is not None else []

    def end(self, module: Any, args: Any, output: Any) -> None:
        """Hook of the backbone: drop the recordings, and append the student's cache to the base's."""
        if self.student_runs:
            return
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            # In one list of layers, so that code that selects rows of the cache selects the student's too.
            cache.layers = [*cache.layers, *self.student_layers]
        self.recorded, self.student_layers = {}, []

    def compute_base(self, trained: TrainedModule, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Hook of a trained module: compute it as in the base, except in the student's pass."""
        return output if self.student_runs else trained.base(*args, **kwargs)

    def patch(self, name: str, module: Any, args: Any, output: Any) -> Any:
        """Hook of a patched module: record its output in the student's pass, patch it in the base's."""
        states = output[0] if isinstance(output, tuple) else output
        if self.student_runs:
            self.recorded[name] = states
            return output
        if name not in self.recorded:
            return output
        mixed = self.mix(lambda: states, states, self.recorded[name], head=False, name=name)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    def _student_cache(self, cache: Any) -> Any:
        """The student's cache: new, or split off from the pass's `cache`, of which it is the second half."""
        from transformers import DynamicCache

        if not self.patches_decoding:
            return None
        if cache is None:
            return DynamicCache(config=self.backbone.config)
        if cache.get_seq_length() == 0:
            return copy.deepcopy(cache)
        student_cache, half = copy.copy(cache), len(cache.layers) // 2
        student_cache.layers, cache.layers = cache.layers[half:], cache.layers[:half]
        return student_cache


def patched_modules(
    model: Model, kinds: Collection[Kind], layers: Collection[int] | None
) -> "dict[str, torch.nn.Module]":
    """The modules whose outputs are patched, by a name for messages.

    Raises:
        RecipeError, ModelError: see `patched`.
    """
    model_layers = decoder_layers(model).layers
    count = len(model_layers)
    for layer in sorted(layers or ()):
        if not 0 <= layer < count:
            raise RecipeError(f"eval.patches: there is no layer {layer}; layers count from 0 to {count - 1}")
    modules: dict[str, torch.nn.Module] = {}
    for index in sorted(layers if layers is not None else range(count)):
        for kind in sorted(kinds):
            module = model_layers[index] if kind == "residual" else _layer_module(model, index, kind)
            modules[f"{kind} of layer {index}"] = module
    return modules


def _layer_module(model: Model, index: int, kind: Literal["attention", "mlp"]) -> "torch.nn.Module":
    """The module of a layer that computes its attention or its MLP.

    Raises:
        ModelError: it has none, or several.
    """
    decoder = decoder_layers(model)
    children = {
        name: child
        for name, child in decoder.layers[index].named_children()
        if next(child.children(), None) is not None
        and layer_part(model, f"{decoder.path}.{index}.{name}") == kind
    }
    if len(children) != 1:
        names = ", ".join(children or [name for name, _ in decoder.layers[index].named_children()])
        raise ModelError(
            f"layer {index} of this model has no single {kind} module to patch (it has {names}); patch "
            "`residual`"
        )
    return next(iter(children.values()))
