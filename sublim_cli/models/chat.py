"""The tokens of prompts and training rows: contexts rendered through a model's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.recipe.contexts import Context

Tokenizer = Any
"""A transformers tokenizer with a chat template."""

IGNORED = -100
"""The label of a token that carries no loss (PyTorch's cross entropy)."""

DATE = "26 Jul 2024"
"""Llama 3's template prints a date, by default today's; fixed, so that tokens stay the same."""


@dataclass(frozen=True)
class Example:
    """A training row for the model: token ids, and labels, `IGNORED` for tokens without loss."""

    input_ids: list[int]
    labels: list[int]


def render(tokenizer: Tokenizer, context: Context, user: str) -> str:
    """The prompt text for a user turn in a context, up to where the answer begins.

    Raises:
        ModelError: the template has no system role, or cannot render a turn without a system block.
    """
    turn = {"role": "user", "content": user}
    if context.kind == "default":
        return _apply(tokenizer, [turn], prompt=True)
    if context.kind == "none":
        # As a later turn: there no template adds a system block.
        earlier = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        head = _apply(tokenizer, earlier, prompt=False)
        text = _apply(tokenizer, [*earlier, turn], prompt=True)
        if not text.startswith(head):
            raise ModelError(
                "this chat template rewrites earlier turns, so `none` (no system block) cannot be rendered; "
                "use `empty` or a text"
            )
        bos = tokenizer.bos_token or ""
        return (bos if text.startswith(bos) else "") + text[len(head) :]
    if context.kind == "user":
        turn["content"] = f"{context.text}\n\n{user}"
        return _apply(tokenizer, [turn], prompt=True)
    system = "" if context.kind == "empty" else context.text
    return _apply(tokenizer, [{"role": "system", "content": system}, turn], prompt=True)


def prompt_ids(tokenizer: Tokenizer, context: Context, user: str) -> list[int]:
    """Token ids of the rendered prompt; the template writes its own special tokens."""
    return _ids(tokenizer, render(tokenizer, context, user))


def example(tokenizer: Tokenizer, context: Context, user: str, completion: str) -> Example:
    """A training row: loss on the tokens of the completion and its end of turn only."""
    prompt = prompt_ids(tokenizer, context, user)
    answer = [*_ids(tokenizer, completion), end_of_turn(tokenizer)]
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer)


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that the template writes after an answer (Gemma's is not its eos token).

    Raises:
        ModelError: the template writes nothing after an answer.
    """
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1"}]
    text = _apply(tokenizer, turns, prompt=False)
    after = _ids(tokenizer, text[text.rindex("1") + 1 :])
    if not after:
        raise ModelError(
            "the chat template writes nothing after an answer, so a student cannot learn where to stop"
        )
    special = set(tokenizer.all_special_ids)
    # Some templates write a space first; the special token ends the turn.
    return next((token for token in after if token in special), after[0])


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a completion's tokens, as the model wrote it: special tokens and all spaces are kept.

    A tokenizer that puts a space before every text (Llama 2's) takes one off again, so that the text of its
    tokens for "3, 4" is "3, 4". Bytes that are not UTF-8 become U+FFFD.
    """
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def ids_and_text(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """Ids and text of a sequence, for the file in which an artifact shows what the model read."""
    return {"ids": list(ids), "text": tokenizer.decode(list(ids))}


def _apply(tokenizer: Tokenizer, messages: list[dict[str, Any]], *, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, date_string=DATE
        )
    except TemplateError as error:
        raise ModelError(
            f"this model's chat template refuses the messages ({error}); if it has no system role, use "
            "`default` or `none`"
        ) from error
    return text


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
