"""Make a base model trainable: one PEFT configuration per method, and the dtype of the trained weights."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import accept_cache
from sublim_cli.models.structure import (
    decoder_layers,
    expert_weights,
    in_language_model,
    layer_part,
    linear_modules,
    outside_parameters,
)
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.precision import trained_dtype

if TYPE_CHECKING:
    import torch

IA3_TARGETS = ("k_proj", "v_proj", "down_proj")
"""The modules that IA3 rescales: keys, values and the hidden layer of the MLP (arXiv 2205.05638). Models
without these names take PEFT's own choice for their family."""

NO_PROJECTIONS = frozenset(
    {"router", "modality_router", "gate", "shared_expert_gate", "altup", "laurel", "dt_proj"}
    | {"per_layer_input_gate", "per_layer_projection"}
)
"""Names in the paths of linear modules that `targets: all` leaves out: routers and gates of experts, the
small matrices of Gemma 3n, and Mamba's step sizes."""

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

    Full fine-tuning of an image-and-text model trains its language model; the rest is frozen.

    Raises:
        RecipeError, ModelError: see `adapted_modules`.
    """
    import torch
    from peft import get_peft_model

    if section.method == "full":
        for weight in outside_parameters(model):
            weight.requires_grad_(False)
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
    from transformers.pytorch_utils import Conv1D

    if section.method == "prefix":
        return PrefixTuningConfig(num_virtual_tokens=section.prefix.tokens, task_type="CAUSAL_LM")
    modules = adapted_modules(model, section)
    names, layers = peft_targets(model, section)
    transposed = any(isinstance(module, Conv1D) for module in modules.values())
    if section.method == "ia3":
        return IA3Config(
            target_modules=names,
            feedforward_modules=_ia3_feedforward(names, modules),
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
        )
    return LoraConfig(
        r=section.rank,
        lora_alpha=alpha(section),
        lora_dropout=section.adapter.dropout,
        bias="none",
        target_modules=names,
        layers_to_transform=layers,
        fan_in_fan_out=transposed,
        use_rslora=section.method == "rslora",
        use_dora=section.method == "dora",
        init_lora_weights="pissa" if section.method == "pissa" else True,
        task_type="CAUSAL_LM",
    )


def adapted_modules(model: Model, section: TrainSection) -> "dict[str, torch.nn.Module]":
    """The modules of a base model that get an adapter, by path; `model` may be on the meta device.

    Raises:
        RecipeError: the adapter names modules or layers that the model lacks, or has too high a rank.
        ModelError: the model has no numbered layers.
    """
    decoder = decoder_layers(model)
    layers = set(range(len(decoder.layers)))
    if section.method == "ia3":
        chosen = _ia3_modules(model)
    else:
        chosen = _target_modules(model, section.adapter.targets)
        layers = set(_layers(section, len(decoder.layers)) or layers)
    modules = {name: module for name, module in chosen.items() if decoder.index(name) in layers}
    if not modules:
        raise RecipeError(
            "train.adapter.layers: these layers hold none of the modules of train.adapter.targets"
        )
    if section.method == "pissa":
        # PiSSA starts from singular vectors; a matrix has no more of them than its shorter side.
        most = min(
            min(weight.shape) for weight in (module.get_parameter("weight") for module in modules.values())
        )
        if section.rank > most:
            raise RecipeError(
                f"train.rank: {section.rank} is above {most}, all that this model allows under `pissa`"
            )
    return modules


def peft_targets(model: Model, section: TrainSection) -> tuple[list[str], list[int] | None]:
    """`adapted_modules` as PEFT is told them: names, and the numbers of the layers (None for all).

    PEFT compares the ends of paths. If other modules of the model end alike (a vision tower, the MLP of
    GPT-2), the names are whole paths.
    """
    chosen = adapted_modules(model, section)
    layers = None
    if section.method != "ia3":
        layers = _layers(section, len(decoder_layers(model).layers))
    names = sorted({name.rpartition(".")[2] for name in chosen})
    index = decoder_layers(model).index
    matched = {
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in names and (layers is None or index(name) in (None, *layers))
    }
    return (names, layers) if matched == chosen.keys() else (list(chosen), None)


def changed_modules(model: Model, section: TrainSection) -> list[str]:
    """Paths of the modules of a base model that the method changes; `model` may be on the meta device.

    Raises:
        RecipeError, ModelError: see `adapted_modules`.
    """
    if section.method == "full":
        inside = in_language_model(model)
        return [
            name
            for name, module in model.named_modules()
            if inside(name) and list(module.parameters(recurse=False))
        ]
    return [] if section.method == "prefix" else list(adapted_modules(model, section))


def unadapted_experts(model: Model, section: TrainSection) -> str | None:
    """A warning that the experts of a mixture get no adapter; None for other models and methods."""
    if section.method in ("full", "prefix") or not expert_weights(model):
        return None
    return (
        "this model is a mixture of experts, which take no adapter here: the adapters are on its attention "
        "alone; `train.method: full` trains the experts too"
    )


def _target_modules(model: Model, targets: str | tuple[str, ...]) -> "dict[str, torch.nn.Module]":
    """The linear modules that `train.adapter.targets` means, in all layers."""
    modules = _adaptable_modules(model)
    if isinstance(targets, tuple):
        names = {name.rpartition(".")[2] for name in modules}
        unknown = [name for name in targets if name not in names]
        if unknown or not targets:
            problem = f"this model has no module {unknown[0]}" if unknown else "names no module"
            raise RecipeError(f"train.adapter.targets: {problem}; {_available(model)}")
        return {name: module for name, module in modules.items() if name.rpartition(".")[2] in targets}
    chosen = {name: module for name, module in modules.items() if _is_projection(model, name)}
    if targets != "all":
        chosen = {name: module for name, module in chosen.items() if layer_part(model, name) == targets}
    if not chosen:
        raise RecipeError(f"train.adapter.targets: no module of this model is {targets}; {_available(model)}")
    return chosen


def _adaptable_modules(model: Model) -> "dict[str, torch.nn.Module]":
    """The linear modules of the layers that LoRA may adapt, by path.

    Not the MLPs of a mixture of experts: PEFT takes their names for those of the stacked experts too.
    """
    modules = linear_modules(model)
    if not expert_weights(model):
        return modules
    return {name: module for name, module in modules.items() if layer_part(model, name) != "mlp"}


def _is_projection(model: Model, name: str) -> bool:
    """Whether `targets: all` takes the linear module `name` of a layer."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if hasattr(parent, "A_log") and hasattr(parent, "D"):
        # The fused kernels of Mamba read the weights of its other modules and would pass by an adapter.
        return name.endswith(".in_proj")
    parts = name.split(".")
    # Zamba's layers hold the adapters of all layers, and use their own.
    return NO_PROJECTIONS.isdisjoint(parts) and not any(part.endswith("_adapter_list") for part in parts)


