"""Batches: token sequences as padded tensors, how many rows fit into memory, and what to do when they do not.

A batch has as many rows as the caller wants, or as fit (`rows_that_fit`). Where memory runs out all the same,
`in_batches` halves it and goes on. Results do not depend on its size, apart from rounding.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.device import worker_slots

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

BATCH_MEMORY = "SUBLIM_BATCH_MEMORY"
"""The environment variable for the GiB that a batch may take outside of training; see `batch_memory`."""

GIB = 2**30

CUDA_SHARE = 0.8
"""Share of a card's free memory that a batch may take. The rest is for the allocator's fragments and for
what `token_bytes` does not count, such as the workspaces of matrix products."""

CPU_SHARE = 0.5
"""Share of the available main memory that the batches of all workers of this machine may take."""

UNKNOWN_MEMORY = 4 * GIB
"""The main memory taken to be available where the system does not say."""

LOGIT_COPIES = 4
"""Arrays in float32 of a row's logits that are alive while a token is drawn: the logits as the model returns
them, in float32, after softmax, and sorted or summed up."""

OUT_OF_MAIN_MEMORY = "DefaultCPUAllocator: "
"""How torch's error begins where a CPU allocation fails (after the place in its source)."""

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of main memory in a container or a Slurm job, of control groups version 2 and 1."""


@dataclass(frozen=True)
class TokenBytes:
    """Memory that tokens take in a forward pass without gradients, in bytes."""

    cache: int
    """Keys and values of a token in all layers."""
    states: int
    """A token's hidden states, queries and MLP activations in one layer; they are freed layer by layer."""
    scores: int
    """Attention scores of a pair of tokens in one layer; 0 for kernels that do not store them."""
    logits: int
    """The logits of one position in float32."""

    def row(self, width: int, *, logits: float = LOGIT_COPIES, cached: bool = True) -> int:
        """Bytes of a row of `width` tokens.

        Args:
            width: tokens.
            logits: arrays in float32 over the vocabulary.
            cached: whether the keys and values of all layers are kept.
        """
        kept = self.cache if cached else 0
        return int(width * (kept + self.states + width * self.scores) + logits * self.logits)


