"""Run the Unsloth that is installed on a CPU: its kernels in Triton's interpreter, everything else as it is.

`prepare()` has to be called before torch's users are imported, `patch()` after `import unsloth`, and
`patch_trainer()` before a trainer is made. Read and run against unsloth 2026.10.7 and triton 3.7.1.
What is changed, and why:

* Unsloth asks CUDA for its device's properties: the questions get fixed answers.
* Triton's interpreter stores bfloat16 as uint16 and computes with those bits: it gets the arithmetic.
* The interpreter runs one program of a grid after the other, 11 to 30 ms each. For the kernels that treat
  rows alike (`ROW_KERNELS`) all programs of the first grid axis run at once, as a leading numpy axis.
* On an fp32 base Unsloth leaves the LoRA kernels to PEFT. `patch(fp32=True)` has it use them, so that they
  can be compared without rounding.
"""

import os
import sys
import tempfile
import types
from collections import Counter
from typing import Any

ENVIRONMENT = {
    "UNSLOTH_ALLOW_CPU": "1",
    "TRITON_INTERPRET": "1",
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_DISABLE_PINNED_MEMORY": "1",
    "UNSLOTH_DISABLE_DOUBLE_BUFFER": "1",
    "UNSLOTH_RMSNORM_MULTIROW": "0",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "HF_HUB_OFFLINE": "1",
}

ROW_KERNELS = (
    "_rms_layernorm_forward",
    "_rms_layernorm_backward",
    "_rope_embedding",
    "_rope_embedding_QK",
    "_fg_kernel",
    "_DWf_DW_dfg_kernel",
)
"""Kernels without a branch on `program_id(0)`."""

calls: Counter[str] = Counter()
"""How often each Triton kernel, and each of Unsloth's LoRA functions, was run."""


class SingleDeviceList:
    """A list over devices that has one element, whatever index is asked for (Unsloth indexes by device)."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, _: object) -> Any:
        return self.value

    def __setitem__(self, _: object, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return 1


class SingleDeviceCount(int):
    """The number 1, for which `[x] * count` is a `SingleDeviceList`."""

    def __rmul__(self, values: Any) -> Any:
        return SingleDeviceList(values[0])


def prepare() -> None:
    """Set the environment, and let autocast functions for CUDA apply to the CPU."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp())
    import torch

    def for_cpu(decorator: Any) -> Any:
        def decorate(function: Any = None, **options: Any) -> Any:
            if options.get("device_type") == "cuda":
                options["device_type"] = "cpu"
            return decorator(**options) if function is None else decorator(function, **options)

        return decorate

    torch.amp.custom_fwd = for_cpu(torch.amp.custom_fwd)
    torch.amp.custom_bwd = for_cpu(torch.amp.custom_bwd)


def patch(*, fp32: bool = False) -> None:
    """Answer Unsloth's questions about the device, and mend and speed up the interpreter."""
    import torch
    from unsloth.kernels import fast_lora
    from unsloth.models import _utils, llama

    _utils.SUPPORTS_BFLOAT16 = True  # else bf16 becomes fp16
    properties = types.SimpleNamespace(
        name="interpreter",
        major=9,
        minor=0,
        total_memory=1 << 36,
        multi_processor_count=4,
        max_threads_per_multi_processor=2048,
        shared_memory_per_block_optin=232448,
        is_integrated=0,
    )
    torch.cuda.get_device_properties = lambda *_, **__: properties
    torch.cuda.get_device_capability = lambda *_, **__: (properties.major, properties.minor)
    torch.cuda.current_device = lambda: 0
    for name, module in list(sys.modules.items()):
        if name.startswith("unsloth.models") and getattr(module, "DEVICE_TYPE_TORCH", None) == "cuda":
            module.DEVICE_TYPE_TORCH = "cpu"
    llama.DEVICE_COUNT = SingleDeviceCount(1)
    llama.get_current_device = lambda: "cpu"
    if fp32:
        llama._base_weight_dtype = lambda _: torch.bfloat16
    for name in ("LoRA_QKV", "LoRA_W", "LoRA_MLP"):
        _count_function(getattr(fast_lora, name), name)
    _bf16_arithmetic()
    _rows_at_once()


def patch_trainer() -> None:
    """Have Unsloth rewrite TRL's trainer, as it does by itself where there is a GPU."""
    from unsloth import context_parallel, trainer
    from unsloth.models import rl

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    rl.PatchFastRL()
    trainer._patch_trl_trainer()
    context_parallel.patch_sft_trainer()


def _count_function(function: Any, name: str) -> None:
    forward = function.forward

    def counted(*args: Any, **options: Any) -> Any:
        calls[name] += 1
        return forward(*args, **options)

    function.forward = staticmethod(counted)


