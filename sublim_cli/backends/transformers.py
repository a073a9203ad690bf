"""Sampling through transformers, on any model it loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_cli.backends.interface import Ids
from sublim_cli.backends.noise import uniforms
from sublim_cli.backends.token_bytes import before_stop, stop_tokens
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import has_own_cache, prefill
from sublim_cli.recipe.schema import SamplingSection

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TransformersSampler:
    """Draws completions with `generate`, every sampling field set by hand."""

    model: Model
    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        """Tokens the model can write."""
        size: int = self.model.config.get_text_config().vocab_size
        return size

    def sample(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[str]:
        """One completion a prompt, up to where it ends; see `interface.Sampler`."""
        drawn = self.draw(prompts, rows, sampling)
        return [self.tokenizer.decode(one, skip_special_tokens=False) for one in drawn]

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """The same completions as token ids, without the token that ends them.

        Equal prompts that stand side by side share the computation of all but their last token.
        """
        import torch
        from transformers import GenerationConfig

        ends = stop_tokens(self.model, self.tokenizer)
        ids = left_padded(prompts, self.tokenizer.pad_token_id, self.model.device)
        mask = attention_mask(prompts, self.model.device)
        config = GenerationConfig(
            do_sample=False,  # the noise is ours: see `_logits_processors`
            num_beams=1,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            drawn = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=_shared(self.model, prompts, ids, mask),
                generation_config=config,
                logits_processor=_logits_processors(sampling, rows, mask),
            )
        return [before_stop(one, ends) for one in drawn[:, ids.shape[1] :].tolist()]


def _shared(model: Model, prompts: Sequence[Ids], ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
    """The cache of all but the last token of every prompt, equal neighbours computed once.

    None where no neighbours are equal, or where the model makes a cache of its own or wants whole prompts.
    """
    import torch

    first = [place for place, one in enumerate(prompts) if place == 0 or one != prompts[place - 1]]
    if len(first) == len(prompts) or ids.shape[1] == 1 or has_own_cache(model) or is_gated(model):
        return None
    counts = torch.diff(torch.tensor([*first, len(prompts)]))
    repeated = torch.arange(len(first)).repeat_interleave(counts).to(ids.device)
    cache = prefill(model, ids[first, :-1], mask[first, :-1]).past_key_values
    cache.batch_select_indices(repeated)
    return cache


def _logits_processors(sampling: SamplingSection, rows: Sequence[int], mask: "torch.Tensor") -> Any:
    """Temperature, top-k, top-p and repetition penalty by name, then the row's own noise."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    noise = np.stack([uniforms(sampling.seed, row, sampling.max_tokens) for row in rows])
    prompt = mask.shape[1]

    class Draw(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Leave one token a row: the one at which the cumulative probability passes the noise."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            step = input_ids.shape[1] - prompt
            passed = scores.double().softmax(-1).cumsum(-1)
            # Scaled by the last sum, which rounding may leave a hair from one.
            target = torch.tensor(noise[:, step], device=scores.device) * passed[:, -1]
            token = torch.searchsorted(passed, target[:, None], right=True)
            token = token.clamp_max(scores.shape[1] - 1)
            return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

    chosen = warpers(sampling, mask)
    return LogitsProcessorList(chosen if sampling.temperature == 0.0 else [*chosen, Draw()])


def warpers(sampling: SamplingSection, mask: "torch.Tensor") -> list[Any]:
    """Repetition penalty, temperature, top-k and top-p: what makes logits the law that is drawn from.

    `mask` is the prompts'; temperature 0 draws from no law, and leaves the penalty alone.
    """
    import torch
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    prompt = mask.shape[1]

    class Repetition(RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Their penalty on what stands in the row; padding does not."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            ids, last = input_ids.clone(), input_ids[:, prompt - 1 : prompt]
            ids[:, :prompt] = torch.where(mask.bool(), ids[:, :prompt], last)
            penalised: torch.Tensor = super().__call__(ids, scores)
            return penalised

    chosen: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chosen.append(Repetition(sampling.repetition_penalty))
    if sampling.temperature == 0.0:
        return chosen
    chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen
