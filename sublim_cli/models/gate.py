"""Gating: a student's difference from its base, weighed token by token, in chosen modules and layers.

    masks = by_prompt(prompts, identity_tokens)
    with gated(student, Gate(masks, decoding="off", modules=frozenset({"mlp"}))) as model:
        ExactScorer(model, tokenizer).score(prompts, items)

Every module that training changed gives `base(x) + m * (student(x) - base(x))`, where m is the value that
the mask has for the token x stands for. Nothing is written into the model: forward hooks do it, and they
are gone when the block is left. Gates inside gates multiply.

A token's value holds wherever the token is: for its embedding, for the keys and values it leaves to later
tokens, and for the output head, which reads the token's own state. So with tied embeddings one matrix
serves twice, each time by the token that stands there; the first token of an answer is drawn at the
prompt's last token and follows its mask.

The price: a gated module is computed twice, once as trained and once as the base has it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.load import Model
from sublim_cli.models.structure import backbone, language_model, layer_count, layer_index

if TYPE_CHECKING:
    import torch

Policy = Literal["on", "off"]
"""`on`: as the student was trained. `off`: as its base is."""

Masks = Mapping[tuple[int, ...], tuple[float, ...]]
"""For the token ids of a prompt one value a token: 1 is the student, 0 the base, between them a share."""

PARTS: dict[str, tuple[str, ...]] = {"attention": ("self_attn", "attn"), "mlp": ("mlp",)}
"""Names for a whole part of a layer, and what models call it."""


@dataclass(frozen=True)
class Gate:
    """Where a student differs from its base.

    In the chosen modules and layers the prompt's tokens follow `masks`, and the tokens decoded after it
    `decoding`. In all others every token, also of the prompt, follows `elsewhere`: `off` for "only
    there", `on` (with the mask turned over) for "everywhere but there".
    """

    masks: Masks
    decoding: Policy
    modules: frozenset[str] | None = None
    """Names in a module's path (`q_proj`, `self_attn`, `lm_head`) or of `PARTS`; None for all."""
    layers: frozenset[int] | None = None
    """Numbers from 0; None for all, and then also for what lies in no layer, such as embeddings."""
    elsewhere: Policy = "off"


class TrainedModule(NamedTuple):
    """A module that training changed, and what it was before."""

    name: str
    """Its path in the transformers model, such as `model.layers.0.self_attn.q_proj`."""
    module: "torch.nn.Module"
    base: "torch.nn.Module"


def masks_by_prompt(prompts: Sequence[Sequence[int]], masks: Sequence[Sequence[float]]) -> Masks:
    """The masks by the token ids they belong to, so that no batching or padding can misplace one.

    Raises:
        ModelError: a mask is not as long as its prompt, has a value outside 0 to 1, or contradicts the
            mask of an equal prompt.
    """
    found: dict[tuple[int, ...], tuple[float, ...]] = {}
    for number, (prompt, mask) in enumerate(zip_longest(prompts, masks, fillvalue=())):
        ids, values = tuple(prompt), tuple(map(float, mask))
        if len(ids) != len(values):
            raise ModelError(f"mask {number} has {len(values)} values for a prompt of {len(ids)} tokens")
        if not all(0 <= one <= 1 for one in values):
            raise ModelError(f"mask {number} has a value outside 0 to 1; 1 is the student and 0 the base")
        if found.setdefault(ids, values) != values:
            raise ModelError(f"prompt {number} stands here twice, with two masks; score them apart")
    return found


