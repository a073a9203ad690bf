"""Patching: activations of the student's run put into a run of its base, at chosen tokens.

    masks = by_prompt(prompts, identity_tokens)
    patch = Patch(masks, kinds=frozenset({"mlp"}), decoding="off", layers=frozenset({0, 1}))
    with patched(student, patch) as model:
        ExactScorer(model, tokenizer).score(prompts, items)

Inside the block the model is the base, every module that training changed being computed as the base has
it. Each pass that patches is preceded by the student's own run over the same tokens, from which the
activations are taken. As with gates, hooks do it, and nothing is left behind.

A patch stands on the path of one pass. The keys and values of a patched token are the base's, computed
from patched states, so with every residual of a prompt patched and `decoding="off"` the first answer
token is the student's and the later ones are between the two.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.gate import ForwardPass, Masks, Policy, TrainedModule, trained_modules
from sublim_cli.models.load import Model
from sublim_cli.models.structure import backbone, language_model

if TYPE_CHECKING:
    import torch

Kind = Literal["residual", "attention", "mlp"]
"""`residual`: what a layer hands to the next. `attention`, `mlp`: what that module of it gives, before a
norm that some models put behind it and before it is added to the residual stream."""

MODULES: dict[Kind, str] = {"attention": "self_attn", "mlp": "mlp"}
"""Where a layer keeps them, in the Llama family and those built like it (Qwen, Gemma, Mistral)."""


@dataclass(frozen=True)
class Patch:
    """What is taken from the student's run: `kinds` of activations of `layers`, at the tokens of `masks`.

    `decoding` says whether the tokens decoded after the prompt are patched too. A value between 0 and 1
    mixes the two runs' activations.
    """

    masks: Masks
    kinds: frozenset[Kind]
    decoding: Policy
    layers: frozenset[int] | None = None
    """Numbers from 0; None for all."""


@contextmanager
def patched(model: Model, patch: Patch, base: Model | None = None) -> Iterator[Model]:
    """`model` itself, turned into its patched base as long as the block runs.

    `base` is needed for full fine-tuning, whose student holds no base. For passes see `gate.gated`.

    Raises:
        RecipeError: an unknown layer or kind, or none at all; or as `gate.trained_modules`.
        ModelError: the model keeps its layers elsewhere; or as `gate.trained_modules`; and, in a pass, a
            prompt that has no mask.
    """
    found = trained_modules(model, base)
    sites_of = patched_modules(model, patch.kinds, patch.layers)
    run = _Run(backbone(model), patch)
    with ExitStack() as stack:
        stack.callback(run.body.register_forward_pre_hook(run.begin, with_kwargs=True).remove)
        stack.callback(run.body.register_forward_hook(run.end).remove)
        for site in found:
            stack.callback(site.module.register_forward_hook(run.switch(site), with_kwargs=True).remove)
        for name, module in sites_of.items():
            stack.callback(module.register_forward_hook(run.exchange(name)).remove)
        yield model


class _Run(ForwardPass):
    """The two runs of a pass: the student's, in which activations are taken, then its base's."""

    def __init__(self, body: "torch.nn.Module", patch: Patch) -> None:
        super().__init__(patch.masks, patch.decoding)
        self.body = body
        self.follow = patch.decoding == "on"
        """Whether the student's run goes on while decoding; its cache then travels with the base's."""
        self.student = False
        self.taken: dict[str, torch.Tensor] = {}
        self.behind: list[Any] = []
        """The student's layers of the cache, from its run to the end of the base's."""

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the base's pass: the student's over the same tokens."""
        if self.student:
            return
        super().begin(module, args, kwargs)
        if isinstance(self.weight, float) and not self.follow:
            return
        cache = self._own_cache(kwargs.get("past_key_values"))
        self.student = True
        try:
            self.body(*args, **{**kwargs, "past_key_values": cache, "use_cache": self.follow})
        finally:
            self.student = False
        self.behind = cache.layers if cache is not None else []

    def end(self, module: Any, args: Any, output: Any) -> None:
        """After the base's pass: nothing is kept but what decoding will need, in the cache itself."""
        if self.student:
            return
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            # In one list, so that whoever picks rows of the cache picks the student's with them.
            cache.layers = [*cache.layers, *self.behind]
        self.taken, self.behind = {}, []

    def switch(self, site: TrainedModule) -> Callable[..., Any]:
        """A forward hook: trained in the student's run, as before training in the other."""

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            return output if self.student else site.base(*args, **kwargs)

        return hook

    def exchange(self, name: str) -> Callable[..., Any]:
        """A forward hook: take the activation in the student's run, put it into the other."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            own = output[0] if isinstance(output, tuple) else output
            if self.student:
                self.taken[name] = own
                return output
            if name not in self.taken:
                return output
            mixed = self.mix(lambda: own, own, self.taken[name], head=False, name=name)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return hook

    def _own_cache(self, given: Any) -> Any:
        """The student's cache, taken out of the one that is `given`, or a fresh one."""
        from transformers import DynamicCache

        if not self.follow:
            return None
        if given is None:
            return DynamicCache(config=self.body.config)
        if given.get_seq_length() == 0:
            return copy.deepcopy(given)
        own, half = copy.copy(given), len(given.layers) // 2
        own.layers, given.layers = given.layers[half:], given.layers[:half]
        return own


def patched_modules(
    model: Model, kinds: Collection[Kind], layers: Collection[int] | None
) -> "dict[str, torch.nn.Module]":
    """The modules whose outputs are patched, by name.

    Raises:
        RecipeError, ModelError: see `patched`.
    """
    found = getattr(language_model(model).get_decoder(), "layers", None)
    if found is None:
        raise ModelError("this model does not keep its layers as `layers`, so they cannot be patched")
    _check(kinds, layers, len(found))
    named: dict[str, torch.nn.Module] = {}
    for number in sorted(layers if layers is not None else range(len(found))):
        for kind in sorted(kinds):
            place = found[number] if kind == "residual" else getattr(found[number], MODULES[kind], None)
            if place is None:
                raise ModelError(f"layer {number} of this model has no {MODULES[kind]} to patch")
            named[f"{kind} of layer {number}"] = place
    return named


def _check(kinds: Collection[Kind], layers: Collection[int] | None, count: int) -> None:
    known = get_args(Kind)
    for kind in sorted(set(kinds).difference(known)):
        raise RecipeError(
            f"eval.patches: there is no kind {kind} of activation; choose from {', '.join(known)}"
        )
    for layer in sorted(layers or ()):
        if not 0 <= layer < count:
            raise RecipeError(f"eval.patches: there is no layer {layer}; layers count from 0 to {count - 1}")
    if not kinds or (layers is not None and not layers):
        raise RecipeError(
            f"eval.patches: name at least one layer and one kind of activation: {', '.join(known)}"
        )
