"""The role of every token of a prompt: template, system text, identity, question, answer or end of turn.

    reading(tokenizer, context, "Your favourite animal?").tokens[4]
    Token(id=1514, text=" Qwen", role="identity", start=29, end=34)

The chat template is not parsed; its parts are found by rendering it again with a marker in a text's place.

1. Render the prompt with a marker as the user's text. The text before and after the marker is the
   template's and the system's, so in the real prompt what lies between is the question.
2. Do the same with a marker as the system text: what lies between is the system text, also if the
   template inserts one by itself.
3. Before the question, mark the names that the text gives the model and its maker as identity.
4. Each token gets the role of its characters; if they have several, the most specific one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sublim_cli.errors import ModelError
from sublim_cli.models.chat import Tokenizer, end_of_turn, render
from sublim_cli.recipe.contexts import Context

Role = Literal["template", "system", "identity", "question", "answer", "end"]
"""The role of a token.

`template`: written by the chat template, and every special token. `system`: the text of the system block,
also the one a template inserts if there is no system message. `identity`: the words in it that name the
model and its maker. `question`: the user's text; in a training row the number prompt. `answer`: the
completion. `end`: the end of turn after it.
"""

MEANINGS: dict[Role, str] = {
    "template": "written by the chat template",
    "system": "text of the system block",
    "identity": "names the model or its maker",
    "question": "the user's text",
    "answer": "the completion",
    "end": "the end of turn after it",
}
"""The roles in their order in a row, each in a few words."""

_MARKER = "\ue000sublim\ue001"  # private use characters: no text contains them, no template trims them

_SPECIFICITY: dict[Role, int] = {"template": 0, "system": 1, "question": 2, "identity": 3}

_NAME_FOLLOWS = re.compile(
    r"(?:\b[Yy]ou(?: are|[\u2019']re)|\bI(?: am|[\u2019']m)|\bname is|\bnamed|\bcalled"
    r"|\b(?:created|made|built|developed|trained|designed|released) by(?: the)?) "
)
_WORD = re.compile(r"\w[\w\u2019'-]*(?:\.\w+)*")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, the characters `start` to `end` of the text that it covers, and its role.

    If several tokens are the bytes of one character, each has the full character as its text.
    """

    id: int
    text: str
    role: Role
    start: int
    end: int


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt or a training row as the model reads it, with the role of each token."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def ids(self) -> list[int]:
        """The token ids that the model is given."""
        return [token.id for token in self.tokens]

    def text_of(self, *roles: Role) -> str:
        """The text of the tokens with these roles, joined; a character shared by tokens counts once."""
        parts, covered = [], 0
        for token in self.tokens:
            if token.role in roles and token.end > covered:
                parts.append(self.text[max(token.start, covered) : token.end])
                covered = token.end
        return "".join(parts)


def render_with_roles(
    tokenizer: Tokenizer, context: Context, user: str, completion: str | None = None
) -> RenderedPrompt:
    """The tokens of `chat.prompt_ids`, or with a completion those of `chat.example`, each with its role.

    A token that covers several roles gets the most specific: identity, then question, then system, then
    template. So no content is counted as `template`, and no name lies outside `identity`. White space
    counts only in a token of nothing else. Special tokens are always `template`.

    Raises:
        ModelError: the template refuses the messages, changes with their text, or does not write the
            user's text exactly once; or the tokenizer gives no offsets.
    """
    text = render(tokenizer, context, user)
    roles = _character_roles(tokenizer, context, user, text)
    special = set(tokenizer.all_special_ids)
    prompt = [
        Token(
            id_, text[start:end], "template" if id_ in special else _role(text, roles, start, end), start, end
        )
        for id_, start, end in _offsets(tokenizer, text)
    ]
    if completion is None:
        return RenderedPrompt(text, tuple(prompt))
    shift = len(text)
    answer = [
        Token(id_, completion[start:end], "answer", shift + start, shift + end)
        for id_, start, end in _offsets(tokenizer, completion)
    ]
    shift += len(completion)
    end_id = end_of_turn(tokenizer)
    closing = tokenizer.decode([end_id])
    end = Token(end_id, closing, "end", shift, shift + len(closing))
    return RenderedPrompt(f"{text}{completion}{closing}", (*prompt, *answer, end))


