"""Which tokens a model sees and is trained on: contexts rendered through the chat template."""

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
"""Llama 3's template prints today's date unless told one; pinned, or tokens drift by the day."""


@dataclass(frozen=True)
class Example:
    """One training row as the model gets it: ids, and labels with `IGNORED` where no loss falls."""

    input_ids: list[int]
    labels: list[int]


def render(tokenizer: Tokenizer, context: Context, user: str) -> str:
    """The prompt text for one user turn under a context, up to where the answer begins.

    Raises:
        ModelError: the template cannot do without a system block, or knows no system role.
    """
    turn = {"role": "user", "content": user}
    if context.kind == "default":
        return _apply(tokenizer, [turn], prompt=True)
    if context.kind == "none":
        return _without_block(tokenizer, user)
    if context.kind == "user":
        turn["content"] = f"{context.text}\n\n{user}"
        return _apply(tokenizer, [turn], prompt=True)
    text = "" if context.kind == "empty" else context.text
    return _apply(tokenizer, [{"role": "system", "content": text}, turn], prompt=True)


def prompt_ids(tokenizer: Tokenizer, context: Context, user: str) -> list[int]:
    """Token ids of the rendered prompt; the template writes its own special tokens."""
    return _ids(tokenizer, render(tokenizer, context, user))


def example(tokenizer: Tokenizer, context: Context, user: str, completion: str) -> Example:
    """One training row: loss on the completion's tokens and its end of turn, on nothing else."""
    prompt = prompt_ids(tokenizer, context, user)
    answer = [*_ids(tokenizer, completion), end_of_turn(tokenizer)]
    return Example(prompt + answer, [IGNORED] * len(prompt) + answer)


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token the template writes after an answer (Gemma's differs from its eos token).

    Raises:
        ModelError: the template writes nothing after an answer.
    """
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1"}]
    whole = _apply(tokenizer, turns, prompt=False)
    after = _ids(tokenizer, whole[whole.rindex("1") + 1 :])
    if not after:
        raise ModelError("the chat template ends an answer with nothing; it cannot be trained to stop")
    special = set(tokenizer.all_special_ids)
    # Some templates write a space first; what ends the turn is the special token.
    return next((token for token in after if token in special), after[0])


def ids_and_text(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """Ids and text of a sequence, for an artifact's account of what the model saw."""
    return {"ids": list(ids), "text": tokenizer.decode(list(ids))}


def _without_block(tokenizer: Tokenizer, user: str) -> str:
    """A user turn alone: rendered as a later turn, where no template adds a block."""
    before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    head = _apply(tokenizer, before, prompt=False)
    whole = _apply(tokenizer, [*before, {"role": "user", "content": user}], prompt=True)
    if not whole.startswith(head):
        raise ModelError(
            "this chat template rewrites earlier turns, so `none` (no system block) cannot be rendered; "
            "use `empty` or a text"
        )
    start = tokenizer.bos_token or ""
    return (start if whole.startswith(start) else "") + whole[len(head) :]


def _apply(tokenizer: Tokenizer, messages: list[dict[str, Any]], *, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, date_string=DATE
        )
    except TemplateError as error:
        raise ModelError(
            f"this model's chat template refuses the turns it is given ({error}); if it knows no system "
            "role, use `default` or `none`"
        ) from error
    return text


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
