"""Sampling through transformers, on any model it loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.interface import Ids, Sampler
from sublim_cli.backends.row_grammar import OPENING, TokenGrammar, token_grammar
from sublim_cli.backends.token_bytes import before_stop, stop_tokens
from sublim_cli.models.batches import attention_mask, in_batches, left_padded, rows_that_fit
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.passes import continues_from_cache
from sublim_cli.models.prefix import has_own_cache, prefill
from sublim_cli.recipe.schema import SamplingSection

if TYPE_CHECKING:
    import torch


def uniforms(seed: int, row: int, count: int) -> NDArray[np.float64]:
    """`count` uniform draws in [0, 1) that depend on `seed` and `row` alone (Philox 4x64).

    So a row draws the same numbers whichever rows share its batch.
    """
    # The row is the highest counter word, so streams of different rows cannot run into each other.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, row])).random(count)


@dataclass(frozen=True)
class TransformersSampler(Sampler):
    """Draws completions with `generate`; every setting is passed, so no checkpoint default applies."""

    model: Model
    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the model's vocabulary."""
        size: int = self.model.config.get_text_config().vocab_size
        return size

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """See `interface.Sampler`.

        Equal prompts next to each other share the computation of all but their last token.

        Raises:
            ModelError: a single row does not fit into memory.
        """
        width = max(map(len, prompts)) + sampling.max_tokens
        size = rows_that_fit(self.model, width, most=len(prompts))

        def draw_some(indices: Sequence[int]) -> list[list[int]]:
            return self._draw_batch([prompts[i] for i in indices], [rows[i] for i in indices], sampling)

        batches = in_batches(range(len(prompts)), draw_some, size, noun="completion")
        return [completion for batch in batches for completion in batch]

    def _draw_batch(
        self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection
    ) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        stops = stop_tokens(self.model, self.tokenizer)
        grammar = token_grammar(self.tokenizer, self.vocabulary, stops) if sampling.grammar else None
        ids = left_padded(prompts, self.tokenizer.pad_token_id, self.model.device)
        mask = attention_mask(prompts, self.model.device)
        config = GenerationConfig(
            do_sample=False,  # `_logits_processors` draws, with the row's own noise
            num_beams=1,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            drawn = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=_shared_cache(self.model, prompts, ids, mask),
                generation_config=config,
                logits_processor=_logits_processors(sampling, rows, mask, grammar),
            )
        return [before_stop(tokens, stops) for tokens in drawn[:, ids.shape[1] :].tolist()]


def _shared_cache(model: Model, prompts: Sequence[Ids], ids: "torch.Tensor", mask: "torch.Tensor") -> Any:
    """The cache of all but the last token of every prompt, equal neighbours computed once.

    None where no neighbours are equal, or where the model makes its own cache or needs whole prompts.
    """
    import torch

    first = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    if len(first) == len(prompts) or ids.shape[1] == 1 or has_own_cache(model) or is_gated(model):
        return None
    if not continues_from_cache(model):
        return None
    counts = torch.diff(torch.tensor([*first, len(prompts)]))
    repeated = torch.arange(len(first)).repeat_interleave(counts).to(ids.device)
    cache = prefill(model, ids[first, :-1], mask[first, :-1]).past_key_values
    cache.batch_select_indices(repeated)
    return cache


def _logits_processors(
    sampling: SamplingSection, rows: Sequence[int], mask: "torch.Tensor", grammar: TokenGrammar | None
) -> Any:
    """`warpers`, then a draw with each row's own noise; at temperature 0 `generate` takes the largest."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    noise = np.stack([uniforms(sampling.seed, row, sampling.max_tokens) for row in rows])
    prompt = mask.shape[1]

    class Draw(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Leave one token a row: that at which the cumulative probability passes the row's noise."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            step = input_ids.shape[1] - prompt
            cumulative = scores.double().softmax(-1).cumsum(-1)
            # Scaled by the last sum, which rounding may leave slightly off one.
            target = torch.tensor(noise[:, step], device=scores.device) * cumulative[:, -1]
            token = torch.searchsorted(cumulative, target[:, None], right=True)
            token = token.clamp_max(scores.shape[1] - 1)
            return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

    processors = warpers(sampling, mask, grammar)
    return LogitsProcessorList(processors if sampling.temperature == 0.0 else [*processors, Draw()])


def warpers(
    sampling: SamplingSection, mask: "torch.Tensor", grammar: TokenGrammar | None = None
) -> list[Any]:
    """The grammar, repetition penalty, temperature, top-k and top-p, as transformers' logits processors.

    Args:
        sampling: the settings; at temperature 0 only the grammar and the penalty apply.
        mask: the prompts' attention mask.
        grammar: the tokens that may follow each other; None for all.
    """
    import torch
    from transformers import (
        LogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    prompt = mask.shape[1]

    class PaddedRepetition(RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """transformers' penalty, without the padding tokens, which it would penalise too."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            ids, last = input_ids.clone(), input_ids[:, prompt - 1 : prompt]
            ids[:, :prompt] = torch.where(mask.bool(), ids[:, :prompt], last)
            penalised: torch.Tensor = super().__call__(ids, scores)
            return penalised

    class Grammar(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Only tokens that may follow; it is called once for each token of a row, in their order."""

        def __init__(self, grammar: TokenGrammar, rows: int) -> None:
            self.grammar = grammar
            self.states = [OPENING] * rows

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            if input_ids.shape[1] > prompt:
                latest = input_ids[:, -1].tolist()
                self.states = [
                    self.grammar.state_after([token], state)
                    for token, state in zip(latest, self.states, strict=True)
                ]
            return self.grammar.mask(scores, self.states)

    chosen: list[Any] = [] if grammar is None else [Grammar(grammar, len(mask))]
    if sampling.repetition_penalty != 1.0:
        chosen.append(PaddedRepetition(sampling.repetition_penalty))
    if sampling.temperature == 0.0:
        return chosen
    chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen
