"""How tokens are shown: in words, in letters one can see, and on a page of their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from jinja2 import Environment, StrictUndefined

from sublim_cli.errors import RecipeError
from sublim_cli.inspection.view import Inspection, Line, View
from sublim_cli.models.token_roles import MEANINGS, Role, Token
from sublim_cli.wording import count, listed

ROLES: tuple[Role, ...] = tuple(MEANINGS)

LETTERED = 12
"""Up to so many contexts each have a letter; of more, only the number that share a token is told."""

_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """`text` with every white space and every invisible character written out."""
    return (
        "".join(_SHOWN.get(one, one if one.isprintable() else ascii(one)[1:-1]) for one in text) or "∅"
    )  # a token of no characters


def labels(tokens: Sequence[Token]) -> list[str]:
    """A visible name for every token; the bytes of one character are numbered, `é 1/2`."""
    found: list[str] = []
    for (start, end), group in groupby(tokens, key=lambda one: (one.start, one.end)):
        same = list(group)
        parts = len(same) if end > start else 1
        found += [
            f"{visible(one.text)} {part}/{parts}" if parts > 1 else visible(one.text)
            for part, one in enumerate(same, start=1)
        ]
    return found


def called(context: str, longest: int = 40) -> str:
    """A context's name on one line; one that is given by its text is called by the beginning of it."""
    text = visible(context).replace("␣", " ")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def letters(seen: Inspection) -> dict[str, str]:
    """A letter for each context of the recipe; empty where they are too many."""
    names = seen.contexts
    return dict(zip(names, ascii_lowercase, strict=False)) if len(names) <= LETTERED else {}


def sharing(seen: Inspection, line: Line) -> str:
    """Which contexts share a token, as letters with dots between: `ab·d`. Empty if it is no context's."""
    if line.shared is None:
        return ""
    known = letters(seen)
    if not known:
        return f"{len(line.shared)} of {len(seen.contexts)}"
    return "".join(letter if name in line.shared else "·" for name, letter in known.items())


def title(seen: Inspection) -> str:
    """What is looked at, in a clause."""
    subject = seen.subject
    match subject.kind:
        case "text":
            return "A text of yours"
        case "row":
            return f"Row {subject.number} of the kept rows"
        case _:
            return f"{subject.kind.capitalize()} {subject.number}"


def told(seen: Inspection, command: str) -> list[str]:
    """What there is to know about the contexts, in sentences.

    `command` is what builds the recipe's rows, named where there are none yet.
    """
    return [*_no_row(seen, command), *_alike(seen), *_built_in(seen), *_shared(seen), *_refused(seen)]


def place(seen: Inspection, context: str) -> str:
    """What a context is to the recipe: `train`, `eval`, both, or nothing of either."""
    parts = ["train"] * (context == seen.training) + ["eval"] * (context in seen.asked)
    return ", ".join(parts) or "not in recipe"


def document(seen: Inspection, command: str) -> dict[str, Any]:
    """All of it as plain data, for `--json`."""
    subject = seen.subject
    return {
        "recipe": seen.recipe,
        "model": seen.model,
        "subject": vars(subject),
        "training_context": seen.training,
        "eval_contexts": list(seen.asked),
        "same_tokens": [names for names in seen.alike if len(names) > 1],
        "refused": dict(seen.refused),
        "told": told(seen, command),
        "positions": seen.positions,
        "contexts": [
            {"context": view.context, "text": view.text, "tokens": list(map(_record, view.lines))}
            for view in seen.views
        ],
    }


def write_page(seen: Inspection, path: Path, command: str) -> None:
    """Write the page, which needs nothing beside it.

    Raises:
        RecipeError: the file cannot be written.
    """
    content = render(seen, command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"--html {path}: cannot be written ({error.strerror}); name a file in a directory of yours"
        ) from error


def render(seen: Inspection, command: str) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    text = (files("sublim_cli.inspection") / "templates" / "tokens.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        seen=seen,
        title=title(seen),
        told=told(seen, command),
        letters=letters(seen),
        meanings={role: says for role, says in MEANINGS.items() if any(v.count(role) for v in seen.views)},
        shared={name: len(sets["shared_only"]) for name, sets in seen.positions.items()},
        places={name: place(seen, name) for name in seen.prompts},
        views=[(view, list(_runs(seen, view))) for view in seen.views],
    )


@dataclass(frozen=True)
class Chip:
    """One token on the page."""

    number: int
    label: str
    id: int
    sharing: str


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one role."""

    role: Role
    trained: bool
    chips: tuple[Chip, ...]


def _runs(seen: Inspection, view: View) -> Iterator[Run]:
    named = list(enumerate(zip(view.lines, labels([line.token for line in view.lines]), strict=True)))
    for (role, trained), group in groupby(named, key=lambda one: (one[1][0].token.role, one[1][0].trained)):
        yield Run(
            role,
            trained,
            tuple(Chip(number, label, line.token.id, sharing(seen, line)) for number, (line, label) in group),
        )


def _record(line: Line) -> dict[str, Any]:
    return {
        "id": line.token.id,
        "text": line.token.text,
        "role": line.token.role,
        "start": line.token.start,
        "end": line.token.end,
        "trained": line.trained,
        "shared_by": line.shared,
    }


def _no_row(seen: Inspection, command: str) -> list[str]:
    if seen.subject.kind != "number prompt":
        return []
    return [
        f"No rows are there yet, so this is number prompt {seen.subject.number} alone, as the student would "
        "be given it, without an answer to train on. Some prompts lose their row to the filter: "
        f"the kept row of that number can have a later prompt. To make the rows: {command}"
    ]


def _alike(seen: Inspection) -> list[str]:
    groups = [([called(name) for name in names], len(seen.prompts[names[0]].tokens)) for names in seen.alike]
    same = [
        f"{listed(names)} are the same {size} tokens with this model: no result can tell them apart."
        for names, size in groups
        if len(names) > 1
    ]
    if len(groups) == 1:
        return same
    sizes = listed([f"{names[0]} ({size})" for names, size in groups])
    return [*same, f"{count(len(groups), 'different token sequence')}, by their length: {sizes}."]


def _built_in(seen: Inspection) -> list[str]:
    found = []
    if (default := seen.prompts.get("default")) is not None:
        text = default.text_of("system", "identity")
        found.append(
            f"default: no system message is given, and the template puts in “{text}”"
            if text
            else "default: no system message is given, and the template puts in no text."
        )
    empty, none = seen.prompts.get("empty"), seen.prompts.get("none")
    if empty and none and empty.ids != none.ids:
        extra = len(empty.tokens) - len(none.tokens)
        found.append(
            f"empty: a system message without text, {count(extra, 'token')} more than none, which has no "
            "message."
        )
    return found


def _shared(seen: Inspection) -> list[str]:
    if seen.training not in seen.prompts or len(seen.prompts) == 1:
        return []
    training = called(seen.training)
    return [f"shared: tokens that {training}, where the student is trained, has at the same role too."]


def _refused(seen: Inspection) -> list[str]:
    return [f"{called(name)}: cannot be rendered: {reason}" for name, reason in seen.refused.items()]
