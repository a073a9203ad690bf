"""Drawing completions with vLLM: one engine for a model, or for all adapters of a base that fit its rank.

`vllm_server` runs it in a separate process. Tests that need no GPU check names and defaults against 0.32.0,
and draw with its CPU build (`make test-engines`); no GPU has drawn with it yet, and the CPU build does not
have Model Runner V2, the default on a GPU (docs/log.md). Completions follow the same distribution as
transformers', up to rounding, which depends on the other rows of the batch; `parity` checks that they do.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from sublim_cli.backends.engine import max_lora_rank, uses_cpu_build
from sublim_cli.backends.interface import Ids, NumberedCompletion, NumberedPrompt, Sampler
from sublim_cli.backends.token_bytes import before_stop, with_end_of_turn
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import ModelShape, is_adapter, meta_model
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import SamplingSection

BATCH = 256
"""Rows of a stream that are passed to the engine at a time."""

LENGTH = 4096
"""Tokens of a prompt and its completion that memory is reserved for, unless more are needed."""

SLACK = 256
"""Tokens by which a later prompt may be longer than those an engine was started for."""

CPU_ARGUMENTS: dict[str, Any] = {
    "kv_cache_memory_bytes": 1 << 30,
    "enforce_eager": True,
    "enable_chunked_prefill": False,
}
"""Arguments for the CPU build. The default for keys and values is a share of main memory; compiling takes
longer than drawing; and a prompt in two parts ends the engine of 0.32.0 where rows have seeds (`CPU Generator
does not use offset`)."""

CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The widths of attention heads that the CPU build computes (0.32.0, `CPUAttentionBackend`)."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. Students with the same configuration share an engine."""

    source: str
    revision: str | None
    rank: int | None
    """The largest rank of an adapter it takes; None where it takes none."""
    length: int
    """The longest prompt and completion together, in tokens."""


@dataclass(frozen=True)
class DrawRequest:
    """Completions to draw, one for each prompt."""

    prompts: Sequence[Ids]
    rows: Sequence[int]
    """With the sampling's seed, `rows[i]` decides the noise of the i-th."""
    sampling: SamplingSection
    stops: frozenset[int]
    """Tokens that end a completion."""
    adapter: str | None
    """Path of the adapter that draws, None for the model that the engine was started with."""