def _ia3_modules(model: Model) -> "dict[str, torch.nn.Module]":
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as OF_FAMILY

    modules = linear_modules(model)
    family = OF_FAMILY.get(model.config.get_text_config().model_type, ())
    for targets in (IA3_TARGETS, family):
        chosen = {
            name: module
            for name, module in modules.items()
            if any(f".{name}".endswith(f".{target}") for target in targets)
        }
        if targets and all(any(f".{name}".endswith(f".{target}") for name in chosen) for target in targets):
            return chosen
    raise RecipeError(
        f"train.method: ia3 rescales {', '.join(IA3_TARGETS)}, which this model lacks; {_available(model)}. "
        "Take `lora`"
    )


def _ia3_feedforward(names: list[str], modules: "dict[str, torch.nn.Module]") -> list[str]:
    """Those of IA3's targets whose input it rescales: the last projection of the MLP."""
    last = [name for name in names if name in ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h")]
    return last or [name for name in modules if ".mlp." in name]


def _available(model: Model) -> str:
    """The names that `train.adapter.targets` may list, for messages."""
    names = sorted({name.rpartition(".")[2] for name in _adaptable_modules(model)})
    if not names:
        return f"its layers ({type(decoder_layers(model).layers[0]).__name__}) hold no linear module"
    experts = " and experts, which take no adapter" if expert_weights(model) else ""
    return f"it has {', '.join(names)}{experts}"


def _layers(section: TrainSection, count: int) -> list[int] | None:
    """Numbers of the adapted layers, None for all."""
    if section.adapter.layers is None:
        return None
    first, last = section.adapter.layers
    if not 0 <= first <= last < count:
        raise RecipeError(
            f"train.adapter.layers: [{first}, {last}] must be two layers in order, from 0 to {count - 1}"
        )
    return list(range(first, last + 1))
