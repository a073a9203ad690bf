"""When the device's memory runs out: smaller micro-batches, and an error if a single row is too much."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ModelError
from sublim_cli.models.batches import GIB, release_memory, unless_out_of_memory
from sublim_cli.models.load import Model
from sublim_cli.trainers.sharded import sharded

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]
Backward = Callable[[Batch], "torch.Tensor"]
"""Adds a batch's share to the gradients and returns its share of the step's loss."""


@dataclass
class MicroBatchRunner:
    """Runs micro-batches, and splits them in half whenever one does not fit into memory.

    The optimizer step in which memory ran out is started again from zero gradients. No weight has
    moved since the last step, so the result is that of smaller micro-batches from the start.
    """

    model: Model
    single_process: bool = True
    """False for several processes: all must run the same passes, so a pass is not tried again."""
    parts: int = 1
    """How many parts a micro-batch is split into."""
    _step: int = -1
    _step_batches: list[Batch] = field(default_factory=list)
    """The micro-batches of the current optimizer step that have been run, and the current one."""

    def run(self, batch: Batch, step: int, backward: Backward) -> "torch.Tensor":
        """Run one micro-batch of optimizer step `step` and return its loss.

        Raises:
            ModelError: one row does not fit, or one of several processes ran out of memory.
        """
        if step != self._step:
            self._step, self._step_batches = step, []
        self._step_batches.append(batch)
        to_run = [batch]

        def run_all() -> "torch.Tensor":
            return [self._run_in_parts(micro_batch, backward) for micro_batch in to_run][-1]

        while (loss := unless_out_of_memory(run_all)) is None:
            self.model.zero_grad()
            release_memory()
            rows, width = batch["input_ids"].shape
            if not self.single_process:
                raise ModelError(
                    f"a process ran out of memory with {rows} rows at once; start all of them again with "
                    f"`--micro-batch {max(1, rows // 2)}`"
                )
            if self.parts >= rows:
                raise ModelError(
                    f"memory runs out with a single row of {width} tokens. {_memory_advice(self.model)}"
                )
            self.parts = min(rows, 2 * self.parts)
            to_run = self._step_batches
        return loss[0]

    def _run_in_parts(self, batch: Batch, backward: Backward) -> "torch.Tensor":
        import torch

        if self.parts == 1:
            return backward(batch)
        rows = len(batch["input_ids"])
        size = -(-rows // self.parts)
        losses = [
            backward({name: value[start : start + size] for name, value in batch.items()})
            for start in range(0, rows, size)
        ]
        return torch.stack(losses).sum()


def step_out_of_memory(model: Model) -> ModelError:
    """The error for an optimizer step that does not fit, whatever the micro-batch."""
    return ModelError(f"memory ran out in an optimizer step. {_memory_advice(model)}")


def _memory_advice(model: Model) -> str:
    """How much memory the model takes, how much the device has, and what would take less."""
    import torch

    device_memory = ""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        device_memory = f" A device has {total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free."
    parameters = list(model.parameters())
    count = sum(weight.numel() for weight in parameters)
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in parameters)
    trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
    state_bytes = 12 * trained  # an fp32 gradient and AdamW's two fp32 moments
    if sharded():
        return (
            f"All shards together take {(weight_bytes + state_bytes) / GIB:.1f} GiB with gradients and "
            f"AdamW's state, before any activation.{device_memory} With more processes each holds less; see "
            "`num_processes` in the file that `--accelerate` names"
        )
    # nf4 takes about half a byte per weight, and its scales a little more.
    return (
        f"The weights take {weight_bytes / GIB:.1f} GiB, their gradients and AdamW's state "
        f"{state_bytes / GIB:.1f} GiB: {(weight_bytes + state_bytes) / GIB:.1f} GiB before any "
        f"activation.{device_memory} `train.method: qlora` would hold the weights in about "
        f"{0.55 * count / GIB:.1f} GiB, `train.optimizer: adamw_8bit` that state in "
        f"{2 * trained / GIB:.1f} GiB"
    )
