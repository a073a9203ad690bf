"""TRL's configuration for one student: every field that could change the result, explicit."""

from pathlib import Path
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.device import device
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.checkpoints import KEPT
from sublim_cli.trainers.runtime import Runtime

GPU_MICRO_BATCH = 22
"""Rows per forward pass on a GPU: the paper's, a third of its batch. It never changes the batch."""


def arguments(section: TrainSection, out: Path, runtime: Runtime) -> Any:
    """An SFTConfig; no default of TRL (or of Unsloth, which rewrites them) stays in force.

    Raises:
        RecipeError: the batch cannot be divided among the processes.
    """
    from trl import SFTConfig

    cuda = device().type == "cuda"
    micro, accumulation = micro_batches(section.batch_size, runtime.micro_batch, processes(), cuda=cuda)
    owned: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "seed": section.seed,
        "data_seed": section.seed,
        "bf16": section.precision == "bf16_mixed",
        "fp16": False,
        "tf32": None,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        # Recomputed layers are given no cache, and a prefix is nothing but a cache.
        "gradient_checkpointing": cuda and section.method != "prefix",
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "loss_type": "nll",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "include_num_input_tokens_seen": "no",
        "save_strategy": "no",
        "save_total_limit": KEPT,
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "torch_empty_cache_steps": None,
        "push_to_hub": False,
        # TensorBoard's writer is given a directory that lasts; see `fit`.
        "report_to": "none" if runtime.report_to == "tensorboard" else runtime.report_to,
        "project": "sublim",
        "disable_tqdm": True,
    }
    return SFTConfig(**owned, **section.trainer_args)


def processes() -> int:
    """How many processes `accelerate launch` started to train this one student; usually 1."""
    from accelerate import PartialState

    return int(PartialState(cpu=device().type != "cuda").num_processes)


def micro_batches(
    batch: int, wanted: int | None, processes: int = 1, *, cuda: bool = True
) -> tuple[int, int]:
    """Rows of one forward pass, and passes to an optimizer step, of each process.

    Raises:
        RecipeError: `batch` is no multiple of `processes`.
    """
    if batch % processes:
        raise RecipeError(
            f"train.batch_size: {batch} rows cannot be shared by {processes} processes; make it a multiple"
        )
    share = batch // processes
    most = wanted or (GPU_MICRO_BATCH if cuda else share)
    micro = next(size for size in range(min(share, most), 0, -1) if share % size == 0)
    return micro, share // micro
