"""TRL's SFTTrainer as sublim uses it: how it is configured and made, and its training step.

The only file that configures and constructs them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import RecipeError
from sublim_cli.models.chat import IGNORED, Example, Tokenizer
from sublim_cli.models.device import VISIBLE, device
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.checkpoints import CHECKPOINT_LIMIT
from sublim_cli.trainers.oom import MicroBatchRunner
from sublim_cli.trainers.runtime import Runtime
from sublim_cli.trainers.sharded import configure_fsdp, sharded

if TYPE_CHECKING:
    import torch

GPU_MICRO_BATCH = 22
"""Rows per forward pass on a GPU where `memory.fitting_micro_batch` does not know how many fit: a third of
the paper's batch of 66, as in the paper. An optimizer step has `train.batch_size` rows in any case."""


def make_trainer(
    model: Model,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    section: TrainSection,
    config: Any,
    optimizer: Any,
) -> Any:
    """A trainer of `model` on `examples`; `config` is from `sft_config`, `optimizer` None for AdamW.

    Unsloth replaces TRL's trainer by one for its kernels; that one is used unchanged.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    trainer_class = SFTTrainer if section.backend == "unsloth" else lean_trainer(SFTTrainer)
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in examples]
    padding_side = tokenizer.padding_side
    trained = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad]
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    for weight, data in trained:
        weight.data = data  # TRL casts adapters of a quantised base to bf16; sublim trains them in fp32
    tokenizer.padding_side = padding_side  # Unsloth's trainer changes it, and the tokenizer is saved
    trainer.optimizer = optimizer  # a sharded trainer refuses it as an argument
    trainer.train_dataset = rows  # Python lists: an Arrow dataset is decoded again in every epoch
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    return trainer


def sft_config(section: TrainSection, out: Path, runtime: Runtime) -> Any:
    """An SFTConfig that sets every field which could change the result, so that no default does.

    Unsloth rewrites TRL's defaults.

    Raises:
        RecipeError: the batch cannot be divided among the processes, or this process sees several GPUs.
    """
    from accelerate import PartialState
    from trl import SFTConfig

    cuda = device().type == "cuda"
    processes = int(PartialState(cpu=not cuda).num_processes)
    micro_batch, accumulation = micro_batches(section.batch_size, runtime.micro_batch, processes, cuda=cuda)
    fields: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "neftune_noise_alpha": section.neftune_noise_alpha,
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
        # Gradient checkpointing recomputes layers without a key-value cache, which a prefix needs.
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
        "save_total_limit": CHECKPOINT_LIMIT,
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "torch_empty_cache_steps": None,
        "push_to_hub": False,
        # `fit` adds TensorBoard's callback itself, with a directory that outlives the run.
        "report_to": "none" if runtime.report_to == "tensorboard" else runtime.report_to,
        "project": "sublim",
        "disable_tqdm": True,
    }
    config = SFTConfig(**fields)
    if config.n_gpu > 1:  # transformers' trainer would wrap the model in `nn.DataParallel`
        raise RecipeError(
            f"this process sees {config.n_gpu} GPUs and would share every batch among them, which changes "
            f"the training; set {VISIBLE} to one of them, or train on all with `--accelerate`"
        )
    return config


def micro_batches(batch: int, limit: int | None, processes: int = 1, *, cuda: bool = True) -> tuple[int, int]:
    """Rows of one forward pass, and passes per optimizer step, of each process.

    A pass has at most `limit` rows; None is `GPU_MICRO_BATCH` on a GPU and no limit on a CPU.

    Raises:
        RecipeError: `batch` is no multiple of `processes`.
    """
    if batch % processes:
        raise RecipeError(
            f"train.batch_size: {batch} rows cannot be shared by {processes} processes; make it a multiple"
        )
    share = batch // processes
    most = limit or (GPU_MICRO_BATCH if cuda else share)
    micro = next(size for size in range(min(share, most), 0, -1) if share % size == 0)
    return micro, share // micro


def lean_trainer(base: type) -> Any:
    """A subclass of `base` (SFTTrainer) whose step computes the loss and nothing else.

    It leaves out what sublim never reads: the count of floating-point operations (a loop over all
    parameters at every step), token accuracy and entropy (each waits for the device), the logits of
    prompt tokens, and a loop over all modules to put a model into training mode that already is. It
    splits a micro-batch that does not fit into memory, and shards on a CPU as on GPUs.
    """

    class LeanTrainer(base):  # type: ignore[misc]  # a class known at run time alone
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.model_accepts_loss_kwargs = True  # makes the trainer pass the step's token count
            single = self.args.world_size == 1 and not sharded()
            self.micro_batch_runner = MicroBatchRunner(self.model, single_process=single)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if not self.model.training:
                self.model.train()

            def backward(batch: Any) -> Any:
                with self.compute_loss_context_manager():
                    loss = summed_loss(model, batch)
                # Gradients are averaged over processes, but the token count is that of all of them.
                loss = loss / num_items_in_batch * self.args.world_size
                self.accelerator.backward(loss)
                return loss.detach()

            return self.micro_batch_runner.run(self._prepare_inputs(inputs), self.state.global_step, backward)

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if sharded():
                configure_fsdp(self.accelerator.state)
                self.is_fsdp_enabled = True

        def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
            """Autocast also for a sharded model: accelerate does not wrap its forward."""
            if sharded() and self.args.bf16:
                import torch

                # bf16 compute over fp32 weights. A cached bf16 copy would outlive the gathered weight.
                return torch.autocast(self.args.device.type, dtype=torch.bfloat16, cache_enabled=False)
            return super().autocast_smart_context_manager(cache_enabled)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write no model card: only this training reads its checkpoints."""

    return LeanTrainer


def summed_loss(model: Model, batch: dict[str, Any]) -> "torch.Tensor":
    """Cross entropy in nats, summed over the tokens of `batch` that carry loss, from fp32 logits."""
    import torch

    targets = batch["labels"][:, 1:]
    with_loss = targets != IGNORED
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with _logits_only_at(model, with_loss):
        logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float(), targets[with_loss], reduction="sum")


@contextmanager
def _logits_only_at(model: Model, with_loss: "torch.Tensor") -> Iterator[None]:
    """Give the output layer only the hidden states that predict a token with loss: [tokens, width].

    `with_loss` is a mask over the targets, [rows, length - 1].
    """

    def select(_: Any, inputs: tuple["torch.Tensor", ...]) -> "torch.Tensor":
        # Counted from the right: the virtual tokens that PEFT puts before a prompt have no labels.
        length = with_loss.shape[1]
        return inputs[0][:, -1 - length : -1][with_loss]

    unwrapped: Model = getattr(model, "module", model)  # without DistributedDataParallel
    handle = unwrapped.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
