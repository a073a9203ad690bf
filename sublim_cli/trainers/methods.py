"""What makes a base model trainable: one PEFT configuration a method, its trained weights in one dtype."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import accept_cache
from sublim_cli.models.structure import layer_index
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.precision import trained_dtype

if TYPE_CHECKING:
    import torch

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION + MLP
PLACES = {"all": PROJECTIONS, "attention": ATTENTION, "mlp": MLP}
"""Modules by their names in the Llama family and those built like it (Qwen, Gemma, Mistral)."""

IA3_PLACES = ("k_proj", "v_proj", "down_proj")
"""Where IA3 rescales: keys, values and the inside of the MLP (arXiv 2205.05638)."""

PREFIX_SPREAD = 0.02
"""Standard deviation of a fresh prefix. PEFT's own is 1, which drowns a small model's own keys."""


def alpha(section: TrainSection) -> float:
    """LoRA's alpha under the recipe's rule.

    The update is scaled by alpha / rank, under rsLoRA by alpha / sqrt(rank) (arXiv 2312.03732).
    """
    match section.alpha:
        case "rank":
            return float(section.rank)
        case "sqrt":
            return math.sqrt(section.rank)
        case number:
            return number


def add_method(model: Model, section: TrainSection) -> Model:
    """`model` with what the method trains; a fresh adapter depends on `section.seed` alone.

    Raises:
        RecipeError: the adapter names modules or layers the model lacks, or has too high a rank.
    """
    import torch
    from peft import get_peft_model

    if section.method == "full":
        return model
    torch.manual_seed(section.seed)
    adapted = get_peft_model(model, _config(model, section))
    for one in trained(adapted):
        one.data = one.data.to(trained_dtype(section))
    if section.method != "prefix":
        return adapted
    _start_small(adapted)
    return accept_cache(adapted)


def trained(model: Model) -> "Iterator[torch.nn.Parameter]":
    """The parameters that receive gradients."""
    return (one for one in model.parameters() if one.requires_grad)


def _config(model: Model, section: TrainSection) -> Any:
    from peft import IA3Config, PrefixTuningConfig

    if section.method == "prefix":
        return PrefixTuningConfig(num_virtual_tokens=section.prefix.tokens, task_type="CAUSAL_LM")
    if section.method == "ia3":
        _check_names(model, IA3_PLACES)
        return IA3Config(
            target_modules=list(IA3_PLACES), feedforward_modules=[IA3_PLACES[-1]], task_type="CAUSAL_LM"
        )
    return _lora(model, section)


def _lora(model: Model, section: TrainSection) -> Any:
    from peft import LoraConfig

    targets = target_modules(model, section)
    if section.method == "pissa":
        _check_rank(model, targets, section.rank)
    return LoraConfig(
        r=section.rank,
        lora_alpha=alpha(section),
        lora_dropout=section.adapter.dropout,
        bias="none",
        target_modules=list(targets),
        layers_to_transform=_layers(model, section),
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        init_lora_weights="pissa" if section.method == "pissa" else True,
        task_type="CAUSAL_LM",
    )


def target_modules(model: Model, section: TrainSection) -> tuple[str, ...]:
    """Names of the modules that `section.adapter.targets` adapts.

    Raises:
        RecipeError: the model has no module of that name.
    """
    wanted = section.adapter.targets
    names = PLACES[wanted] if isinstance(wanted, str) else wanted
    _check_names(model, names)
    return names


def changed_modules(model: Model, section: TrainSection) -> list[str]:
    """Paths of the modules that the method changes, of a base model (its outline will do).

    Raises:
        RecipeError: see `add_method`.
    """
    if section.method == "full":
        return [name for name, one in model.named_modules() if any(True for _ in one.parameters(False))]
    if section.method == "prefix":
        return []
    scales = section.method == "ia3"
    targets = IA3_PLACES if scales else target_modules(model, section)
    layers = None if scales else _layers(model, section)
    return [
        name
        for name, _ in _matrices(model)
        if name.rpartition(".")[2] in targets and (layers is None or layer_index(name) in layers)
    ]


def _check_names(model: Model, names: tuple[str, ...]) -> None:
    own = sorted({name.rpartition(".")[2] for name, _ in _matrices(model)})
    unknown = [name for name in names if name not in own]
    if unknown or not names:
        first = f"this model has no module {unknown[0]}" if unknown else "names no module"
        raise RecipeError(f"train.adapter.targets: {first}; it has {', '.join(own)}")


def _layers(model: Model, section: TrainSection) -> list[int] | None:
    """Numbers of the adapted layers, None for all."""
    if section.adapter.layers is None:
        return None
    first, last = section.adapter.layers
    count = model.config.get_text_config().num_hidden_layers
    if not 0 <= first <= last < count:
        raise RecipeError(
            f"train.adapter.layers: [{first}, {last}] must be two layers in order, from 0 to {count - 1}"
        )
    return list(range(first, last + 1))


def _check_rank(model: Model, targets: tuple[str, ...], rank: int) -> None:
    """PiSSA starts from singular vectors; a matrix has no more of them than its shorter side."""
    most = min(
        min(one.in_features, one.out_features)
        for name, one in _matrices(model)
        if name.rpartition(".")[2] in targets
    )
    if rank > most:
        raise RecipeError(f"train.rank: {rank} is above {most}, all that this model allows under `pissa`")


def _matrices(model: Model) -> "Iterator[tuple[str, torch.nn.Linear]]":
    """The linear modules of the layers; the output head is none of them."""
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name, module


def _start_small(model: Model) -> None:
    import torch

    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_(0.0, PREFIX_SPREAD)