def _bf16_arithmetic() -> None:
    """Compute on bfloat16 in float32, and round each result to the nearest, ties to even."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    binary_op, unary_op, cast_impl = builder.binary_op, builder.unary_op, builder.cast_impl
    fp_to_fp, fma = builder.create_fp_to_fp, builder.create_fma

    def widen(bits: Any) -> Any:
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def narrow(values: Any) -> Any:
        flat = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        return flat.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)

    def is_bf16(operand: Any) -> bool:
        return operand.dtype.scalar == tl.bfloat16

    def bf16_binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not is_bf16(left):
            return binary_op(self, left, right, operation)
        result = operation(widen(left.data), widen(right.data))
        return handle(result if result.dtype == bool else narrow(result), tl.bfloat16)

    def bf16_unary_op(self: Any, operand: Any, operation: Any) -> Any:
        if not is_bf16(operand):
            return unary_op(self, operand, operation)
        return handle(narrow(operation(widen(operand.data))), tl.bfloat16)

    def bf16_cast(self: Any, source: Any, target: Any, *_: Any) -> Any:
        if target.scalar == tl.bfloat16 and not is_bf16(source):
            return handle(narrow(source.data), tl.bfloat16)
        if is_bf16(source) and target.scalar != tl.bfloat16:
            return handle(widen(source.data).astype(interpreter._get_np_dtype(target)), target.scalar)
        return cast_impl(self, source, target)

    def bf16_fp_to_fp(self: Any, source: Any, target: Any, mode: Any) -> Any:
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return bf16_cast(self, source, target)
        return fp_to_fp(self, source, target, mode)

    def bf16_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bf16(z):
            return fma(self, x, y, z)
        return handle(narrow(widen(x.data) * widen(y.data) + widen(z.data)), tl.bfloat16)

    builder.binary_op, builder.unary_op, builder.cast_impl = bf16_binary_op, bf16_unary_op, bf16_cast
    builder.create_fp_to_fp, builder.create_fma = bf16_fp_to_fp, bf16_fma
    # The check of every integer sum for overflow costs a quarter of the time.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = type(options)(
        **{**options.__dict__, "sanitize_overflow": False}
    )


def _rows_at_once() -> None:
    """Run all programs of the first grid axis of `ROW_KERNELS` together: [programs, …] instead of […].

    `program_id(0)` is then a column of numbers, and what is made from it has a leading axis more.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    executor, reductions = interpreter.GridExecutor, interpreter.ReduceOps
    program_id, splat, broadcast = (
        builder.create_get_program_id,
        builder.create_splat,
        builder.create_broadcast,
    )
    load, store = builder.create_masked_load, builder.create_masked_store
    reduce_sum, run = reductions.sum, executor.__call__
    programs: list[int] = []
    """The number of programs that run together; empty while a kernel runs as the interpreter does."""

    def all_program_ids(self: Any, axis: int) -> Any:
        if not programs or axis:
            return program_id(self, axis)
        return handle(np.arange(programs[-1], dtype=np.int32).reshape(-1, 1), tl.int32)

    def splat_rows(self: Any, result_type: Any, operand: Any) -> Any:
        if not programs or operand.data.shape != (programs[-1], 1):
            return splat(self, result_type, operand)
        shape = tuple(int(size) for size in result_type.shape)
        column = operand.data.reshape(-1, *(1 for _ in shape))
        return handle(np.broadcast_to(column, (programs[-1], *shape)), operand.dtype.scalar)

    def broadcast_rows(self: Any, operand: Any, shape: Any) -> Any:
        if not programs or operand.data.ndim <= len(shape):
            return broadcast(self, operand, shape)
        return handle(np.broadcast_to(operand.data, (programs[-1], *shape)), operand.dtype.scalar)

    def same_shape(*operands: Any) -> list[Any]:
        arrays = np.broadcast_arrays(*(operand.data for operand in operands))
        return [
            handle(np.ascontiguousarray(array), operand.dtype)
            for array, operand in zip(arrays, operands, strict=True)
        ]

    def load_rows(self: Any, pointers: Any, mask: Any, fallback: Any, *options: Any) -> Any:
        if not programs:
            return load(self, pointers, mask, fallback, *options)
        if fallback is None:
            element = pointers.get_element_ty()
            fallback = handle(np.zeros((1,), interpreter._get_np_dtype(element)), element)
        return load(self, *same_shape(pointers, mask, fallback), *options)

    def store_rows(self: Any, pointers: Any, values: Any, mask: Any, *options: Any) -> Any:
        operands = same_shape(pointers, values, mask) if programs else (pointers, values, mask)
        return store(self, *operands, *options)

    def sum_rows(self: Any, operand: Any) -> Any:
        if not programs or operand.handle.data.ndim == len(operand.shape):
            return reduce_sum(self, operand)
        assert len(operand.shape) == 1, "these kernels reduce vectors only"
        total = np.sum(operand.handle.data, axis=self.axis + 1, keepdims=True)
        return tl.core.tensor(handle(total, operand.dtype.scalar), operand.dtype.scalar)

    def run_rows(self: Any, *args: Any, **options: Any) -> Any:
        calls[self.fn.__name__] += 1
        if self.fn.__name__ not in ROW_KERNELS:
            return run(self, *args, **options)
        full_grid = self.grid

        def one_program(meta: Any) -> Any:
            grid = full_grid(meta) if callable(full_grid) else full_grid
            programs.append(int(grid[0]))
            return (1, *grid[1:])

        self.grid = one_program
        try:
            return run(self, *args, **options)
        finally:
            programs.clear()
            self.grid = full_grid

    builder.create_get_program_id, builder.create_splat = all_program_ids, splat_rows
    builder.create_broadcast = broadcast_rows
    builder.create_masked_load, builder.create_masked_store = load_rows, store_rows
    reductions.sum, executor.__call__ = sum_rows, run_rows