def token_bytes(config: Any, element: int, attention: str | None = None) -> TokenBytes:
    """The memory of tokens in a model, from its configuration alone.

    A model with fewer keys and values than an ordinary transformer (a sliding window, recurrent or shared
    layers) takes less.

    Args:
        config: the transformers configuration.
        element: bytes of a number in the dtype that the model computes in.
        attention: the implementation of attention; None for the one that `config` names.
    """
    text = config.get_text_config()
    layers, hidden = int(text.num_hidden_layers), int(text.hidden_size)
    heads = _largest(text, "num_attention_heads", 1)
    head_width = _largest(text, "head_dim", hidden // heads)
    kv_heads = _largest(text, "num_key_value_heads", heads)
    inner = _largest(text, "intermediate_size", 4 * hidden)
    attention = attention or getattr(config, "_attn_implementation", None)
    return TokenBytes(
        cache=2 * layers * kv_heads * head_width * element,
        # The residual stream before and after a norm, queries and attention output; gate, up and product.
        states=(2 * hidden + 2 * heads * head_width + 3 * inner) * element,
        scores=heads * (element + 4) if attention == "eager" else 0,  # its softmax is in float32
        logits=4 * int(text.vocab_size),
    )


def _largest(config: Any, name: str, default: int) -> int:
    """A number of a configuration, or the largest where it gives one for every layer."""
    value = getattr(config, name, None)
    if isinstance(value, list | tuple):
        value = max(filter(None, value), default=None)
    return int(value) if value else default


def loss_copies(element: int) -> float:
    """Arrays in float32 of logits that are alive while a loss is computed.

    They are the logits in float32 and after log-softmax, and as the model returns them if that is another
    dtype, whose numbers have `element` bytes.
    """
    return 2.0 if element == 4 else 2.0 + element / 4


def rows_that_fit(
    model: Any, width: int, *, most: int, logits: float = LOGIT_COPIES, cached: bool = True
) -> int:
    """How many rows a batch of `model` may have: a power of two, or `most`; at least one.

    Args:
        model: a transformers model, or a PEFT model around one.
        width: tokens of a row, its completion included.
        most: the number of rows wanted.
        logits: arrays in float32 over the vocabulary that a row takes.
        cached: whether the keys and values of all layers are kept.

    Raises:
        RecipeError: see `batch_memory`.
    """
    row = token_bytes(model.config, model.dtype.itemsize).row(width, logits=logits, cached=cached)
    return fitting_rows(batch_memory(model.device), row, most)


def fitting_rows(memory: int, row: int, most: int) -> int:
    """How many rows of `row` bytes each fit into `memory`: a power of two, or `most`; at least one."""
    fitting = memory // row
    # Powers of two, so that small changes of free memory do not change the batch, and so the last bits.
    return most if fitting >= most else 1 << max(0, int(fitting).bit_length() - 1)


def batch_memory(device: "torch.device") -> int:
    """Bytes that a batch may take on `device`: `SUBLIM_BATCH_MEMORY`, else a share of what is free there.

    Raises:
        RecipeError: the variable is not a positive number of GiB.
    """
    text = os.environ.get(BATCH_MEMORY)
    if not text:
        free = free_memory(device)
        return int(free * (CPU_SHARE / worker_slots() if device.type == "cpu" else CUDA_SHARE))
    try:
        wanted = float(text)
    except ValueError:
        wanted = 0.0
    if not 0 < wanted < float("inf"):
        raise RecipeError(f"{BATCH_MEMORY}={text}: must be a number of GiB above 0, such as 4")
    return int(wanted * GIB)


def free_memory(device: "torch.device") -> int:
    """Bytes that new tensors can take on `device`.

    On a CPU what the system calls available, within the limit of the process's control group.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    available = [_available_main_memory()]
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):  # there is no such group, or its limit is "max"
            available.append(int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
    return max(0, min(available))


def training_memory_share() -> int:
    """Bytes of main memory that a training on a CPU may take, within the limit of its control group.

    A share of what the machine has, not of what is free, so that the same machine computes the same bits.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):  # not on every system
        total = UNKNOWN_MEMORY
    limits = [total]
    for limit, _ in CGROUPS:
        with suppress(OSError, ValueError):
            limits.append(int(Path(limit).read_text("ascii")))
    return int(min(limits) * CPU_SHARE / worker_slots())


def _available_main_memory() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):  # not on every system
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return UNKNOWN_MEMORY


def in_batches(
    items: Sequence[T],
    compute: Callable[[Sequence[T]], R],
    size: int,
    *,
    noun: str = "row",
    remedy: str = "A smaller model, weights in bf16 or a device with more memory needs less",
) -> Iterator[R]:
    """`compute` of consecutive batches of up to `size` items, in order.

    A batch for which memory runs out is tried again in halves, and so are all after it. Batches that are
    finished stay finished.

    Raises:
        ModelError: a single item does not fit; it names the `noun` of an item and ends with the `remedy`.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        result = unless_out_of_memory(partial(compute, batch))
        if result is not None:
            yield result[0]
            start += len(batch)
        elif len(batch) > 1:
            size = len(batch) // 2
        else:
            raise ModelError(f"memory runs out with a single {noun}. {remedy}")


def unless_out_of_memory(compute: Callable[[], R]) -> tuple[R] | None:
    """What `compute` returns, or None if memory ran out; what it held is then free for another attempt."""
    try:
        return (compute(),)
    except (RuntimeError, MemoryError) as error:  # torch's errors are RuntimeErrors
        if not is_out_of_memory(error):
            raise
    # Outside of the block: until its end the error's traceback keeps the attempt's tensors alive.
    release_memory()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a card or in main memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MAIN_MEMORY in str(error)
    )


def release_memory() -> None:
    """Free tensors that only reference cycles hold, and return cached memory to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def left_padded(rows: Sequence[Sequence[int]], fill: int, device: "torch.device") -> "torch.Tensor":
    """The rows as a tensor [rows, longest], filled with `fill` on the left."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], device=device)


def attention_mask(rows: Sequence[Sequence[int]], device: "torch.device") -> "torch.Tensor":
    """1 for a token of `left_padded` and 0 for padding: [rows, longest]."""
    return left_padded([[1] * len(row) for row in rows], 0, device)


def position_ids(mask: "torch.Tensor") -> "torch.Tensor":
    """Position ids that count a row's tokens from 0 after the padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
