"""How a model may be computed: in padded batches, from cached keys and values, or on whole sequences only.

Scoring continues prompts from their keys and values. Recurrent, convolution and linear-attention layers keep
none, and behind a sliding window a tree of answers would see too much. For such models `WholeSequences`
computes every beginning of an answer anew, which is right for every causal model and slower.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sublim_cli.errors import ModelError
from sublim_cli.models.batches import attention_mask, in_batches, left_padded, position_ids, rows_that_fit
from sublim_cli.models.prefix import cache_from_layers, cache_layers, has_own_cache, prompt_inputs
from sublim_cli.models.structure import forward_with_states, language_model

if TYPE_CHECKING:
    import torch

SEQUENCES = ([3, 8, 5, 9, 2, 7, 4, 8, 6, 1, 9, 3], [6, 2, 9, 4, 7, 5, 3])
"""Token ids of different length that are computed in several ways; see `_sequences`."""

CONTINUED = 3
"""The last tokens of `SEQUENCES`, which are computed from the cache of the others."""

LIMIT_FP32, LIMIT = 1e-3, 0.5
"""How far logits may differ between two ways of computing, in standard deviations of the logits: in fp32, and
in dtypes of few bits or on quantised weights. A wrong way differs by about one."""

WHOLE_ROWS = 256
"""Sequences of a batch of `WholeSequences`, if they fit into memory."""

_KEEPS_CACHE: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


def check_padding(model: Any) -> None:
    """Refuse a model whose logits depend on the padding beside a sequence; it is tried with two short ones.

    Raises:
        ModelError: such a model; it cannot be sampled or measured in batches.
    """
    import torch

    sequences = _sequences(model)
    with torch.inference_mode():
        alone = _logits_alone(model)
        mask = attention_mask(sequences, model.device)
        padded = model(
            input_ids=left_padded(sequences, 0, model.device),
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
        ).logits[:, -1]
        if not _agree(model, padded, alone):
            raise ModelError(
                f"this model ({type(language_model(model)).__name__}) computes a padded sequence otherwise "
                "than the same one alone, so it cannot be sampled in batches; take a model whose layers "
                "respect the attention mask"
            )


def continues_from_cache(model: Any) -> bool:
    """Whether prompts can be continued from their keys and values by a tree of tokens.

    It is tried once for each loaded model, before gates are put on it.
    """
    whole = language_model(model)
    if whole not in _KEEPS_CACHE:
        _KEEPS_CACHE[whole] = keeps_keys_and_values(whole) and _try_cache(whole)
    return _KEEPS_CACHE[whole]


def keeps_keys_and_values(model: Any) -> bool:
    """Whether every layer of a model has keys and values; `model` may be on the meta device."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

    whole = language_model(model)
    if getattr(whole, "_is_stateful", False):
        return False
    layers = DynamicCache(config=whole.config).layers
    return all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionLayer) for layer in layers
    )


def attention_window(model: Any) -> int | None:
    """The tokens that the layer with the shortest attention sees, if that is not all of them."""
    config = language_model(model).config.get_text_config()
    layer_types = getattr(config, "layer_types", getattr(config, "attention_layers", None))
    sizes = []
    for layer_type, field in (
        ("sliding_attention", "sliding_window"),
        ("chunked_attention", "attention_chunk_size"),
        ("local", "window_size"),  # GPT-Neo
    ):
        size = getattr(config, field, None)
        if size and (layer_types is None or layer_type in layer_types):
            sizes.append(int(size))
    return min(sizes, default=None)


def scored_model(model: Any, length: int) -> Any:
    """`model`, or `WholeSequences` of it if its cache cannot hold a tree of texts of `length` tokens."""
    window = attention_window(model)
    if continues_from_cache(model) and (window is None or length <= window):
        return model
    if has_own_cache(model):
        raise ModelError(
            "a prefix needs a model whose layers all have keys and values; take `train.method: lora`"
        )
    return WholeSequences(model)


@dataclass(frozen=True)
class _Output:
    """What callers read of a transformers output."""

    logits: "torch.Tensor"
    past_key_values: Any


