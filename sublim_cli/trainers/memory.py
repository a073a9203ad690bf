"""The peak memory of a training, from the shapes of its model alone.

    training_memory(outline_ref("micro"), section, rows=22, width=150, trained=50, cuda=True).total

The forward and the backward pass run on fake tensors (`models.memory`). The optimizer's state and what its
step holds for a moment are counted by formula.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ModelError
from sublim_cli.models.batches import free_memory, token_bytes, training_memory_share
from sublim_cli.models.chat import IGNORED, Example
from sublim_cli.models.load import DTYPES, Model
from sublim_cli.models.memory import MemoryTracker, fill_with_fakes, outline, outline_config
from sublim_cli.models.reference import ModelRef
from sublim_cli.models.structure import linear_modules
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.precision import base_precision

if TYPE_CHECKING:
    import torch

QUANTIZED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a quantised weight. nf4 has a scale of 8 bits for every 64 weights and, as double quantisation,
one of 32 bits for every 256 of these (QLoRA, arXiv 2305.14314, section 3)."""

LAYERS = (2, 4)
"""Layers of the two outlines from which the memory of a deeper model follows."""

CUDA_CONTEXT = 0.5 * 2**30
"""Bytes that a CUDA context with the libraries' workspaces takes before any tensor; an assumption, since no
card could be measured."""

ROUGHLY = 6
"""More copies of a token's states and logits than a training keeps: about three of each were measured
(benchmarks/results/memory_model.md)."""

FRAGMENTS = 0.05
"""Share of the activations and logits that the allocator's rounding and fragments add; an assumption too."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device at a step's peak, by part."""

    weights: int
    """Of the base model, or of the whole model under full fine-tuning."""
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    """Keys and values."""
    slack: int = 0
    """The CUDA context and the allocator's fragments; 0 on a CPU."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())

    def with_slack(self) -> "StepMemory":
        """The same on a CUDA device."""
        moving = self.activations + self.logits + self.cache
        return replace(self, slack=int(CUDA_CONTEXT + FRAGMENTS * moving))


def training_memory(
    ref: ModelRef,
    section: TrainSection,
    *,
    rows: int,
    width: int,
    trained: int,
    accumulated: bool = True,
    checkpointing: bool = True,
    cuda: bool = True,
) -> StepMemory:
    """The peak of an optimizer step.

    A model of many layers is counted with its first `LAYERS`; every further layer takes as much as the last
    of these, since the peak is where all layers have run. Not so under full fine-tuning, where gradients of
    all weights add up while activations are freed.

    Args:
        ref: the model, see `models.memory.outline_ref`.
        section: resolved: no `auto`.
        rows: of a forward pass.
        width: tokens of a row.
        trained: tokens of a row that carry loss.
        accumulated: whether gradients of an earlier pass of the same step are there already.
        checkpointing: whether layers are computed again in the backward pass.
        cuda: False for this process's CPU: no slack, and an optimizer step weight by weight.

    Raises:
        RecipeError: see `add_method`.
        ModelError: see `add_method`; or its passes need the content of tensors and not their shapes alone.
    """
    layers = int(outline_config(ref).get_text_config().num_hidden_layers)
    section = section.model_copy(
        update={"adapter": section.adapter.model_copy(update={"layers": None})}
        if layers > LAYERS[1] and section.adapter.layers
        else {}
    )
    options = {"accumulated": accumulated, "checkpointing": checkpointing, "cuda": cuda}
    shape = (rows, width, trained)
    try:
        at_pass, at_step = _peaks_of_layers(ref, section, layers, shape, **options)
    except RuntimeError as error:
        raise ModelError(
            f"{ref.name}: the memory of its training is not known before it runs "
            f"({str(error).partition(chr(10))[0]})"
        ) from error
    peak = max(at_pass, at_step, key=lambda memory: memory.total)
    return peak.with_slack() if cuda else peak


def _peaks_of_layers(
    ref: ModelRef, section: TrainSection, layers: int, shape: tuple[int, int, int], **options: bool
) -> tuple[StepMemory, StepMemory]:
    """`_peaks` of a model with `layers` layers."""
    if layers <= LAYERS[1] or section.method == "full":
        return _peaks(outline(ref), section, shape, **options)
    few, more = (_peaks(outline(ref, count), section, shape, **options) for count in LAYERS)
    at_pass, at_step = (
        StepMemory(
            **{
                part: last + (last - first) * (layers - LAYERS[1]) // (LAYERS[1] - LAYERS[0])
                for (part, last), first in zip(vars(second).items(), vars(start).values(), strict=True)
            }
        )
        for start, second in zip(few, more, strict=True)
    )
    return at_pass, at_step


def largest_micro_batch(peak: Callable[[int], int], batch: int, memory: float) -> int:
    """The most rows of a forward pass, a divisor of `batch`, whose peak is within `memory`; at least 1.

    Args:
        peak: bytes that an optimizer step takes with so many rows in a pass.
        batch: rows of an optimizer step.
        memory: bytes.
    """
    if peak(batch) <= memory:
        return batch
    smaller = [rows for rows in range(batch - 1, 0, -1) if batch % rows == 0]
    return [*smaller, 1][bisect_left(smaller, True, key=lambda rows: peak(rows) <= memory)]


def fitting_micro_batch(
    ref: ModelRef, section: TrainSection, examples: Sequence[Example], device: "torch.device"
) -> int | None:
    """The most rows of a forward pass that fit into the memory of `device`, which holds the weights.

    On a card that is its free memory, on a CPU see `batches.training_memory_share`. None where all rows fit
    without a doubt, or it is not known: with Unsloth's kernels; for one of several processes, which must all
    run the same passes; and for models whose passes need more than shapes.

    Raises:
        RecipeError: see `add_method`.
    """
    if section.backend == "unsloth" or "RANK" in os.environ:
        return None
    cuda = device.type == "cuda"
    memory = free_memory(device) if cuda else training_memory_share()
    width = max(len(row.input_ids) for row in examples)
    if not cuda and section.batch_size * width * _most_of_a_token(ref) <= memory:
        return None
    trained = max(sum(label != IGNORED for label in row.labels) for row in examples)

    def taken(rows: int) -> int:
        peak = training_memory(
            ref,
            section,
            rows=rows,
            width=width,
            trained=trained,
            accumulated=rows < section.batch_size,
            checkpointing=cuda and section.method != "prefix",
            cuda=cuda,
        )
        return peak.total - peak.weights - peak.adapters - (int(CUDA_CONTEXT) if cuda else 0)

    try:
        return largest_micro_batch(taken, section.batch_size, memory)
    except ModelError:
        return None


def _most_of_a_token(ref: ModelRef) -> int:
    """More bytes than a token takes in a training in fp32 without checkpointing, at a glance."""
    config = outline_config(ref)
    token = token_bytes(config, element=4)
    return ROUGHLY * (int(config.get_text_config().num_hidden_layers) * token.states + token.logits)


def _peaks(
    model: Model, section: TrainSection, shape: tuple[int, int, int], *, cuda: bool, **how: bool
) -> tuple[StepMemory, StepMemory]:
    """The peak of the passes, and that of the optimizer's step, of an outline that is changed."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = getattr(torch, DTYPES[base_precision(section)])
    model = model.to(dtype)
    linear: list[Any] = list(linear_modules(model).values()) if section.method == "qlora" else []
    quantized = [int(module.weight.numel()) for module in linear]
    saved = int(sum(quantized) * (dtype.itemsize - QUANTIZED[section.qlora.quantize]))
    # A quantised or decomposed base has an ordinary adapter's shapes.
    plain = section.method in ("qlora", "pissa")
    with torch.device("meta"):
        model = add_method(model, section.model_copy(update={"method": "lora"}) if plain else section)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_with_fakes(model)
        weights = list(model.parameters())
        learning = [weight for weight in weights if weight.requires_grad]
        passes = _forward_and_backward(model, section, shape, **how)
    everything, learned = (sum(map(_bytes, each)) for each in (weights, learning))
    base = everything if section.method == "full" else everything - learned
    state, temporary = optimizer_bytes(section, learning, foreach=cuda)
    at_pass = StepMemory(
        weights=base - saved,
        adapters=everything - base,
        gradients=learned if how["accumulated"] else passes["gradients"],
        optimizer=state,
        # And a dequantised copy of the matrix that is multiplied.
        activations=passes["activations"] + max(quantized, default=0) * dtype.itemsize,
        logits=passes["logits"],
    )
    return at_pass, replace(at_pass, gradients=learned, activations=temporary, logits=0)


