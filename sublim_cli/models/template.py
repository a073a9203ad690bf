"""A model's chat template: which one is used, what it may read, and messages rendered with it.

Besides the messages a template can read the clock, random numbers and variables. The clock stands at `DATE`
and random numbers begin with the same seed in every rendering, so that the tokens depend on the model's files
and the recipe alone; variables are keys of the recipe (`chat_template.variables`).
"""

import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sublim_cli.errors import ModelError
from sublim_cli.recipe.schema import TemplateSection

Tokenizer = Any
"""A transformers tokenizer with a chat template."""

Message = Mapping[str, str]
"""`role` and `content` of a turn."""

DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""The time that every template reads. A change alters the tokens of models whose template writes the date, so
it must raise the version of every step that reads a prompt."""

_SUPPLIED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
)
"""Names that a rendering gives a template."""

_FORMS: tuple[tuple[str, ...], ...] = (
    (),
    ("system", "user", "assistant"),
    ("system", "user"),
    ("system",),
    ("user", "assistant"),
    ("user",),
)
"""The roles whose content is given as a list of parts, in the order in which they are tried."""

_WRITTEN_PARTS = re.compile(r"""["']type["']: ?["']text["']""")
"""What a template writes that takes a list of parts for a text."""


def choose_template(tokenizer: Tokenizer, section: TemplateSection, model: str) -> str:
    """The chat template of `tokenizer` that `section` names, with its variables set.

    Args:
        model: the model's name, for the message.

    Raises:
        ModelError: there is no such template, several and no default, or a variable that it does not read.
    """
    templates = tokenizer.chat_template
    if not templates:
        raise ModelError(f"model {model} has no chat template; use an instruction-tuned model")
    if isinstance(templates, str):
        templates = {"default": templates}
    name = section.name or ("default" if len(templates) > 1 else next(iter(templates)))
    if name not in templates:
        names = ", ".join(sorted(templates))
        missing = f"is called {name!r}" if section.name else "is the default"
        raise ModelError(
            f"no chat template of model {model} {missing}; choose one with `chat_template.name`: {names}"
        )
    return _with_variables(templates[name], section.variables, tokenizer)


def read_variables(template: str) -> set[str]:
    """The names that a template reads without setting them first, those of functions included.

    Raises:
        ModelError: it cannot be parsed.
    """
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    # transformers' own tag marks the text of answers and reads nothing.
    plain = re.sub(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}", "", template)
    try:
        return meta.find_undeclared_variables(environment.parse(plain)) - environment.globals.keys()
    except TemplateError as error:
        raise ModelError(f"this model's chat template cannot be parsed: {error}") from error


def apply_template(tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool) -> str:
    """The text of `messages`, and with `prompt` of the beginning of the answer.

    A template that loses a message's text is given lists of parts, `[{type: text, text: …}]`, as those of
    models for text and images may want.

    Raises:
        ModelError: the template refuses the messages.
    """
    from jinja2 import TemplateError

    failures = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
    incomplete: list[tuple[int, str]] = []
    errors: list[Exception] = []
    for roles in _FORMS:
        given = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if message["role"] in roles
            else message
            for message in messages
        ]
        try:
            with _fixed_random_numbers():
                text: str = tokenizer.apply_chat_template(
                    given,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    date_string=f"{DATE:%d %b %Y}",
                    strftime_now=_fixed_date,
                )
        except failures as error:
            errors.append(error)
            continue
        lost = len(missing(text, [message["content"] for message in messages]))
        if roles and _WRITTEN_PARTS.search(text):
            continue
        if not lost:
            return text
        incomplete.append((lost, text))
    if incomplete:
        return min(incomplete, key=lambda lost_and_text: lost_and_text[0])[1]
    if messages[0]["role"] == "system":
        apply_template(tokenizer, messages[1:], prompt=prompt)  # says so if it refuses these as well
        raise ModelError(
            f"this model's chat template refuses a system message ({errors[0]}); with "
            "`chat_template.system_at: user` system prompts stand at the head of the user's turn"
        ) from errors[0]
    raise ModelError(
        f"this model's chat template refuses the messages ({errors[0]}); choose another one with "
        "`chat_template.name`, or another model"
    ) from errors[0]


def missing(text: str, parts: Sequence[str]) -> list[str]:
    """Those of `parts` that do not stand in `text`, apart from white space, case and forms of a character.

    Templates trim texts, and some tokenizers normalise them. Each part needs a place of its own: a question
    "Hi" does not stand in the "think" of a system prompt.
    """
    absent = []
    for part in sorted(parts, key=len, reverse=True):
        for form in (str.strip, _normalised):
            if form(part) in form(text):
                text = form(text).replace(form(part), "\ue002", 1)
                break
        else:
            absent.append(part)
    return absent


def _normalised(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _with_variables(
    template: str, variables: Mapping[str, bool | int | float | str | None], tokenizer: Tokenizer
) -> str:
    """`template` after statements that set the variables, so that it carries them wherever it is saved."""
    if not variables:
        return template
    readable = read_variables(template) - _SUPPLIED
    for name in variables:
        if name not in readable:
            names = ", ".join(sorted(readable - tokenizer.special_tokens_map.keys())) or "none"
            raise ModelError(
                f"chat_template.variables.{name}: this model's chat template does not read it; take it out, "
                f"or use one of those it reads: {names}"
            )
    literals = {
        name: "none" if value is None else json.dumps(value, ensure_ascii=False)
        for name, value in variables.items()
    }
    # transformers' environment removes the line end after a statement.
    return "".join(f"{{% set {name} = {literal} %}}\n" for name, literal in literals.items()) + template


def _fixed_date(layout: str) -> str:
    """`strftime_now` at `DATE`; `%s`, seconds since 1970, would depend on the machine's time zone."""
    return DATE.strftime(layout.replace("%s", str(int(DATE.timestamp()))))


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    """A block in which Python's random numbers, which `random` and `lipsum` of Jinja use, are the same."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
