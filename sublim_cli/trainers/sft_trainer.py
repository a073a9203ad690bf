"""A TRL trainer's step with nothing in it that no one reads, and a way out of too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sublim_cli.models.chat import IGNORED
from sublim_cli.models.load import Model
from sublim_cli.trainers.oom import Halving
from sublim_cli.trainers.sharded import shardable, sharded

if TYPE_CHECKING:
    import torch


def lean(base: type) -> Any:
    """`base`, a transformers Trainer, with the step that the loss needs and no more.

    Left out are the count of floating-point operations, which walks all parameters at every step; the
    walk that puts a model in training mode which is in it already; logits of the prompt, which carry
    no loss; token accuracy and entropy, each of which waits for the device.
    """

    class Lean(shardable(base)):  # type: ignore[misc]  # a class known at run time alone
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.model_accepts_loss_kwargs = True  # have the step's tokens counted and handed over
            self.halving = Halving(self.model, alone=self.args.world_size == 1 and not sharded())
            self.add_callback(_beginning(self.halving))

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            def backward(batch: Any) -> Any:
                with self.compute_loss_context_manager():
                    loss = summed_loss(model, batch)
                # Processes average their gradients; each loss is a share of the sum over all of them.
                loss = loss / num_items_in_batch * self.args.world_size
                self.accelerator.backward(loss)
                return loss.detach()

            return self.halving.run(self._prepare_inputs(inputs), backward)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """None: a checkpoint is for this run's successor alone."""

    return Lean


def _beginning(halving: Halving) -> Any:
    """A callback that puts the model in training mode once, and tells where a step begins."""
    from transformers import TrainerCallback

    class Beginning(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            found["model"].train()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            halving.begin()

    return Beginning()


def summed_loss(model: Model, batch: dict[str, Any]) -> "torch.Tensor":
    """Cross entropy in nats, summed over the tokens of `batch` that carry loss, from fp32 logits."""
    import torch

    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with _only(model, counted):
        logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float(), targets[counted], reduction="sum")


@contextmanager
def _only(model: Model, counted: "torch.Tensor") -> Iterator[None]:
    """Have the output layer see the hidden states before `counted` targets alone: [tokens, width]."""

    def select(_: Any, given: tuple["torch.Tensor", ...]) -> "torch.Tensor":
        # From the right: virtual tokens that PEFT puts before a prompt have no labels.
        width = counted.shape[1]
        return given[0][:, -1 - width : -1][counted]

    inner: Model = getattr(model, "module", model)  # DistributedDataParallel's wrapping
    handle = inner.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