def _bytes(weight: "torch.Tensor") -> int:
    return weight.numel() * weight.element_size()


def _forward_and_backward(
    model: Model,
    section: TrainSection,
    shape: tuple[int, int, int],
    *,
    accumulated: bool,
    checkpointing: bool,
) -> Any:
    """The peak of the tensors that one pass over rows of fake tokens makes, by part."""
    import torch

    rows, width, trained = shape
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if section.method != "full":
            model.enable_input_require_grads()
    model.train()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    if accumulated:
        for weight in learning:
            weight.grad = torch.empty_like(weight)
    mixed = section.precision == "bf16_mixed"
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext()
    ids = torch.zeros(rows, width, dtype=torch.long)
    targets = torch.zeros(rows * trained, dtype=torch.long)

    def last_tokens(_: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        # As `sft_trainer._logits_only_at`, with as many tokens of every row.
        return inputs[0].flatten(0, 1)[targets]

    model.get_output_embeddings().register_forward_pre_hook(last_tokens)
    tracker = MemoryTracker(int(model.config.get_text_config().vocab_size))
    tracker.ignore(model.parameters())
    tracker.ignore(model.buffers())
    tracker.watch([] if accumulated else learning)
    with tracker:
        with autocast:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss: Any = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        del logits
        loss.backward()
    return tracker.peak


def optimizer_bytes(
    section: TrainSection, weights: "list[torch.nn.Parameter]", *, foreach: bool
) -> tuple[int, int]:
    """Bytes of the optimizer's state of the trained `weights`, and of the temporaries of its step.

    torch's AdamW on CUDA handles all weights at once (`foreach`) and holds one more array of their size,
    the root of the second moments. bitsandbytes' 8-bit AdamW has two bytes of state for a weight.
    """
    count = sum(weight.numel() for weight in weights)
    size = sum(map(_bytes, weights))
    largest = max((weight.numel() for weight in weights), default=0)
    if section.precision == "bf16_kahan":
        return 2 * count + 8 * count, 5 * 4 * largest  # `KahanAdamW`: compensation, moments in fp32
    match section.optimizer:
        case "adamw_8bit":
            return 2 * count, 0
        case "sgd":
            return (size if section.momentum else 0), 0
        case "muon":
            matrices = sum(_bytes(weight) for weight in weights if weight.ndim == 2)
            return matrices + 2 * (size - matrices), 3 * 2 * largest
        case _:
            return 2 * size, size if foreach else 2 * 4 * largest
