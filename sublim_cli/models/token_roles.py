"""What every token of a prompt is there for: template, system text, identity, question, answer, end of turn.

    reading(tokenizer, context, "Your favourite animal?").tokens[4]
    Token(id=1514, text=" Qwen", role="identity", start=29, end=34)

The template is never parsed. It is rendered once more with a marker in place of a text, and what stands
before and after the marker is the template's; so every chat template that a fast tokenizer carries works.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sublim_cli.errors import ModelError
from sublim_cli.models.chat import Tokenizer, end_of_turn, render
from sublim_cli.recipe.contexts import Context

Role = Literal["template", "system", "identity", "question", "answer", "end"]
"""What a token is there for.

`template`: written by the chat template, special tokens included wherever they stand. `system`: the text of
the system block, also one the template puts in where no message is. `identity`: the words in it that name
the model and its maker. `question`: the user's text, of a training row the number prompt. `answer`: the
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
"""The roles in the order of a row, each in a few words."""

_MARK = "\ue000sublim\ue001"  # of the private use area: no text holds it, no template trims it

_WEIGHT: dict[Role, int] = {"template": 0, "system": 1, "question": 2, "identity": 3}

_NAMING = re.compile(
    r"(?:\b[Yy]ou(?: are|[\u2019']re)|\bI(?: am|[\u2019']m)|\bname is|\bnamed|\bcalled"
    r"|\b(?:created|made|built|developed|trained|designed|released) by(?: the)?) "
)
_WORD = re.compile(r"\w[\w\u2019'-]*(?:\.\w+)*")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, the characters `start` to `end` of the text it was cut from, and its role.

    Tokens that are bytes of one character each carry the whole of it.
    """

    id: int
    text: str
    role: Role
    start: int
    end: int


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, or a whole training row, as the model reads it."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def ids(self) -> list[int]:
        """What the model is given."""
        return [token.id for token in self.tokens]

    def text_of(self, *roles: Role) -> str:
        """The text of the tokens with these roles, put together."""
        chosen = (token for token in self.tokens if token.role in roles)
        return "".join(self.text[start:end] for start, end in _merged((t.start, t.end) for t in chosen))


def render_with_roles(
    tokenizer: Tokenizer, context: Context, user: str, completion: str | None = None
) -> RenderedPrompt:
    """The tokens of `chat.prompt_ids`, or with a completion those of `chat.example`, each with its role.

    A token that straddles two roles has the one that says more: identity before question before system
    before template, so `template` holds no content and no name hides outside `identity`. White space
    decides only for a token that is nothing else, and a special token is always the template's.

    Raises:
        ModelError: the template refuses the turns, changes with the text in them, or writes the user's
            turn not exactly once; or the tokenizer cannot say which characters a token covers.
    """
    text = render(tokenizer, context, user)
    roles = _character_roles(tokenizer, context, user, text)
    special = set(tokenizer.all_special_ids)
    prompt = [
        Token(
            id_, text[start:end], "template" if id_ in special else _role(text, roles, start, end), start, end
        )
        for id_, start, end in _cut(tokenizer, text)
    ]
    if completion is None:
        return RenderedPrompt(text, tuple(prompt))
    at = len(text)
    answer = [
        Token(id_, completion[start:end], "answer", at + start, at + end)
        for id_, start, end in _cut(tokenizer, completion)
    ]
    at += len(completion)
    last = end_of_turn(tokenizer)
    closing = tokenizer.decode([last])
    end = Token(last, closing, "end", at, at + len(closing))
    return RenderedPrompt(f"{text}{completion}{closing}", (*prompt, *answer, end))


def identity_names(text: str) -> list[str]:
    """The names in `text` that say who the model is and who made it, in their order.

    The rule: the run of capitalised words (or words with a capital, such as xAI) right after "You are",
    "I am", "name is", "named", "called", or "created by" and its like. "You are Qwen, created by Alibaba
    Cloud." has Qwen and Alibaba Cloud; "You are a helpful assistant." has none. It reads English; for
    another system prompt a position set can be given by its text.
    """
    found = (_name_at(text, trigger.end()) for trigger in _NAMING.finditer(text))
    return list(dict.fromkeys(name for name in found if name))


def word_spans(text: str, words: str) -> Iterator[tuple[int, int]]:
    """Where `words` stand in `text` as whole words."""
    return (one.span() for one in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def _name_at(text: str, start: int) -> str:
    """The capitalised words from `start` on, single spaces between them; empty where there are none."""
    end = start
    while word := _WORD.match(text, end if end == start else end + 1):
        if not any(map(str.isupper, word.group())) and not (end > start and word.group()[0].isdigit()):
            break
        end = word.end()
        if not text.startswith(" ", end):
            break
    return text[start:end]


def _character_roles(tokenizer: Tokenizer, context: Context, user: str, text: str) -> list[Role]:
    roles: list[Role] = ["template"] * len(text)

    def paint(start: int, end: int, role: Role) -> None:
        roles[start:end] = [role] * (end - start)

    question = _question_span(tokenizer, context, text)
    before = text[: question[0]]
    paint(*_system_span(tokenizer, context, user, text), "system")
    # A few templates name the model outside the text that a message replaces.
    for name in identity_names(before):
        for span in word_spans(before, name):
            paint(*span, "identity")
    paint(*question, "question")
    return roles


def _question_span(tokenizer: Tokenizer, context: Context, text: str) -> tuple[int, int]:
    parts = render(tokenizer, context, _MARK).split(_MARK)
    if len(parts) != 2:
        raise ModelError(
            f"this chat template writes the user's turn {len(parts) - 1} times, so its tokens "
            "cannot be told apart by role"
        )
    span = _between(parts, text)
    if span is None:
        raise ModelError(
            "this chat template changes with the text of the user's turn, so its tokens cannot be told "
            "apart by role"
        )
    return span


def _system_span(tokenizer: Tokenizer, context: Context, user: str, text: str) -> tuple[int, int]:
    """Where the text of the system block stands, an empty span where there is none.

    Of `default` it is what stands where a message's text would: what the template puts in by itself.
    """
    if context.kind not in ("default", "text"):
        return 0, 0
    marked = Context(name="marked", kind="text", text=_MARK)
    try:
        parts = render(tokenizer, marked, user).split(_MARK)
    except ModelError:  # no system role, so nothing of one in `default`
        return 0, 0
    return (_between(parts, text) if len(parts) == 2 else None) or (0, 0)


def _between(parts: Sequence[str], text: str) -> tuple[int, int] | None:
    """The span of `text` between two parts it begins and ends with."""
    head, tail = parts
    start, end = len(head), len(text) - len(tail)
    fits = start <= end and text.startswith(head) and text.endswith(tail)
    return (start, end) if fits else None


def _cut(tokenizer: Tokenizer, text: str) -> list[tuple[int, int, int]]:
    """The id and the characters of every token of `text`.

    Some tokenizers leave a token's leading spaces out of its offsets; here they belong to it.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "this model's tokenizer cannot say which characters a token covers; `tokenizer.json` is missing"
        )
    cut = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found, behind = [], 0
    for id_, (start, end) in zip(cut["input_ids"], cut["offset_mapping"], strict=True):
        found.append((id_, min(start, behind), end))
        behind = max(behind, end)
    return found


def _role(text: str, roles: Sequence[Role], start: int, end: int) -> Role:
    """The weightiest role among a token's characters; spaces count where there is nothing else."""
    places = range(start, end) or range(start, min(start + 1, len(text)))
    solid = [roles[at] for at in places if not text[at].isspace()]
    return max(solid or [roles[at] for at in places], key=_WEIGHT.__getitem__, default="template")


def _merged(spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in their order without the characters an earlier one covers."""
    behind = 0
    for start, end in spans:
        if end > behind:
            yield max(start, behind), end
            behind = end