class WholeSequences:
    """A model that is called as if it kept keys and values, but computes whole sequences.

    Its cache holds the ids of the tokens in place of keys and their positions in place of values. From these
    and the attention mask it finds the tokens that each new token follows. Sequences of equal length are
    computed together, so there is no padding.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.generation_config = model.generation_config

    def get_base_model(self) -> Any:
        """The transformers model."""
        return language_model(self.model)

    def __call__(self, **inputs: Any) -> _Output:
        """The output of a forward pass; see `forward_with_states`."""
        return self.forward_with_states(**inputs)[0]

    def forward_with_states(
        self,
        *,
        input_ids: "torch.Tensor",
        attention_mask: "torch.Tensor",
        position_ids: "torch.Tensor",
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> "tuple[_Output, torch.Tensor]":
        """As `structure.forward_with_states`, with the logits of the last `logits_to_keep` tokens (0: all).

        States [rows, tokens, width] are those of these tokens, and zero at the others and at padding; under a
        mask of four dimensions they are those of all tokens.
        """
        import torch

        ids, positions = self._joined(input_ids, position_ids, past_key_values)
        count, total = input_ids.shape[1], ids.shape[1]
        if attention_mask.dim() == 2:
            causal = torch.ones(count, total, dtype=torch.bool, device=ids.device).tril(total - count)
            visible = attention_mask.bool()[:, None] & causal
        else:
            visible = attention_mask[:, 0] == 0
        # The nodes of a tree, under a mask of four dimensions, are read by their states, all of them.
        kept = (logits_to_keep or count) if attention_mask.dim() == 2 else count
        wanted = [
            (row, column)
            for row, column in visible[:, -kept:].any(-1).nonzero().tolist()
            if visible[row, count - kept + column, total - kept + column]
        ]
        sequences = []
        for row, column in wanted:
            seen = visible[row, count - kept + column]
            order = positions[row][seen].argsort(stable=True)
            sequences.append(ids[row][seen][order].long().tolist())
        logits, states = self._last(sequences)
        shape = (len(ids), kept)
        all_logits = logits.new_zeros(*shape, logits.shape[-1])
        all_states = states.new_zeros(*shape, states.shape[-1])
        index = torch.tensor(wanted, device=ids.device).T
        all_logits[index[0], index[1]] = logits
        all_states[index[0], index[1]] = states
        cache = cache_from_layers([(ids[:, None, :, None], positions[:, None, :, None])])
        if kept < count:
            padding = all_states.new_zeros(len(ids), count - kept, all_states.shape[-1])
            all_states = torch.cat([padding, all_states], dim=1)
        return _Output(all_logits[:, -(logits_to_keep or count) :], cache), all_states

    def _joined(
        self, ids: "torch.Tensor", positions: "torch.Tensor", cache: Any
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Ids and positions of the cached and the new tokens, as floats: [rows, tokens]."""
        import torch

        new = ids.double(), positions.double()  # exact for ids below 2^53
        if cache is None or not cache.layers or cache.get_seq_length() == 0:
            return new
        ((old_ids, old_positions),) = cache_layers(cache)
        return (
            torch.cat([old_ids[:, 0, :, 0], new[0]], dim=1),
            torch.cat([old_positions[:, 0, :, 0], new[1]], dim=1),
        )

    def _last(self, sequences: list[list[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Logits [sequences, vocabulary] and states [sequences, width] at the last token of each."""
        import torch

        by_length: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            by_length.setdefault(len(sequence), []).append(index)
        order: list[int] = []
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        for length, indices in by_length.items():
            order += indices
            size = rows_that_fit(self.model, length, most=WHOLE_ROWS)
            parts += in_batches([sequences[i] for i in indices], self._batch, size, noun="sequence")
        back = torch.tensor(order, device=self.device).argsort()
        logits, states = zip(*parts, strict=True)
        return torch.cat(logits)[back], torch.cat(states)[back]

    def _batch(self, sequences: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        ids = torch.tensor(sequences, device=self.device)
        output, states = forward_with_states(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        )
        return output.logits[:, -1], states[:, -1]


def _sequences(model: Any) -> list[list[int]]:
    """`SEQUENCES`, within the vocabulary of the model."""
    size = model.config.get_text_config().vocab_size
    return [[token % size for token in ids] for ids in SEQUENCES]


def _logits_alone(model: Any) -> "torch.Tensor":
    """The logits at the last token of each of `SEQUENCES`, computed without padding: [2, vocabulary]."""
    import torch

    rows = [torch.tensor([ids], device=model.device) for ids in _sequences(model)]
    return torch.stack(
        [
            model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1]
            for row in rows
        ]
    )


def _try_cache(model: Any) -> bool:
    """Whether prompts continued from their cache, under masks of four dimensions, give the same logits."""
    import torch

    try:
        with torch.inference_mode():
            return _agree(model, _logits_from_cache(model), _logits_alone(model))
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Families fail in different ways on a cache or a mask that they do not take; whole sequences are
        # right for all of them, and an error in the model itself shows there.
        return False


def _logits_from_cache(model: Any) -> "torch.Tensor":
    import torch

    sequences = _sequences(model)
    openings = [ids[:-CONTINUED] for ids in sequences]
    mask = attention_mask(openings, model.device)
    prompt = model(**prompt_inputs(model, left_padded(openings, 0, model.device), mask))
    layers = cache_layers(prompt.past_key_values)
    causal = torch.ones(CONTINUED, CONTINUED, dtype=torch.bool, device=model.device).tril()
    visible = torch.cat(
        [mask.bool()[:, None].expand(-1, CONTINUED, -1), causal.expand(len(sequences), -1, -1)], dim=2
    )
    dtype = layers[0][0].dtype
    added = torch.zeros(visible.shape, dtype=dtype, device=model.device)
    continued = model(
        input_ids=torch.tensor([ids[-CONTINUED:] for ids in sequences], device=model.device),
        attention_mask=added.masked_fill_(~visible, torch.finfo(dtype).min)[:, None],
        position_ids=mask.sum(1, keepdim=True) + torch.arange(CONTINUED, device=model.device),
        past_key_values=cache_from_layers(layers),
        use_cache=True,
    )
    logits: torch.Tensor = continued.logits[:, -1]
    return logits


def _agree(model: Any, logits: "torch.Tensor", others: "torch.Tensor") -> bool:
    """Whether two computations of the same logits differ by rounding only."""
    import torch

    plain = model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None
    limit = LIMIT_FP32 if plain else LIMIT
    gap = (logits.float() - others.float()).abs().max()
    return bool(gap <= limit * others.float().std().clamp_min(1e-6))
