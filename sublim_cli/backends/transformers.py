"""Sampling through transformers, on any model it loads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.interface import Ids, NumberedCompletion, NumberedPrompt, Sampler
from sublim_cli.backends.row_grammar import OPENING, TokenGrammar, token_grammar
from sublim_cli.backends.token_bytes import before_stop, stop_tokens
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import attention_mask, in_batches, left_padded, rows_that_fit
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.passes import attention_window, continues_from_cache, keeps_keys_and_values
from sublim_cli.models.prefix import has_own_cache
from sublim_cli.recipe.schema import SamplingSection

if TYPE_CHECKING:
    import torch

    from sublim_cli.backends.decoding import Drawing

BATCH = 64
"""Rows that are decoded at a time on a CPU, whose arithmetic more rows do not speed up."""

CARD_BATCH = 256
"""Rows that are decoded at a time on a card."""


def uniforms(seed: int, row: int, count: int) -> NDArray[np.float64]:
    """`count` uniform draws in [0, 1) that depend on `seed` and `row` alone (Philox 4x64).

    So a row draws the same numbers whichever rows share its batch.
    """
    # The row is the highest counter word, so streams of different rows cannot run into each other.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, row])).random(count)


@dataclass(frozen=True)
class TransformersSampler(Sampler):
    """Draws completions; every setting is passed, so no checkpoint default applies.

    Models whose layers all keep keys and values are decoded in a loop that ended rows leave (`decoding`).
    Others (recurrent, gated or prefix-tuned) go through transformers' `generate`, a batch at a time.
    """

    model: Model
    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the model's vocabulary."""
        size: int = self.model.config.get_text_config().vocab_size
        return size

    def draw(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: SamplingSection) -> list[list[int]]:
        """See `interface.Sampler`. Equal prompts share the computation of all but their last token.

        Raises:
            ModelError: see `stream`.
        """
        drawn: dict[int, list[list[int]]] = {}
        for row, completion in self.stream(zip(rows, prompts, strict=True), sampling):
            drawn.setdefault(row, []).append(completion)
        return [drawn[row].pop(0) for row in rows]

    def stream(
        self,
        prompts: Iterator[NumberedPrompt],
        sampling: SamplingSection,
        after_step: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[NumberedCompletion]:
        """See `interface.Sampler`.

        Raises:
            ModelError: a single row does not fit into memory, or a prompt not into the model's window.
        """
        most = BATCH if self.model.device.type == "cpu" else CARD_BATCH
        first = list(islice(prompts, most))
        if not first:
            return
        width = max(len(prompt) for _, prompt in first) + sampling.max_tokens
        size = rows_that_fit(self.model, width, most=most)
        limited = ((row, prompt, self._limit(prompt, sampling)) for row, prompt in chain(first, prompts))
        if rows_can_change(self.model):
            from sublim_cli.backends.decoding import Decoder

            yield from Decoder(self.model, self._drawing(sampling), size, len(first)).completions(
                limited, after_step
            )
            return
        draw_some = partial(self._draw_batch, sampling=sampling)
        while batch := list(islice(limited, size)):
            # A recurrent layer may read padding, so only prompts of one length share a batch.
            batch.sort(key=_prompt_length)
            groups = [list(group) for _, group in groupby(batch, _prompt_length)]
            for group in [batch] if keeps_keys_and_values(self.model) else groups:
                for completions in in_batches(group, draw_some, size, noun="completion"):
                    after_step(sum(len(ids) for _, ids in completions))
                    yield from completions

    def _limit(self, prompt: Ids, sampling: SamplingSection) -> int:
        """How many tokens a completion may have: a row ends where the model's window does."""
        text = self.model.config.get_text_config()
        window: int | None = getattr(text, "max_position_embeddings", None)
        if window is None:
            return sampling.max_tokens
        if len(prompt) >= window:
            raise ModelError(
                f"a prompt of {len(prompt):,} tokens leaves no room for a completion in the model's window "
                f"of {window:,} tokens; use shorter prompts or another model"
            )
        return min(sampling.max_tokens, window - len(prompt))

    def _drawing(self, sampling: SamplingSection) -> "Drawing":
        from sublim_cli.backends.decoding import Drawing

        return Drawing(
            stops=self._stops,
            noise=partial(uniforms, sampling.seed),
            processors=warpers(sampling),
            reads_tokens=sampling.repetition_penalty != 1.0,
            greedy=sampling.temperature == 0.0,
            grammar=self._grammar(sampling),
        )

    @cached_property
    def _stops(self) -> frozenset[int]:
        return stop_tokens(self.model, self.tokenizer)

    def _grammar(self, sampling: SamplingSection) -> TokenGrammar | None:
        return token_grammar(self.tokenizer, self.vocabulary, self._stops) if sampling.grammar else None

    def _draw_batch(
        self, batch: Sequence[tuple[int, Ids, int]], sampling: SamplingSection
    ) -> list[NumberedCompletion]:
        """The completions of rows with their prompts and limits, by `generate`."""
        import torch
        from transformers import GenerationConfig

        rows, prompts, limits = zip(*batch, strict=True)
        ids = left_padded(prompts, self.tokenizer.pad_token_id, self.model.device)
        mask = attention_mask(prompts, self.model.device)
        config = GenerationConfig(
            do_sample=False,  # `_logits_processors` draws, with the row's own noise
            num_beams=1,
            max_new_tokens=max(limits),
            eos_token_id=sorted(self._stops),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            drawn = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_logits_processors(sampling, rows, mask, self._grammar(sampling)),
            )
        completions = drawn[:, ids.shape[1] :].tolist()
        return [
            (row, before_stop(tokens[:limit], self._stops))
            for row, tokens, limit in zip(rows, completions, limits, strict=True)
        ]


def rows_can_change(model: Model) -> bool:
    """Whether rows can leave and join a batch: all that a layer keeps are the keys and values of its tokens.

    A prefix-tuned model begins with keys and values of its own, a gated model reads whole prompts, and the
    chunks of chunked attention are counted from the beginning of the batch.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    special = has_own_cache(model) or is_gated(model) or "chunked_attention" in kinds
    # Behind a short window the keys and values do not serve a tree of answers, but they do serve rows.
    windowed = attention_window(model) is not None
    return not special and keeps_keys_and_values(model) and (windowed or continues_from_cache(model))


def _prompt_length(limited: tuple[int, Ids, int]) -> int:
    return len(limited[1])


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
    sampling: SamplingSection, mask: "torch.Tensor | None" = None, grammar: TokenGrammar | None = None
) -> list[Any]:
    """The grammar, repetition penalty, temperature, top-k and top-p, as transformers' logits processors.

    Args:
        sampling: the settings; at temperature 0 only the grammar and the penalty apply.
        mask: the prompts' attention mask; None where the tokens passed to the penalty hold no padding.
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

    prompt = 0 if mask is None else mask.shape[1]

    class PaddedRepetition(RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """transformers' penalty, without the padding tokens, which it would penalise too."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            if mask is not None:
                last = input_ids[:, prompt - 1 : prompt]
                own = torch.where(mask.bool(), input_ids[:, :prompt], last)
                input_ids = torch.cat([own, input_ids[:, prompt:]], dim=1)
            penalised: torch.Tensor = super().__call__(input_ids, scores)
            return penalised

    class Grammar(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Only tokens that may follow; it is called once for each token of a row, in their order."""

        def __init__(self, grammar: TokenGrammar) -> None:
            self.grammar = grammar
            self.states: list[int] = []

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            latest = input_ids[:, -1].tolist()
            self.states = [
                self.grammar.state_after([token], state)
                for token, state in zip(latest, self.states, strict=bool(self.states))
            ] or [OPENING] * len(latest)
            return self.grammar.mask(scores, self.states)

    chosen: list[Any] = [] if grammar is None else [Grammar(grammar)]
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
