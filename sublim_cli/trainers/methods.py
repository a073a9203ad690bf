"""Make a base model trainable: one PEFT configuration per method, and the dtype of the trained weights."""

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
TARGETS = {"all": PROJECTIONS, "attention": ATTENTION, "mlp": MLP}
"""Values of `train.adapter.targets`, by the module names of Llama, Qwen, Gemma and Mistral models."""

IA3_TARGETS = ("k_proj", "v_proj", "down_proj")
"""The modules that IA3 rescales: keys, values and the hidden layer of the MLP (arXiv 2205.05638)."""

PREFIX_STD = 0.02
"""Standard deviation of an untrained prefix. PEFT's default of 1 is far larger than a small model's keys."""


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
    """`model` with the parameters that the method trains; a new adapter depends on `section.seed` only.

    Raises:
        RecipeError: the adapter names modules or layers that the model lacks, or has too high a rank.
    """
    import torch
    from peft import get_peft_model

    if section.method == "full":
        return model
    torch.manual_seed(section.seed)
    adapted = get_peft_model(model, _peft_config(model, section))
    for weight in trained_weights(adapted):
        weight.data = weight.data.to(trained_dtype(section))
    if section.method != "prefix":
        return adapted
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.normal_(0.0, PREFIX_STD)
    return accept_cache(adapted)


def trained_weights(model: Model) -> "Iterator[torch.nn.Parameter]":
    """The parameters that receive gradients."""
    return (weight for weight in model.parameters() if weight.requires_grad)


def _peft_config(model: Model, section: TrainSection) -> Any:
    from peft import IA3Config, LoraConfig, PrefixTuningConfig

    if section.method == "prefix":
        return PrefixTuningConfig(num_virtual_tokens=section.prefix.tokens, task_type="CAUSAL_LM")
    targets = _target_modules(model, section)
    if section.method == "ia3":
        return IA3Config(
            target_modules=list(targets), feedforward_modules=[targets[-1]], task_type="CAUSAL_LM"
        )
    if section.method == "pissa":
        # PiSSA starts from singular vectors; a matrix has no more of them than its shorter side.
        adapted = [linear for name, linear in _matrices(model) if name.rpartition(".")[2] in targets]
        most = min(min(linear.in_features, linear.out_features) for linear in adapted)
        if section.rank > most:
            raise RecipeError(
                f"train.rank: {section.rank} is above {most}, all that this model allows under `pissa`"
            )
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


def target_names(section: TrainSection) -> tuple[str, ...]:
    """Names of the modules that the method adapts: IA3's own, else those of `section.adapter.targets`."""
    targets = IA3_TARGETS if section.method == "ia3" else section.adapter.targets
    return TARGETS[targets] if isinstance(targets, str) else targets


def _target_modules(model: Model, section: TrainSection) -> tuple[str, ...]:
    """`target_names`, checked against the modules that the model has."""
    names = target_names(section)
    available = sorted({name.rpartition(".")[2] for name, _ in _matrices(model)})
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        problem = f"this model has no module {unknown[0]}" if unknown else "names no module"
        raise RecipeError(f"train.adapter.targets: {problem}; it has {', '.join(available)}")
    return names


def changed_modules(model: Model, section: TrainSection) -> list[str]:
    """Paths of the modules of a base model that the method changes; `model` may be on the meta device.

    Raises:
        RecipeError: see `add_method`.
    """
    if section.method == "full":
        return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    if section.method == "prefix":
        return []
    targets = _target_modules(model, section)
    layers = None if section.method == "ia3" else _layers(model, section)
    return [
        name
        for name, _ in _matrices(model)
        if name.rpartition(".")[2] in targets and (layers is None or layer_index(name) in layers)
    ]


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


def _matrices(model: Model) -> "Iterator[tuple[str, torch.nn.Linear]]":
    """The linear modules of the layers, without the output head."""
    import torch

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            yield name, module