def engine_config(ref: ModelRef, weights: Path | None, length: int) -> EngineConfig:
    """The engine for the student in a train artifact, or for the base; see `load_student`."""
    if weights is None:
        return EngineConfig(ref.source, ref.revision, None, length)
    if not is_adapter(weights):
        return EngineConfig(str(weights.absolute()), None, None, length)
    rank = max_lora_rank(json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    assert rank is not None  # `resolve_engine` refuses other ranks
    return EngineConfig(ref.source, ref.revision, rank, length)


def max_model_length(prompts: Sequence[Ids], max_tokens: int, shape: ModelShape) -> int:
    """The sequence length, in tokens, of an engine for such prompts: within the model's if that suffices."""
    needed = max(map(len, prompts)) + max_tokens
    wanted = max(LENGTH, needed + SLACK)
    return max(needed, min(wanted, shape.max_length or wanted))


def check_head_width(ref: ModelRef, key: str) -> None:
    """Refuse a model that the CPU build cannot compute; on a GPU vLLM computes all.

    Raises:
        RecipeError: the width of its heads is none of `CPU_HEAD_WIDTHS`; the message names `key`.
        ModelError: its configuration cannot be loaded.
    """
    if not uses_cpu_build():
        return
    config = meta_model(ref).config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width not in CPU_HEAD_WIDTHS:
        raise RecipeError(
            f"{key}: vllm: the heads of {ref.name} are {width} wide, and vLLM on a CPU computes widths of "
            f"{', '.join(map(str, CPU_HEAD_WIDTHS))} only. `{key}: transformers` works here"
        )


def llm_arguments(config: EngineConfig, memory_share: float, *, on_cpu: bool = False) -> dict[str, Any]:
    """The arguments of `vllm.LLM`.

    Args:
        config: what is loaded.
        memory_share: the share of the GPU's memory that it may use; not used on a CPU.
        on_cpu: for the CPU build, which has no sleep mode.
    """
    memory: dict[str, Any] = {"gpu_memory_utilization": memory_share, "enable_sleep_mode": True}
    adapters = {} if config.rank is None else {"max_loras": 1, "max_lora_rank": config.rank}
    return {
        "model": config.source,
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "runner": "generate",
        "dtype": "bfloat16",  # `resolve_engine` refuses other precisions
        "max_model_len": config.length,
        "seed": 0,  # every row has its own
        "trust_remote_code": False,
        "generation_config": "vllm",  # else the checkpoint's temperature, top-p and top-k are the defaults
        "enable_prefix_caching": True,
        "enable_lora": config.rank is not None,
        **adapters,
        **(CPU_ARGUMENTS if on_cpu else memory),
    }


def sampling_arguments(sampling: SamplingSection, row: int, stops: frozenset[int]) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` for one row."""
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": None,
        "watermarking": False,
        "seed": row_seed(sampling.seed, row),
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "stop": None,
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,  # `stops` holds the eos token; vLLM's own choice of it must not apply
        "detokenize": False,
    }


def row_seed(seed: int, row: int) -> int:
    """A seed for one row, of 62 bits: of 32, a few among a hundred thousand rows would be equal."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{row}".encode()).digest()[:8], "big") >> 2


class VllmEngine:
    """vLLM itself, in this process."""

    def __init__(self, config: EngineConfig, memory_share: float) -> None:
        self._vllm = import_module("vllm")
        self._on_cpu = uses_cpu_build()
        self._max_length = config.length
        self._llm = self._vllm.LLM(**llm_arguments(config, memory_share, on_cpu=self._on_cpu))
        self._adapter_numbers: dict[str, int] = {}

    def draw(self, request: DrawRequest) -> list[list[int]]:
        """One completion for each prompt as token ids, with the token that ends it.

        Raises:
            ModelError: a prompt and its completion may be longer than the engine's length. vLLM would end the
                completion early.
        """
        longest = max(map(len, request.prompts)) + request.sampling.max_tokens
        if longest > self._max_length:
            raise ModelError(
                f"a prompt and its completion may have {longest} tokens, and the engine holds "
                f"{self._max_length}"
            )
        lora = None
        if request.adapter is not None:
            # vLLM's caches identify an adapter by name and number: neither may be used for another one.
            number = self._adapter_numbers.setdefault(request.adapter, len(self._adapter_numbers) + 1)
            lora_request = import_module("vllm.lora.request").LoRARequest
            lora = lora_request(request.adapter, number, request.adapter)
        outputs = self._llm.generate(
            [self._vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in request.prompts],
            [
                self._vllm.SamplingParams(**sampling_arguments(request.sampling, row, request.stops))
                for row in request.rows
            ],
            use_tqdm=False,
            lora_request=lora,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def sleep(self) -> None:
        """Free the GPU: weights move to main memory, the key-value cache is dropped. On a CPU, nothing."""
        if not self._on_cpu:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Move the weights back to the GPU."""
        if not self._on_cpu:
            self._llm.wake_up()


@dataclass(frozen=True)
class VllmSampler(Sampler):
    """Draws completions on an engine that is awake; see `interface.Sampler`."""

    draw_request: Callable[[DrawRequest], list[list[int]]]
    """`VllmEngine.draw`, in this process or in another (`vllm_server`)."""
    tokenizer: Tokenizer
    shape: ModelShape = field(repr=False)
    weights: Path | None = None
    """The train artifact whose adapter draws, or whose model the engine was started with."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the model's vocabulary."""
        return self.shape.vocabulary

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """See `interface.Sampler`."""
        return [before_stop(ids, self._stops) for ids in self.draw_with_stop(prompts, rows, sampling)]

    def stream(
        self,
        prompts: Iterator[NumberedPrompt],
        sampling: SamplingSection,
        after_step: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[NumberedCompletion]:
        """See `interface.Sampler`; `BATCH` rows at a time, in the order of the prompts."""
        while batch := list(islice(prompts, BATCH)):
            rows = [row for row, _ in batch]
            drawn = self.draw([prompt for _, prompt in batch], rows, sampling)
            after_step(sum(map(len, drawn)))
            yield from zip(rows, drawn, strict=True)

    def draw_with_stop(
        self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection
    ) -> list[list[int]]:
        """The same with the token that ends them; one cut off at `max_tokens` has none."""
        adapter = str(self.weights.absolute()) if self.weights and is_adapter(self.weights) else None
        return self.draw_request(DrawRequest(prompts, rows, sampling, self._stops, adapter))

    @cached_property
    def _stops(self) -> frozenset[int]:
        return with_end_of_turn(self.shape.eos, self.tokenizer)
