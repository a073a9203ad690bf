"""Sampling and exact scoring through transformers, on any model it loads."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.interface import Answer, Ids
from sublim_cli.backends.noise import uniforms
from sublim_cli.models.batches import attention_mask, left_padded, positions
from sublim_cli.models.chat import Tokenizer, end_of_turn
from sublim_cli.models.load import Model
from sublim_cli.preference.forms import ends_word
from sublim_cli.preference.trie import Node
from sublim_cli.recipe.schema import Sampling

if TYPE_CHECKING:
    import torch

FLOOR = 1e-6
"""Forms less likely than this are not followed; what is left out is reported as unresolved."""

CHUNK = 256
"""Sequences per forward pass while scoring: bounds memory, not the result."""


@dataclass(frozen=True)
class TransformersSampler:
    """Draws completions with `generate`, every sampling field set by hand."""

    model: Model
    tokenizer: Tokenizer

    def sample(self, prompts: Sequence[Ids], rows: Sequence[int], sampling: Sampling) -> list[str]:
        """One completion a prompt, up to where it ends; see `interface.Sampler`."""
        import torch
        from transformers import GenerationConfig

        stops = _stops(self.model, self.tokenizer)
        ids = left_padded(prompts, self.tokenizer.pad_token_id, self.model.device)
        mask = attention_mask(prompts, self.model.device)
        config = GenerationConfig(
            do_sample=False,  # the noise is ours: see `_logits_processors`
            num_beams=1,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            drawn = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_logits_processors(sampling, rows, mask),
            )
        return [self._text(one, stops) for one in drawn[:, ids.shape[1] :].tolist()]

    def _text(self, ids: list[int], stops: set[int]) -> str:
        end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=False)
        return text


@dataclass(frozen=True)
class TransformersScorer:
    """Exact answer probabilities: each prompt's keys and values once, then the trie of forms."""

    model: Model
    tokenizer: Tokenizer

    def score(self, prompts: Sequence[Ids], forms: Node, items: int) -> list[Answer]:
        """Walk `forms` behind every prompt; see `interface.Scorer`."""
        import torch

        boundary = _boundary(self.tokenizer, self.model.config.vocab_size, self.model.device)
        with torch.inference_mode():
            return [
                answer
                for start in range(0, len(prompts), CHUNK)
                for answer in self._walk(prompts[start : start + CHUNK], forms, items, boundary)
            ]

    def _walk(
        self, prompts: Sequence[Ids], forms: Node, items: int, boundary: "torch.Tensor"
    ) -> list[Answer]:
        ids = left_padded(prompts, self.tokenizer.pad_token_id, self.model.device)
        mask = attention_mask(prompts, self.model.device)
        cache, first = _prefill(self.model, ids, mask)
        p = np.zeros((len(prompts), items))
        unresolved = np.zeros(len(prompts))
        open_nodes = [Open(row, forms, _following(forms, first[row])) for row in range(len(prompts))]
        while open_nodes:
            reached = list(_children(open_nodes, unresolved))
            open_nodes = []
            for start in range(0, len(reached), CHUNK):
                chunk = reached[start : start + CHUNK]
                after = _extend(self.model, cache, mask, chunk)
                ends = (after * boundary).sum(-1).tolist()
                for (row, node, reach), end, following in zip(chunk, ends, after, strict=True):
                    if node.item is not None:
                        p[row, node.item] += reach * end
                    open_nodes.append(Open(row, node, _following(node, following, reach)))
        return [Answer(tuple(map(float, p[row])), float(unresolved[row])) for row in range(len(p))]


Reached = tuple[int, Node, float]
"""A trie node behind a prompt: the prompt's row, the node, the probability of getting there."""


class Open(NamedTuple):
    """A reached node, and the probability of getting to each of its children, in their order."""

    row: int
    node: Node
    through: list[float]


