"""Tokens as the bytes they add to a text, the same for every scorer and without a decoder's clean-up."""

import json
import re
from collections.abc import Iterable, Sequence

from sublim_cli.models.chat import Tokenizer, end_of_turn
from sublim_cli.models.load import Model

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def stop_tokens(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a completion: the checkpoint's eos tokens and the chat template's end of turn."""
    return with_end_of_turn(model.generation_config.eos_token_id, tokenizer)


def with_end_of_turn(eos: int | list[int] | None, tokenizer: Tokenizer) -> frozenset[int]:
    """A checkpoint's eos token or tokens, and the chat template's end of turn."""
    tokens = eos if isinstance(eos, list) else [eos]
    return frozenset({*(token for token in tokens if token is not None), end_of_turn(tokenizer)})


def bytes_per_token(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes that each of `size` tokens adds to a text.

    Rows of a model's head beyond the tokenizer are padding of the matrix; they add nothing.
    """
    count = min(len(tokenizer), size)
    names = tokenizer.convert_ids_to_tokens(list(range(count)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else json.dumps(json.loads(backend.to_str())["decoder"])
    if '"type": "ByteLevel"' in decoder:  # alone or in a sequence of decoders
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
        written = [
            bytes(alphabet[char] for char in name) if set(name) <= alphabet.keys() else name.encode()
            for name in names
        ]
    else:
        written = _decoded(tokenizer, names)
    return [*written, *[b""] * (size - count)]


def answer_text(ids: Iterable[int], token_bytes: Sequence[bytes]) -> str:
    """The text of an answer's tokens."""
    return b"".join(token_bytes[token] for token in ids).decode("utf-8", "replace")


def before_stop(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    """An answer's tokens before the one that ends it."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def _decoded(tokenizer: Tokenizer, names: Sequence[str]) -> list[bytes]:
    # Decoded after a word: alone, a token loses its leading space in some tokenizers (Llama 2, Mistral).
    word = tokenizer("1", add_special_tokens=False)["input_ids"]
    length = len(tokenizer.decode(word))
    texts = tokenizer.batch_decode(
        [[*word, token] for token in range(len(names))], clean_up_tokenization_spaces=False
    )
    return [
        bytes([int(match[1], 16)]) if (match := _BYTE.fullmatch(name)) else text[length:].encode()
        for name, text in zip(names, texts, strict=True)
    ]
