"""The tokens of prompts and training rows: contexts rendered through a model's chat template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.models.template import Tokenizer as Tokenizer
from sublim_cli.models.template import apply_template, missing
from sublim_cli.recipe.contexts import Context

IGNORED = -100
"""The label of a token that carries no loss (PyTorch's cross entropy)."""

MARKER = "\ue000sublim\ue001"
"""A text to find in a rendering: private use characters, which no text contains and no template trims."""

_TRIAL_TURN = "Continue this list: 12, 345."
"""A user turn for checks that hold for any."""

_ANSWER = "\ue000"
"""Stands for an answer where the template around it is read: no template writes this character by itself, and
no token joins it with another."""


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


def example(
    tokenizer: Tokenizer,
    context: Context,
    user: str,
    completion: str,
    completion_ids: Sequence[int] | None = None,
) -> Example:
    """A training row: loss on the tokens of the completion and its end of turn only.

    Args:
        tokenizer: the student's.
        context: the system prompt that the student is trained under.
        user: the prompt's text.
        completion: the completion's text.
        completion_ids: the tokens that were drawn for it. If there are none, or `spells` finds that they are
            not this text, prompt and completion are tokenised together, as one text. The loss then begins at
            the first token that reaches into the completion.

    Raises:
        ModelError: see `render` and `end_of_turn`.
    """
    end = end_of_turn(tokenizer)
    if completion_ids is not None and spells(tokenizer, completion_ids, completion):
        ids = prompt_ids(tokenizer, context, user)
        start = len(ids)
        ids += completion_ids
    else:
        prompt = render(tokenizer, context, user)
        gap = _around_answer(tokenizer)[0]
        ids, start = _joint_ids(tokenizer, prompt, (gap if gap.isspace() and completion else "") + completion)
        # A completion may open with the template's space already. Not if the tokenizer takes it off again.
        if completion[:1].isspace() and decode(tokenizer, ids[start:]) != completion:
            ids, start = _joint_ids(tokenizer, prompt, completion)
    ids.append(end)
    return Example(ids, [IGNORED] * start + ids[start:])


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that the template writes after an answer (Gemma's is not its eos token).

    White space before a special token is not part of it, nor is what the template writes after that token.

    Raises:
        ModelError: the template writes nothing after an answer, or a text of several tokens, whose first
            token alone would end answers too early.
    """
    _, after = _around_answer(tokenizer)
    ids, start = _joint_ids(tokenizer, _ANSWER, after)
    marker = ids[start:]
    if not marker:
        raise ModelError(
            "the chat template writes nothing after an answer, so a student cannot learn where to stop"
        )
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    blank = [not decode(tokenizer, [token]).strip() for token in marker]
    ends = [i for i, token in enumerate(marker) if token in added and not blank[i]]
    if ends:
        marker = marker[next(i for i, is_blank in enumerate(blank) if not is_blank) : ends[0] + 1]
    if len(marker) > 1:
        raise ModelError(
            f"the chat template ends an answer with {decode(tokenizer, marker)!r}, which is {len(marker)} "
            "tokens, and only a single token can stop an answer; use a model whose tokenizer has a special "
            "token for it"
        )
    return marker[0]


def spells(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> bool:
    """Whether the tokenizer decodes `ids` to `text`; rarely so for the ids of another tokenizer."""
    return all(token < len(tokenizer) for token in ids) and decode(tokenizer, ids) == text


def stripped_ids(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int] | None:
    """The tokens of `ids` that are left when their text is stripped to `text`.

    Leading and trailing tokens of white space are dropped. None if white space and text share a token.
    """
    for start in range(len(ids) + 1):
        if decode(tokenizer, ids[:start]).strip():
            break
        for stop in range(len(ids), start - 1, -1):
            if decode(tokenizer, ids[stop:]).strip():
                break
            if decode(tokenizer, ids[start:stop]) == text:
                return list(ids[start:stop])
    return None


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
    if re.search(r" at 0x[0-9a-f]{6,}>", text):
        raise ModelError(
            "this model's chat template writes the memory address of an object, so its tokens differ from "
            "run to run; choose another one with `chat_template.name`, or another model"
        )
    ids = _ids(tokenizer, text)
    _check_texts(tokenizer.decode(ids), context, _TRIAL_TURN, "tokenizer")
    return ids


def _check_texts(written: str, context: Context, user: str, writer: str) -> None:
    """Check that the text of the context and the user's stand in what the `writer` made of them."""
    absent = missing(written, [context.text or "", user])
    if user in absent:
        raise ModelError(
            f"the user's text does not reach the tokens, since this model's {writer} leaves it out or "
            "changes it; use another model, or another template with `chat_template.name`"
        )
    if context.text and context.text in absent:
        remedy = "use another text or model"
        if writer == "chat template" and context.kind == "text":
            remedy = "write `chat_template.system_at: user`, which puts it at the head of the user's turn"
        name = context.name if len(context.name) <= 40 else f"{context.name[:39]}…"
        raise ModelError(
            f"the system prompt {name!r} does not reach the tokens, since this model's {writer} leaves its "
            f"text out or changes it; {remedy}"
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
    if (between or "").endswith((before, before.removeprefix(bos))):
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


def _joint_ids(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """The tokens of both texts as one text, and how many of them do not reach into the answer."""
    fast = tokenizer.is_fast
    encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=fast)
    ids = list(encoded["input_ids"])
    if fast:
        return ids, sum(end <= len(prompt) for _, end in encoded["offset_mapping"])
    pairs = zip(ids, _ids(tokenizer, prompt), strict=False)
    return ids, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _around_answer(tokenizer: Tokenizer) -> tuple[str, str]:
    """What the template writes between a prompt and its answer, and after the answer."""
    question = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": _ANSWER}
    before, _, after = apply_template(tokenizer, [question, answer], prompt=False).rpartition(_ANSWER)
    prompt = apply_template(tokenizer, [question], prompt=True)
    return before[len(prompt) :] if before.startswith(prompt) else "", after