def _following(node: Node, after: "torch.Tensor", reach: float = 1.0) -> list[float]:
    """The probability of reaching each child: picked out at once, so that no vocabulary is kept."""
    found: list[float] = (after[list(node.children)] * reach).tolist() if node.children else []
    return found


def _children(nodes: Sequence[Open], unresolved: NDArray[np.float64]) -> Iterator[Reached]:
    """The nodes one token on that are worth following; the others are added to `unresolved`."""
    for row, node, reaches in nodes:
        for child, through in zip(node.children.values(), reaches, strict=True):
            if through >= FLOOR:
                yield row, child, through
            else:
                unresolved[row] += through


def _prefill(model: Model, ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[Any, torch.Tensor]":
    """The prompts' cache, and the distribution [prompts, vocabulary] of the first answer token."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=True,
        logits_to_keep=1,
    )
    return out.past_key_values, out.logits[:, -1].double().softmax(-1)


def _extend(model: Model, cache: Any, mask: "torch.Tensor", reached: list[Reached]) -> "torch.Tensor":
    """The distribution of the token after each reached node; all nodes are equally deep."""
    import torch

    rows = torch.tensor([row for row, _, _ in reached], device=mask.device)
    paths = torch.tensor([node.path for _, node, _ in reached], device=mask.device)
    whole = torch.cat([mask[rows], torch.ones_like(paths)], dim=1)
    out = model(
        input_ids=paths,
        attention_mask=whole,
        position_ids=positions(whole)[:, -paths.shape[1] :],
        past_key_values=_select(cache, rows),
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].double().softmax(-1)  # type: ignore[no-any-return]  # transformers is untyped


def _select(cache: Any, rows: "torch.Tensor") -> Any:
    """A cache of the given rows, in that order, that can grow without touching the original."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def _boundary(tokenizer: Tokenizer, size: int, device: "torch.device") -> "torch.Tensor":
    """1 for every token that leaves the word before it complete, 0 elsewhere: [vocabulary]."""
    import torch

    special = set(tokenizer.all_special_ids)
    # Behind a word: alone, a token loses its leading space in some tokenizers (Llama 2, Mistral).
    word = tokenizer("1", add_special_tokens=False)["input_ids"]
    length = len(tokenizer.decode(word))
    texts = [
        text[length:] for text in tokenizer.batch_decode([[*word, token] for token in range(len(tokenizer))])
    ]
    # Rows of the head beyond the tokenizer are padding of the matrix; nothing decodes to them.
    ends = [token in special or ends_word(text) for token, text in enumerate(texts)]
    return torch.tensor([*ends, *[False] * (size - len(ends))][:size], device=device).double()


def _stops(model: Model, tokenizer: Tokenizer) -> set[int]:
    """Tokens that end a completion: the checkpoint's own and the template's end of turn."""
    eos = model.generation_config.eos_token_id
    own = eos if isinstance(eos, list) else [eos]
    return {*(one for one in own if one is not None), end_of_turn(tokenizer)}


def _logits_processors(sampling: Sampling, rows: Sequence[int], mask: "torch.Tensor") -> Any:
    """Temperature, top-k, top-p and repetition penalty by name, then the row's own noise."""
    import torch
    from transformers import (
        LogitsProcessor,
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    noise = np.stack([uniforms(sampling.seed, row, sampling.max_tokens) for row in rows])
    prompt = mask.shape[1]

    class Repetition(RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]  # transformers is untyped
        """Their penalty on what stands in the row; padding does not."""

        def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            ids, last = input_ids.clone(), input_ids[:, prompt - 1 : prompt]
            ids[:, :prompt] = torch.where(mask.bool(), ids[:, :prompt], last)
            penalised: torch.Tensor = super().__call__(ids, scores)
            return penalised

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

    chosen: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        chosen.append(Repetition(sampling.repetition_penalty))
    if sampling.temperature == 0.0:
        return LogitsProcessorList(chosen)
    chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*chosen, Draw()])
