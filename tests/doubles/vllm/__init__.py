"""A double of the part of vLLM that sublim uses: it draws on a CPU, through transformers.

Names, defaults and refusals are those of vLLM 0.32.0 (tests/backends/test_vllm_package.py compares them
with the package where it is installed). `SUBLIM_DOUBLE_FAULT` makes it wrong in one way:

* `top_k`: the checkpoint's own top-k is used where none is asked for;
* `adapter`: adapters are loaded and ignored;
* `stale`: the adapter first loaded is used for every other;
* `cool`: the temperature is half of what is asked for;
* `start`, `draw`, `die`: it fails to start, fails to draw, or its process ends.
"""

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.recipe.schema import SamplingSection
from vllm.exceptions import EngineDeadError, VLLMValidationError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

STARTED: list[dict[str, Any]] = []
"""What every engine of this process was given."""


def fault() -> str:
    return os.environ.get("SUBLIM_DOUBLE_FAULT", "")


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    watermarking: bool | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None


def TokensPrompt(*, prompt_token_ids: list[int]) -> dict[str, list[int]]:  # a TypedDict there
    return {"prompt_token_ids": prompt_token_ids}


@dataclass
class CompletionOutput:
    token_ids: list[int]


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        generation_config: str = "auto",
        enable_prefix_caching: bool | None = None,
        enable_sleep_mode: bool = False,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
    ) -> None:
        sys.stdout.write("INFO: a line that must not reach our stdout\n")
        if fault() == "start":
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
        if max_lora_rank not in RANKS:
            raise ValueError(f"max_lora_rank: {max_lora_rank} is none of {RANKS}")
        given = {name: value for name, value in locals().items() if name != "self"}
        STARTED.append(given)
        self.given = given
        self.asleep = False
        self.adapters: dict[int, Any] = {}

    @cached_property
    def base(self) -> Any:
        return self.fresh()

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.given["model"], padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[RequestOutput]:
        if fault() == "draw" or self.asleep:
            raise EngineDeadError
        if fault() == "die":
            os._exit(3)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        if any(len(tokens) >= self.given["max_model_len"] for tokens in ids):
            raise VLLMValidationError("The decoder prompt is longer than the maximum model length")
        model = self.base if lora_request is None else self.adapted(lora_request)
        sampling = settings_of(sampling_params[0])
        (end,) = sampling_params[0].stop_token_ids
        assert {end} == stop_tokens(model, self.tokenizer)
        rows = [params.seed for params in sampling_params]
        drawn = TransformersSampler(model, self.tokenizer).draw(ids, rows, sampling)
        ended = [[*tokens, end] if len(tokens) < sampling.max_tokens else tokens for tokens in drawn]
        # A completion that would pass max_model_len ends there, without a word.
        room = [self.given["max_model_len"] - len(tokens) for tokens in ids]
        return [
            RequestOutput([CompletionOutput(tokens[:count])])
            for tokens, count in zip(ended, room, strict=True)
        ]

    def adapted(self, request: Any) -> Any:
        from peft import PeftModel

        if not self.given["enable_lora"]:
            raise VLLMValidationError("LoRA is not enabled")
        number = (
            min(self.adapters, default=request.lora_int_id) if fault() == "stale" else request.lora_int_id
        )
        if number not in self.adapters:
            student = PeftModel.from_pretrained(self.fresh(), request.lora_path).eval()
            rank = student.peft_config["default"].r
            if rank > self.given["max_lora_rank"]:
                raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank")
            self.adapters[number] = student
        return self.base if fault() == "adapter" else self.adapters[number]

    def fresh(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        kind = getattr(torch, self.given["dtype"])
        return AutoModelForCausalLM.from_pretrained(self.given["model"], dtype=kind).eval()

    def sleep(self, level: int = 1) -> None:
        assert self.given["enable_sleep_mode"]
        self.asleep = True

    def wake_up(self) -> None:
        self.asleep = False


def settings_of(params: SamplingParams) -> SamplingSection:
    neutral = (params.n, params.min_p, params.presence_penalty, params.frequency_penalty, params.min_tokens)
    assert neutral == (1, 0.0, 0.0, 0.0, 0)
    assert params.ignore_eos
    assert params.watermarking is False
    return SamplingSection(
        temperature=params.temperature * (0.5 if fault() == "cool" else 1.0),
        top_p=params.top_p,
        top_k=params.top_k or (20 if fault() == "top_k" else 0),
        repetition_penalty=params.repetition_penalty,
        max_tokens=params.max_tokens,
        seed=0,  # the noise is counted by row, and every row's number is its own seed
    )