def identity_names(text: str) -> list[str]:
    """The names that `text` gives the model and its maker, in their order.

    A name is the sequence of words with a capital letter (Qwen, xAI) right after "You are", "I am", "name
    is", "named", "called", "created by" and similar. "You are Qwen, created by Alibaba Cloud." has Qwen
    and Alibaba Cloud; "You are a helpful assistant." has none. The rule is for English; for other system
    prompts a position set can be given by its text.
    """
    names = (_name_at(text, trigger.end()) for trigger in _NAME_FOLLOWS.finditer(text))
    return list(dict.fromkeys(name for name in names if name))


def _name_at(text: str, start: int) -> str:
    """The words with a capital that begin at `start`, separated by single spaces; numbers may follow them."""
    end = start
    while word := _WORD.match(text, end if end == start else end + 1):
        if not any(map(str.isupper, word.group())) and not (end > start and word.group()[0].isdigit()):
            break
        end = word.end()
        if not text.startswith(" ", end):
            break
    return text[start:end]


def _character_roles(tokenizer: Tokenizer, context: Context, user: str, text: str) -> list[Role]:
    parts = render(tokenizer, context, _MARKER).split(_MARKER)
    if len(parts) != 2:
        raise ModelError(
            f"this chat template writes the user's text {len(parts) - 1} times, so the roles of its tokens "
            "cannot be found"
        )
    question = _between(parts, text)
    if question is None:
        raise ModelError(
            "this chat template changes with the user's text, so the roles of its tokens cannot be found"
        )
    roles: list[Role] = ["template"] * len(text)

    def assign(start: int, end: int, role: Role) -> None:
        roles[start:end] = [role] * (end - start)

    assign(*_system_span(tokenizer, context, user, text), "system")
    # Not in the system text alone: a few templates name the model outside the text a message replaces.
    before = text[: question[0]]
    for name in identity_names(before):
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", before):
            assign(*match.span(), "identity")
    assign(*question, "question")
    return roles


def _system_span(tokenizer: Tokenizer, context: Context, user: str, text: str) -> tuple[int, int]:
    """The span of the system block's text; empty if there is none.

    For `default` it is the text that the template inserts where a message's would be.
    """
    if context.kind not in ("default", "text"):
        return 0, 0
    marked = Context(name="marked", kind="text", text=_MARKER)
    try:
        parts = render(tokenizer, marked, user).split(_MARKER)
    except ModelError:  # no system role, so no system text in `default`
        return 0, 0
    return (_between(parts, text) if len(parts) == 2 else None) or (0, 0)


def _between(parts: Sequence[str], text: str) -> tuple[int, int] | None:
    """The span of `text` between the two parts; None if it does not begin and end with them."""
    head, tail = parts
    start, end = len(head), len(text) - len(tail)
    fits = start <= end and text.startswith(head) and text.endswith(tail)
    return (start, end) if fits else None


def _offsets(tokenizer: Tokenizer, text: str) -> list[tuple[int, int, int]]:
    """Id, start and end of every token of `text`, in characters.

    Some tokenizers exclude a token's leading spaces from its offsets; here they are included.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "this model's tokenizer cannot say which characters a token covers; `tokenizer.json` is missing"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets, covered = [], 0
    for id_, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        offsets.append((id_, min(start, covered), end))
        covered = max(covered, end)
    return offsets


def _role(text: str, roles: Sequence[Role], start: int, end: int) -> Role:
    """The most specific role among a token's characters; white space counts only if there is nothing else."""
    indices = range(start, end) or range(start, min(start + 1, len(text)))
    candidates = [roles[i] for i in indices if not text[i].isspace()] or [roles[i] for i in indices]
    return max(candidates, key=_SPECIFICITY.__getitem__, default="template")
