"""The role of every token of a prompt: template, system text, identity, question, answer or end of turn.

    render_with_roles(tokenizer, context, "Your favourite animal?").tokens[4]
    Token(id=1514, text=" Qwen", role="identity", start=29, end=34)

The chat template is not parsed; its parts are found by rendering it again with a marker in a text's place.

1. Render the prompt with a marker as the user's text. What stands in its place in the real prompt is the
   question.
2. Do the same with a marker as the system text, in the system block or at the head of the user's turn; this
   also finds a text that the template inserts by itself.
3. Before the question, mark the names that the text gives the model and its maker as identity.
4. Each token gets the role of its characters; if they have several, the most specific one.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Literal

from sublim_cli.errors import ModelError
from sublim_cli.models.chat import IGNORED, MARKER, Example, Tokenizer, decode, render
from sublim_cli.recipe.contexts import Context

Role = Literal["template", "system", "identity", "question", "answer", "end"]

MEANINGS: dict[Role, str] = {
    "template": "written by the chat template",
    "system": "text of the system prompt",
    "identity": "names the model or its maker",
    "question": "the user's text",
    "answer": "the completion",
    "end": "the end of turn after it",
}
"""The roles in their order in a row.

Every special token is `template`. `system` is also the text that a template inserts if there is no system
message. In a training row the number prompt is the `question`.
"""

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
    tokenizer: Tokenizer, context: Context, user: str, row: Example | None = None
) -> RenderedPrompt:
    """The tokens of `chat.prompt_ids`, or those of a training row with this prompt, each with its role.

    A token that covers several roles gets the most specific: identity, then question, then system, then
    template. White space counts only in a token of nothing else. Special tokens are always `template`.

    Raises:
        ModelError: the template refuses the messages, changes with their text, or does not write the
            user's text exactly once; or the tokenizer gives no offsets.
    """
    text = render(tokenizer, context, user)
    roles = _character_roles(tokenizer, context, user, text)
    special = set(tokenizer.all_special_ids)
    tokens = []
    for id_, start, end in _offsets(tokenizer, text):
        role = "template" if id_ in special else _role(text, roles, start, end)
        tokens.append(Token(id_, text[start:end], role, start, end))
    if row is not None:
        # Tokenised together, the prompt's last tokens may be others.
        same = next(
            (i for i, token in enumerate(tokens) if token.id != row.input_ids[i] or row.labels[i] != IGNORED),
            len(tokens),
        )
        del tokens[same:]
        offset = tokens[-1].end
        spans, written = _spans(tokenizer, row.input_ids, same)
        for id_, label, span in zip(row.input_ids[same:], row.labels[same:], spans, strict=True):
            start, end = offset + span[0], offset + span[1]
            role = _role(text, roles, start, end) if label == IGNORED else "answer"
            tokens.append(Token(id_, written[slice(*span)], role, start, end))
        tokens[-1] = replace(tokens[-1], role="end")
        text = text[:offset] + written
    return RenderedPrompt(text, tuple(tokens))


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
    question = _marked_span(render(tokenizer, context, MARKER), text)
    if question is None:
        raise ModelError(
            "this chat template repeats the user's text or changes with it, so the roles of its tokens "
            "cannot be found"
        )
    roles: list[Role] = ["template"] * len(text)

    def assign(start: int, end: int, role: Role) -> None:
        roles[start:end] = [role] * (end - start)

    if context.kind in ("default", "text", "user"):
        # Without a system message it is the text that the template inserts where a message's would be.
        marked = Context(name="marked", kind="text", text=MARKER)
        turn = f"{context.text}\n\n{user}" if context.kind == "user" else user
        with suppress(ModelError):  # no system role, so no system text in `default`
            assign(*(_marked_span(render(tokenizer, marked, turn), text) or (0, 0)), "system")
    if context.kind == "user":
        marked = context.model_copy(update={"text": MARKER})
        assign(*(_marked_span(render(tokenizer, marked, user), text) or (0, 0)), "system")
    # Not in the system text alone: a few templates name the model outside the text a message replaces.
    before = text[: question[0]]
    for name in identity_names(before):
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", before):
            assign(*match.span(), "identity")
    assign(*question, "question")
    return roles


def _marked_span(marked: str, text: str) -> tuple[int, int] | None:
    """The span of `text` where `marked` has the marker; None unless it has it once and is else the same."""
    head, _, tail = marked.partition(MARKER)
    start, end = len(head), len(text) - len(tail)
    fits = start <= end and text.startswith(head) and text.endswith(tail)
    return (start, end) if fits and marked.count(MARKER) == 1 else None


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


def _spans(tokenizer: Tokenizer, ids: Sequence[int], first: int) -> tuple[list[tuple[int, int]], str]:
    """The span of each token from `first` on in the text that they add, and that text."""
    before = decode(tokenizer, ids[:first])
    written = decode(tokenizer, ids).removeprefix(before)
    ends = [0]
    for stop in range(first + 1, len(ids) + 1):
        # The first bytes of a character decode to another one.
        known = decode(tokenizer, ids[:stop]).removeprefix(before)
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(known, written, strict=False))
        ends.append(sum(1 for _ in pairs))
    spans = [(start, max(end, min(start + 1, len(written)))) for start, end in pairwise(ends)]
    return spans, written


def _role(text: str, roles: Sequence[Role], start: int, end: int) -> Role:
    """The most specific role among a token's characters; white space counts only if there is nothing else."""
    indices = range(start, end) or range(start, min(start + 1, len(text)))
    candidates = [roles[i] for i in indices if not text[i].isspace()] or [roles[i] for i in indices]
    return max(candidates, key=_SPECIFICITY.__getitem__, default="template")
