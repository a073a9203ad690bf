"""Tokens as the bytes they write, the same for every scorer; a decoder's own clean-up never applies."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sublim_cli.models.chat import Tokenizer, end_of_turn
from sublim_cli.models.load import Model

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def stop_tokens(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a completion: the checkpoint's own and the template's end of turn."""
    return with_end_of_turn(model.generation_config.eos_token_id, tokenizer)


def with_end_of_turn(eos: int | list[int] | None, tokenizer: Tokenizer) -> frozenset[int]:
    """The same for a checkpoint's own end, or ends."""
    own = eos if isinstance(eos, list) else [eos]
    return frozenset({*(one for one in own if one is not None), end_of_turn(tokenizer)})


def bytes_per_token(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes each of `size` tokens adds to a text.

    Rows of a model's head beyond the tokenizer are padding of the matrix; they add nothing.
    """
    kinds = _decoders(tokenizer)
    count = min(len(tokenizer), size)
    names = tokenizer.convert_ids_to_tokens(list(range(count)))
    if "ByteLevel" in kinds:
        table = _byte_level()
        known = [
            bytes(table[char] for char in name) if set(name) <= table.keys() else name.encode()
            for name in names
        ]
    else:
        known = _decoded(tokenizer, names)
    return [*known, *[b""] * (size - count)]


def answer_text(ids: Iterable[int], written: Sequence[bytes], ends: frozenset[int]) -> str:
    """What an answer reads, up to the token that ends it."""
    found = []
    for token in ids:
        if token in ends:
            break
        found.append(written[token])
    return b"".join(found).decode("utf-8", "replace")


def before_stop(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """An answer's tokens before the one that ends it."""
    end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:end])


def _decoders(tokenizer: Tokenizer) -> set[str]:
    """The kinds of decoder a tokenizer is made of; none of one that does not tell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return set() if backend is None else set(_kinds(json.loads(backend.to_str())["decoder"]))


def _kinds(decoder: dict[str, Any] | None) -> Iterable[str]:
    if decoder is not None:
        yield decoder["type"]
        for inner in decoder.get("decoders", ()):
            yield from _kinds(inner)


def _byte_level() -> dict[str, int]:
    """The characters that GPT-2's alphabet writes bytes with: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


def _decoded(tokenizer: Tokenizer, names: Sequence[str]) -> list[bytes]:
    # Behind a word: alone, a token loses its leading space in some tokenizers (Llama 2, Mistral).
    word = tokenizer("1", add_special_tokens=False)["input_ids"]
    length = len(tokenizer.decode(word))
    texts = tokenizer.batch_decode(
        [[*word, token] for token in range(len(names))], clean_up_tokenization_spaces=False
    )
    pairs = zip(names, texts, strict=True)
    return [
        bytes([int(found[1], 16)]) if (found := _BYTE.fullmatch(name)) else text[length:].encode()
        for name, text in pairs
    ]
