"""One student sharded over several processes with accelerate's FSDP2, on GPUs or on a CPU.

Torch's `fully_shard` works over gloo as over nccl. accelerate 1.15 and transformers do the rest: they
wrap the layers, shard the optimizer's state, clip gradients, and write and read checkpoints.
"""

import os
from pathlib import Path
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection

FSDP_LAUNCHED = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch` for a configuration whose `distributed_type` is FSDP."""

FSDP_SETTINGS = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "sharded_state_dict",
}
"""Settings that sublim relies on, by the environment variables that `accelerate launch` sets.

Every process measures the base model's loss before sharding, so each needs all its weights; gradient
checkpointing is the model's own, sharded or not; each process writes its part of a checkpoint.
"""

SHARDS = "pytorch_model_fsdp_0"
"""The directory of the weights in a checkpoint of a sharded training; accelerate names it."""


def sharded() -> bool:
    """Whether this process holds one shard of the student."""
    return "RANK" in os.environ and os.environ.get(FSDP_LAUNCHED, "").lower() == "true"


def check_shardable(section: TrainSection) -> None:
    """Refuse what cannot be trained in shards.

    Raises:
        RecipeError: an adapter, an optimizer that cannot be sharded, or a setting not in `FSDP_SETTINGS`.
    """
    if not sharded():
        return
    if section.method != "full" or section.backend != "plain":
        raise RecipeError(
            "--accelerate: a student is sharded (FSDP) with `train.method: full` and `train.backend: plain`, "
            f"not {section.method} on {section.backend}; recipes/accelerate/data-parallel.yaml shares rows"
        )
    if section.optimizer == "adamw_8bit" and section.precision != "bf16_kahan":
        raise RecipeError(
            "--accelerate: bitsandbytes cannot step a sharded student (FSDP); "
            "use `train.optimizer: adamw`, whose state is sharded, too"
        )
    for variable, needed in FSDP_SETTINGS.items():
        if os.environ.get(variable, needed).lower() != needed:
            raise RecipeError(
                f"--accelerate: sublim shards with `{variable.lower()}: {needed}`; "
                "see recipes/accelerate/fsdp2.yaml"
            )


def check_checkpoint(checkpoint: Path | None) -> None:
    """Refuse to resume a sharded training from an unsharded checkpoint, and the other way round.

    Raises:
        RecipeError: the checkpoint is of the other kind.
    """
    if checkpoint is None or (checkpoint / SHARDS).is_dir() == sharded():
        return
    kind, way = ("whole", "without") if sharded() else ("sharded", "with")
    raise RecipeError(
        f"the checkpoint {checkpoint} is {kind}: go on {way} `--accelerate recipes/accelerate/fsdp2.yaml` "
        f"(or its like), or remove {checkpoint.parent} to begin again"
    )


def configure_fsdp(state: Any) -> None:
    """Correct two things in accelerate 1.15's `state` (an AcceleratorState) of a sharded training.

    On a CPU accelerate reads the FSDP settings from the environment and then discards them, because its
    constructor keeps them for GPUs only; they are set again here. Its precision policy for bf16 would
    sum gradients and keep the residual stream in bf16, so that the student would depend on where it was
    trained; shards are gathered in fp32 instead, and autocast works as in an unsharded training.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if getattr(state, "fsdp_plugin", None) is None:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.fsdp_plugin.mixed_precision_policy = None


def is_main_process() -> bool:
    """Whether this is the process, of those that train one student together, that writes it."""
    return os.environ.get("RANK", "0") == "0"


def gathered(model: Model) -> dict[str, Any]:
    """The full weights of a sharded model by name, in main memory; empty except in the main process.

    Names of one weight (a head tied to the embedding) share one tensor, as in an unsharded model.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    parameter_ids = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    tensor_of = {key: weights[name] for name, key in parameter_ids.items() if name in weights}
    return {
        name: tensor_of[parameter_ids[name]] if name in parameter_ids else weight
        for name, weight in weights.items()
    }
