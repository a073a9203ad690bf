"""When a device's memory runs out: smaller micro-batches, and a sentence when one row is too much."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ModelError
from sublim_cli.models.load import Model
from sublim_cli.trainers.sharded import sharded

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]
Backward = Callable[[Batch], "torch.Tensor"]
"""Adds a batch's share to the gradients and returns its share of the step's loss."""

GIB = 2**30


@dataclass
class Halving:
    """Runs micro-batches, in halves once one did not fit; an optimizer step's rows stay the same.

    The step in which memory ran out is begun again from zero gradients. No weight has moved since the
    last one, so what comes out is what smaller micro-batches would have given from the start.
    """

    model: Model
    alone: bool = True
    """Whether this is the only process; several could not begin a step again out of step."""
    pieces: int = 1
    """How many parts a micro-batch is run in."""
    _begun: list[Batch] = field(default_factory=list)

    def begin(self) -> None:
        """A new optimizer step: nothing has been added to the gradients."""
        self._begun = []

    def run(self, batch: Batch, backward: Backward) -> "torch.Tensor":
        """Run one micro-batch and return its loss.

        Raises:
            ModelError: one row does not fit, or one of several processes ran out of memory.
        """
        import torch

        self._begun.append(batch)
        todo = [batch]
        while True:
            try:
                return [self._in_pieces(one, backward) for one in todo][-1]
            except torch.OutOfMemoryError:
                pass  # left here: the error's traceback holds the tensors that must go
            self._halve(batch)
            todo = self._begun

    def _in_pieces(self, batch: Batch, backward: Backward) -> "torch.Tensor":
        import torch

        if self.pieces == 1:
            return backward(batch)
        rows = len(batch["input_ids"])
        size = -(-rows // self.pieces)
        shares = [
            backward({name: value[at : at + size] for name, value in batch.items()})
            for at in range(0, rows, size)
        ]
        return torch.stack(shares).sum()

    def _halve(self, batch: Batch) -> None:
        import torch

        self.model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows, width = batch["input_ids"].shape
        if not self.alone:
            raise ModelError(
                f"a process ran out of memory with {rows} rows at once; start all of them again with "
                f"`--micro-batch {max(1, rows // 2)}`"
            )
        if self.pieces >= rows:
            raise ModelError(_nothing_fits(self.model, width))
        self.pieces = min(rows, 2 * self.pieces)


def does_not_fit(model: Model) -> ModelError:
    """The error for a step that a smaller micro-batch does not help."""
    return ModelError(f"memory ran out in an optimizer step. {_ways_out(model)}")


def _nothing_fits(model: Model, width: int) -> str:
    return f"memory runs out with a single row of {width} tokens. {_ways_out(model)}"


def _ways_out(model: Model) -> str:
    """What the model takes, what the device has, and what would take less."""
    total = sum(one.numel() for one in model.parameters())
    held = sum(one.numel() * one.element_size() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    if sharded():
        return (
            f"All shards together take {(held + 12 * trained) / GIB:.1f} GiB with gradients and AdamW's "
            f"state, before any activation{_room()} each. More processes hold less each; see `num_processes` "
            "in the file that `--accelerate` names"
        )
    # AdamW keeps two fp32 moments beside an fp32 gradient; nf4 about half a byte a weight.
    state = 12 * trained
    return (
        f"The weights take {held / GIB:.1f} GiB, their gradients and AdamW's state {state / GIB:.1f} GiB: "
        f"{(held + state) / GIB:.1f} GiB before any activation{_room()}. `train.method: qlora` would hold "
        f"the weights in about {0.55 * total / GIB:.1f} GiB, `train.optimizer: adamw_8bit` that "
        f"state in {2 * trained / GIB:.1f} GiB"
    )


def _room() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    free, whole = torch.cuda.mem_get_info()
    return f", on a device of {whole / GIB:.1f} GiB with {free / GIB:.1f} GiB free"
