"""One student sharded over processes: accelerate's FSDP2, on GPUs and on a CPU, gathered to be saved.

Torch's `fully_shard` works over gloo as over nccl. accelerate 1.15 and transformers do everything else:
they wrap the layers, give the optimizer its shards, clip, write and read checkpoints.
"""

import os
from pathlib import Path
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection

LAUNCHED = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch` for a configuration whose `distributed_type` is FSDP."""

NEEDED = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "sharded_state_dict",
}
"""Settings that sublim relies on, by the variables that `accelerate launch` passes them in.

The base is measured on every device before it is sharded, so it has to be whole there; the model
recomputes its layers itself, sharded or not; each process writes its own part of a checkpoint.
"""

SHARDS = "pytorch_model_fsdp_0"
"""Where accelerate keeps the weights in a checkpoint of a sharded training."""


def sharded() -> bool:
    """Whether this process holds one shard of the student that it trains."""
    return "RANK" in os.environ and os.environ.get(LAUNCHED, "").lower() == "true"


def check_shardable(section: TrainSection) -> None:
    """Refuse what cannot be trained in shards.

    Raises:
        RecipeError: an adapter, an optimizer without shards, or a setting that sublim does not follow.
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
    for variable, needed in NEEDED.items():
        if os.environ.get(variable, needed).lower() != needed:
            raise RecipeError(
                f"--accelerate: sublim shards with `{variable.lower()}: {needed}`; "
                "see recipes/accelerate/fsdp2.yaml"
            )


def check_checkpoint(checkpoint: Path | None) -> None:
    """Refuse to go on sharded from a whole checkpoint, and the other way round.

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


def shardable(base: type) -> Any:
    """`base`, a transformers Trainer, that shards on a CPU as on GPUs and computes as it does unsharded."""

    class Shardable(base):  # type: ignore[misc]  # a class known at run time alone
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if sharded():
                _complete(self.accelerator.state)
                self.is_fsdp_enabled = True

        def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
            """Autocast for a sharded model, whose forward accelerate leaves without it."""
            if sharded() and self.args.bf16:
                return _autocast(self.args.device.type)
            return super().autocast_smart_context_manager(cache_enabled)

    return Shardable


def _complete(state: Any) -> None:
    """Put right what accelerate 1.15 knows of sharding in `state`, an AcceleratorState.

    On a CPU it builds the settings from the environment and then drops them (its constructor keeps them
    for GPUs alone), so they are put where it looks for them. Its precision for bf16 would sum gradients
    in bf16 and keep the residual stream in bf16: the student would depend on where it was trained.
    Shards are gathered in fp32 instead, and autocast does what it does without sharding.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if getattr(state, "fsdp_plugin", None) is None:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.fsdp_plugin.mixed_precision_policy = None


def _autocast(device: str) -> Any:
    """bf16 compute over fp32 weights; a copy of a weight goes with the weight when it is sharded again."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


def first() -> bool:
    """Whether this process keeps the student; of the others that train it with this one, none does."""
    return os.environ.get("RANK", "0") == "0"


def gathered(model: Model) -> dict[str, Any]:
    """The whole weights of a sharded model by name, in main memory: in the first process; elsewhere none.

    Names of one weight (a head tied to the embedding) share one tensor again, as in an unsharded model.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    named = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    own = {place: weights[name] for name, place in named.items() if name in weights}
    return {name: own[named[name]] if name in named else one for name, one in weights.items()}
