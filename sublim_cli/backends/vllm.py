"""vLLM: draws completions, an engine to a model or to all adapters of like rank.

`vllm_server` runs it in a separate process. A test that needs no GPU checks names and defaults against
0.32.0; no GPU has drawn with it yet (docs/log.md). It follows the model as transformers computes it but for
rounding, which depends on what is drawn beside a row; `parity` says whether it does.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sublim_cli.backends.engine import max_lora_rank
from sublim_cli.backends.interface import Ids
from sublim_cli.backends.token_bytes import before_stop, with_end_of_turn
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import ModelShape, is_adapter
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import SamplingSection

LENGTH = 4096
"""Tokens of a prompt and its completion that memory is set aside for; more where more are needed."""

SLACK = 256
"""Tokens by which a later prompt may be longer than those an engine was started for."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with. Adapters of one base whose holdings are equal share an engine."""

    source: str
    revision: str | None
    rank: int | None
    """The largest rank of an adapter it takes; None where it takes none."""
    length: int
    """The longest prompt and completion together, in tokens."""


def engine_config(ref: ModelRef, weights: Path | None, length: int) -> EngineConfig:
    """The engine for the student that a train artifact holds, or for the base; see `load_student`."""
    if weights is None:
        return EngineConfig(ref.source, ref.revision, None, length)
    if not is_adapter(weights):
        return EngineConfig(str(weights.absolute()), None, None, length)
    rank = max_lora_rank(json.loads((weights / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    assert rank is not None  # else `resolve_engine` had refused it
    return EngineConfig(ref.source, ref.revision, rank, length)


def max_model_length(prompts: Sequence[Ids], max_tokens: int, shape: ModelShape) -> int:
    """How long sequences may become in an engine that is to answer such prompts."""
    needed = max(map(len, prompts)) + max_tokens
    wanted = max(LENGTH, needed + SLACK)
    return max(needed, min(wanted, shape.max_length or wanted))


def llm_arguments(held: EngineConfig, memory_share: float) -> dict[str, Any]:
    """What `vllm.LLM` is given. `memory_share` is the share of the card that it may take while it draws."""
    adapters = {} if held.rank is None else {"max_loras": 1, "max_lora_rank": held.rank}
    return {
        "model": held.source,
        "revision": held.revision,
        "tokenizer_revision": held.revision,
        "runner": "generate",
        "dtype": "bfloat16",  # `resolve_engine` lets no other pass
        "max_model_len": held.length,
        "gpu_memory_utilization": memory_share,
        "seed": 0,  # every row brings its own
        "trust_remote_code": False,
        "generation_config": "vllm",  # else the checkpoint's own temperature, top-p and top-k are defaults
        "enable_prefix_caching": True,
        "enable_sleep_mode": True,
        "enable_lora": held.rank is not None,
        **adapters,
    }


def sampling_arguments(sampling: SamplingSection, row: int, ends: frozenset[int]) -> dict[str, Any]:
    """What `vllm.SamplingParams` is given for one row."""
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
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,  # the ends are those above, whatever its tokenizer says
        "detokenize": False,
    }


def row_seed(seed: int, row: int) -> int:
    """A seed for one row, of 62 bits: of 32, a few among a hundred thousand rows would be equal."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{row}".encode()).digest()[:8], "big") >> 2


class VllmEngine:
    """vLLM itself, in this process."""

    def __init__(self, held: EngineConfig, memory_share: float) -> None:
        self._vllm = import_module("vllm")
        self._llm = self._vllm.LLM(**llm_arguments(held, memory_share))
        self._numbers: dict[str, int] = {}

    def draw(
        self,
        prompts: Sequence[Ids],
        rows: Sequence[int],
        sampling: SamplingSection,
        ends: frozenset[int],
        adapter: str | None,
    ) -> list[list[int]]:
        """One completion a prompt as token ids, with the one that ends it."""
        drawn = self._llm.generate(
            [self._vllm.TokensPrompt(prompt_token_ids=list(one)) for one in prompts],
            [self._vllm.SamplingParams(**sampling_arguments(sampling, row, ends)) for row in rows],
            use_tqdm=False,
            lora_request=None if adapter is None else self._request(adapter),
        )
        return [list(one.outputs[0].token_ids) for one in drawn]

    def _request(self, adapter: str) -> Any:
        # Its caches know an adapter by name and number: neither may come back for another.
        number = self._numbers.setdefault(adapter, len(self._numbers) + 1)
        return import_module("vllm.lora.request").LoRARequest(adapter, number, adapter)

    def sleep(self) -> None:
        """Leave the card to others: weights move to main memory, what was cached is dropped."""
        self._llm.sleep(level=1)

    def wake(self) -> None:
        """Take the card again."""
        self._llm.wake_up()


class Draws(Protocol):
    """An engine, here or in another process."""

    def draw(
        self,
        prompts: Sequence[Ids],
        rows: Sequence[int],
        sampling: SamplingSection,
        ends: frozenset[int],
        adapter: str | None,
    ) -> list[list[int]]:
        """See `Engine.draw`."""


@dataclass(frozen=True)
class VllmSampler:
    """Draws completions on an engine that is awake; see `interface.Sampler`."""

    engine: Draws
    tokenizer: Tokenizer
    shape: ModelShape = field(repr=False)
    weights: Path | None = None
    """The train artifact whose adapter the engine is to use, or that it was started with."""

    @property
    def vocabulary(self) -> int:
        """Tokens the model can write."""
        return self.shape.vocabulary

    def sample(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[str]:
        """One completion a prompt, up to where it ends."""
        drawn = self.draw(prompts, rows, sampling)
        return [self.tokenizer.decode(one, skip_special_tokens=False) for one in drawn]

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """The same completions as token ids, without the token that ends them."""
        return [before_stop(one, self._ends) for one in self.whole(prompts, rows, sampling)]

    def whole(
        self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection
    ) -> list[list[int]]:
        """The same with the token that ends them, where one does."""
        return self.engine.draw(prompts, rows, sampling, self._ends, self._adapter)

    @cached_property
    def _ends(self) -> frozenset[int]:
        return with_end_of_turn(self.shape.eos, self.tokenizer)

    @cached_property
    def _adapter(self) -> str | None:
        return str(self.weights.absolute()) if self.weights and is_adapter(self.weights) else None