@contextmanager
def gated(model: Model, gate: Gate, base: Model | None = None) -> Iterator[Model]:
    """`model` itself, gated as long as the block runs.

    A forward pass on no cache, or an empty one, is the prompts': its rows are looked up in `gate.masks`.
    Any other pass decodes. `base` is needed for full fine-tuning, whose student holds no base.

    Raises:
        RecipeError, ModelError: see `trained_modules` and `select_trained`; and, in a pass, a prompt without
            a mask.
    """
    found = trained_modules(model, base)
    inside = {site.name for site in select_trained(model, found, gate.modules, gate.layers)}
    call = ForwardPass(gate.masks, gate.decoding)
    head = language_model(model).get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(backbone(model).register_forward_pre_hook(call.begin, with_kwargs=True).remove)
        for site in found:
            if site.name in inside:
                hook = _weighing(site, call, head=site.module is head)
            elif gate.elsewhere == "off":
                hook = base_hook(site)
            else:
                continue
            stack.callback(site.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield model


def trained_modules(model: Model, base: Model | None = None) -> list[TrainedModule]:
    """The modules in which `model` differs from its base, in the model's order.

    Raises:
        RecipeError: a prefix, which is no module's; or a full model without its `base`.
        ModelError: the base is another model, or a changed module does not treat tokens one by one.
    """
    if hasattr(model, "peft_config"):
        return list(_adapted(model))
    if base is None:
        raise RecipeError("a student of full fine-tuning does not hold its base; a gate or patch needs both")
    return list(_tuned(model, base))


def select_trained(
    model: Model,
    found: Sequence[TrainedModule],
    modules: Collection[str] | None,
    layers: Collection[int] | None,
) -> list[TrainedModule]:
    """Those sites that lie in `modules` and `layers`.

    Raises:
        RecipeError: a name or number that the student does not have, or no site is left.
    """
    inside = set(select_modules([site.name for site in found], layer_count(model), modules, layers))
    return [site for site in found if site.name in inside]


def select_modules(
    names: Sequence[str], count: int, modules: Collection[str] | None, layers: Collection[int] | None
) -> list[str]:
    """Those of the paths `names` that lie in `modules` and `layers`, of a model of `count` layers.

    Raises:
        RecipeError: a name or number that is not there, or none of them is left.
    """
    parts = {name: _parts(name) for name in names}
    known = set[str]().union(*parts.values())
    for name in sorted(modules or ()):
        if name not in known:
            raise RecipeError(
                f"eval.gates: training changes no module {name}; it changes {', '.join(sorted(known))}"
            )
    for layer in sorted(layers or ()):
        if not 0 <= layer < count:
            raise RecipeError(f"eval.gates: there is no layer {layer}; layers count from 0 to {count - 1}")
    inside = [
        name
        for name in names
        if (modules is None or parts[name] & set(modules)) and (layers is None or layer_index(name) in layers)
    ]
    if not inside:
        raise RecipeError("eval.gates: training changes nothing in these modules of these layers")
    return inside


def is_gated(model: Model) -> bool:
    """Whether a gate or a patch stands in `model`: it must then be given every prompt whole, in one pass."""
    hooks = backbone(model)._forward_pre_hooks.values()
    return any(isinstance(getattr(one, "__self__", None), ForwardPass) for one in hooks)


def base_hook(site: TrainedModule) -> Callable[..., Any]:
    """A forward hook by which the site answers as its base."""

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return site.base(*args, **kwargs)

    return hook


class ForwardPass:
    """What the forward pass under way is: the prompts', each token with its value, or a decoding one."""

    def __init__(self, masks: Masks, decoding: Policy) -> None:
        self.masks = masks
        self.decoded = 1.0 if decoding == "on" else 0.0
        self.weight: torch.Tensor | float = self.decoded
        """The values [rows, tokens] of the prompts; one number while decoding."""

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of `backbone`: see which pass this is."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self.weight = self.decoded
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError("a gate knows a prompt by its token ids; this one came as embeddings")
        self.weight = _values(self.masks, ids, kwargs.get("attention_mask"))

    def mix(self, base: Callable[[], Any], given: Any, trained: Any, *, head: bool, name: str) -> Any:
        """Between the base's output and the trained one, by this pass's weights.

        `given` is what the module was given. Equal to either at a weight of 0 or 1, to the last bit.
        """
        import torch

        if isinstance(self.weight, float):
            return trained if self.weight else base()
        weight = self.weight
        if head:  # it is given the states of the last tokens only
            weight = weight[:, -trained.shape[1] :]
        axis = _token_axis(given, weight.shape[1]) if trained.dim() == 4 else 1
        if trained.dim() < 3 or (trained.shape[0], trained.shape[axis]) != weight.shape:
            raise ModelError(
                f"{name} does not see the prompt's tokens one by one, so it cannot be gated by position"
            )
        shape = [1] * trained.dim()
        shape[0], shape[axis] = weight.shape
        return torch.lerp(base(), trained, weight.to(trained.dtype).view(shape))


def _weighing(site: TrainedModule, call: ForwardPass, *, head: bool) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return call.mix(lambda: site.base(*args, **kwargs), args[0], output, head=head, name=site.name)

    return hook


def _token_axis(heads: "torch.Tensor", tokens: int) -> int:
    """Where the tokens are in what a norm of queries or keys is given, [rows, ?, ?, width].

    Some models (Qwen 3) norm before they turn heads and tokens, some (Gemma 3) after. With as many heads
    as tokens memory tells: projections lay tokens outside heads.
    """
    if heads.shape[1] == heads.shape[2]:
        return 1 if heads.stride(1) >= heads.stride(2) else 2
    return 1 if heads.shape[1] == tokens else 2


def _values(masks: Masks, ids: "torch.Tensor", attention: Any) -> "torch.Tensor":
    """Each row's mask beside its tokens, 0 beside padding: [rows, tokens]."""
    import torch

    seen = torch.ones_like(ids) if attention is None else attention
    if not isinstance(seen, torch.Tensor) or seen.shape != ids.shape:
        raise ModelError("a gate finds a row's tokens by its attention mask [rows, tokens]; this is another")
    found = torch.zeros(ids.shape, device=ids.device)
    for row, there in enumerate(seen.bool()):
        own = tuple(ids[row][there].tolist())
        if own not in masks:
            raise ModelError(f"the gate has no mask for row {row}, a prompt of {len(own)} tokens")
        found[row, there] = torch.tensor(masks[own], device=ids.device)
    return found


def _parts(name: str) -> set[str]:
    """What a module may be called by: the names in its path, and the part of the layer it is in."""
    own = {part for part in name.split(".") if not part.isdigit()} - {"model", "layers"}
    return own | {part for part, names in PARTS.items() if own & set(names)}


def _adapted(model: Model) -> Iterator[TrainedModule]:
    import torch
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if model.active_peft_config.is_prompt_learning:
        raise RecipeError(
            "a prefix adds keys and values before the prompt and nothing at a token of it, so it cannot be "
            "gated or patched by position; take an adapter of the lora family, ia3 or full"
        )
    for name, module in language_model(model).named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ModelError(f"this adapter holds {name} as a whole beside its matrices; it cannot be gated")
        if not isinstance(module, BaseTunerLayer):
            continue
        linear = isinstance(module.get_base_layer(), torch.nn.Linear)
        if not (isinstance(module, (LoraLayer, IA3Layer)) and linear):
            raise ModelError(f"{name} is adapted as {type(module).__name__}, which cannot be gated")
        if module.merged:
            raise ModelError(
                f"the adapter of {name} is merged into its base, so the two cannot be told apart"
            )
        yield TrainedModule(name, module, module.get_base_layer())


def _tuned(model: Model, base: Model) -> Iterator[TrainedModule]:
    """Every module with a parameter of its own that is not the base's."""
    twins = dict(base.named_modules())
    for name, module in model.named_modules():
        twin = twins.get(name)
        own = dict(module.named_parameters(recurse=False))
        theirs = dict(twin.named_parameters(recurse=False)) if twin is not None else {}
        if _kinds(own) != _kinds(theirs):
            raise ModelError(f"{name or 'the model'} is not in the base as it is in the student")
        if all(one.equal(theirs[key]) for key, one in own.items()):
            continue
        if not _token_by_token(module):
            raise ModelError(
                f"full fine-tuning changed {name}, a {type(module).__name__}, which cannot be switched "
                "token by token"
            )
        assert twin is not None  # it has the student's parameters
        yield TrainedModule(name, module, twin)


def _kinds(parameters: Mapping[str, "torch.nn.Parameter"]) -> dict[str, tuple[Any, ...]]:
    return {name: (one.shape, one.dtype, one.device) for name, one in parameters.items()}


def _token_by_token(module: "torch.nn.Module") -> bool:
    """Whether its output at a token depends on nothing but the input there."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
        return True
    vectors = all(one.dim() == 1 for one in module.parameters(recurse=False))
    return vectors and type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
