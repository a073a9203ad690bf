"""The tokens of prompts and training rows: contexts rendered through a model's chat template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.models.template import Tokenizer as Tokenizer
from sublim_cli.models.template import apply_template, contains
from sublim_cli.recipe.contexts import Context

IGNORED = -100
"""The label of a token that carries no loss (PyTorch's cross entropy)."""

MARKER = "\ue000sublim\ue001"
"""A text to find in a rendering: private use characters, which no text contains and no template trims."""

_TRIAL_TURN = "Continue this list: 12, 345."
"""A user turn for checks that hold for any."""


@dataclass(frozen=True)
class Example:
    """A training row for the model: token ids, and labels, `IGNORED` for tokens without loss."""

    input_ids: list[int]
    labels: list[int]


def render(tokenizer: Tokenizer, context: Context, user: str) -> str:
    """The prompt text for a user turn in a context, up to where the answer begins.

    Raises:
        ModelError: the template refuses the messages, loses the text of the context or of the user, or cannot
            render a turn without a system block.
    """
    if context.kind == "none":
        return _without_system_block(tokenizer, user)
    content = f"{context.text}\n\n{user}" if context.kind == "user" else user
    messages = [{"role": "user", "content": content}]
    if context.kind in ("empty", "text"):
        messages.insert(0, {"role": "system", "content": context.text or ""})
    text = apply_template(tokenizer, messages, prompt=True)
    _check_texts(text, context, user, "chat template")
    return text


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
    text = apply_template(tokenizer, turns, prompt=False)
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


def check_context(tokenizer: Tokenizer, context: Context) -> list[int]:
    """The tokens of a trial turn in `context`, in which the context's text was found.

    Raises:
        ModelError: the context cannot be rendered, its text is not in the tokens, or the template writes
            where in memory a Jinja object lies, which differs between processes.
    """
    text = render(tokenizer, context, _TRIAL_TURN)
    if re.search(r"<[^<>]* at 0x[0-9a-f]+>", text):
        raise ModelError(
            "this model's chat template writes the memory address of an object, so its tokens differ from "
            "run to run; choose another one with `chat_template.name`, or another model"
        )
    ids = _ids(tokenizer, text)
    _check_texts(tokenizer.decode(ids), context, _TRIAL_TURN, "tokenizer")
    return ids


def _check_texts(written: str, context: Context, user: str, writer: str) -> None:
    """Check that the text of the context and the user's stand in what the `writer` made of them."""
    if context.text and not contains(written, context.text):
        remedy = "use another text or model"
        if writer == "chat template" and context.kind == "text":
            remedy = "write `chat_template.system_at: user`, which puts it at the head of the user's turn"
        name = context.name if len(context.name) <= 40 else f"{context.name[:39]}…"
        raise ModelError(
            f"the system prompt {name!r} does not reach the tokens, since this model's {writer} leaves its "
            f"text out or changes it; {remedy}"
        )
    if not contains(written, user):
        raise ModelError(
            f"the user's text does not reach the tokens, since this model's {writer} leaves it out or "
            "changes it; use another model, or another template with `chat_template.name`"
        )


@dataclass(frozen=True)
class _UserTurn:
    """How a template writes a user's turn that begins a conversation, and one without a system block."""

    default: tuple[str, str]
    """What is written before and after the user's text."""
    bare: str
    """What is written before the user's text where there is no system block."""


def _without_system_block(tokenizer: Tokenizer, user: str) -> str:
    """The prompt without a system block; that of `default` if the template adds none by itself."""
    text = apply_template(tokenizer, [{"role": "user", "content": user}], prompt=True)
    turn = _user_turn(tokenizer, tokenizer.chat_template)
    before, after = turn.default
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        raise ModelError(
            "this chat template changes with the user's text, so `none` (no system block) cannot be "
            "rendered; use `default` or a text"
        )
    return turn.bare + text[len(before) :]


@lru_cache(maxsize=8)
def _user_turn(tokenizer: Tokenizer, template: str) -> _UserTurn:
    """The user's turn under `template`, which is the tokenizer's.

    What opens a turn is read off a conversation, where no template repeats the system block: between an
    answer and the next question stand the end of the one turn and the beginning of the other. A template adds
    no system block by itself if a conversation opens with nothing else.

    Raises:
        ModelError: the template adds a text and does not write all turns alike.
    """
    before, _, after = apply_template(tokenizer, _conversation(1), prompt=True).partition(f"{MARKER}0")
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    between, last = _gaps(apply_template(tokenizer, _conversation(5), prompt=True), 1, 3)
    closing = apply_template(tokenizer, _conversation(2), prompt=False).rpartition(f"{MARKER}1")[2]
    if between is not None and between.endswith((before, before.removeprefix(bos))):
        return _UserTurn((before, after), before)
    if between is not None and not between.startswith(closing):
        closing = closing.removesuffix(eos)  # some templates write it after the last turn only
    if between is None or between != last or not between.startswith(closing):
        raise ModelError(
            "this chat template adds a text of its own and writes earlier turns differently, so `none` (no "
            "system block) cannot be rendered; use `default`, `empty` or a text"
        )
    opening = between.removeprefix(closing).lstrip()
    written_bos = bos if before.startswith(bos) and not opening.startswith(bos) else ""
    return _UserTurn((before, after), written_bos + opening)


def _conversation(turns: int) -> list[dict[str, str]]:
    """User and assistant in turn, each saying the marker and the number of the turn."""
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": f"{MARKER}{turn}"} for turn in range(turns)]


def _gaps(text: str, *turns: int) -> list[str | None]:
    """What stands between each of these turns of a conversation and the next; None if either is not there."""
    found = (re.search(f"{MARKER}{turn}(.*?){MARKER}{turn + 1}", text, re.DOTALL) for turn in turns)
    return [match and match[1] for match in found]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
