"""An inspection in words: visible text for tokens, letters for contexts, a JSON document, an HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from jinja2 import Environment, StrictUndefined

from sublim_cli.errors import RecipeError
from sublim_cli.inspection.view import ContextView, Inspection, TokenLine
from sublim_cli.models.token_roles import MEANINGS, Token
from sublim_cli.wording import count, listed

MAX_LETTERS = 12
"""Up to so many contexts get a letter each; of more, only the number that share a token is shown."""

_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """`text` with white space and unprintable characters written out; `∅` for no characters at all."""
    return "".join(_VISIBLE.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text) or "∅"


def token_labels(tokens: Sequence[Token]) -> list[str]:
    """Visible text for every token; tokens that are bytes of one character are numbered, `é 1/2`."""
    labels: list[str] = []
    for (start, end), group in groupby(tokens, key=lambda token: (token.start, token.end)):
        texts = [visible(token.text) for token in group]
        if end > start and len(texts) > 1:
            texts = [f"{text} {part}/{len(texts)}" for part, text in enumerate(texts, start=1)]
        labels += texts
    return labels


def context_label(name: str, longest: int = 40) -> str:
    """A context's name on one line, cut to `longest` characters: it can be the context's whole text."""
    text = visible(name).replace("␣", " ")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def context_letters(inspection: Inspection) -> dict[str, str]:
    """A letter for each context of the recipe; empty if there are more than `MAX_LETTERS`."""
    names = inspection.contexts
    return dict(zip(names, ascii_lowercase, strict=False)) if len(names) <= MAX_LETTERS else {}


def shared_by_text(inspection: Inspection, line: TokenLine) -> str:
    """The contexts that share a token: `ab·d`, or `3 of 14`. Empty for tokens of no context."""
    if line.shared_by is None:
        return ""
    letters = context_letters(inspection)
    if not letters:
        return f"{len(line.shared_by)} of {len(inspection.contexts)}"
    return "".join(letter if name in line.shared_by else "·" for name, letter in letters.items())


def context_use(inspection: Inspection, context: str) -> str:
    """What the recipe uses a context for: `train`, `eval`, both or neither."""
    uses = ["train"] * (context == inspection.training) + ["eval"] * (context in inspection.evaluated)
    return ", ".join(uses) or "not in recipe"


def title(inspection: Inspection) -> str:
    """What is inspected, as a heading."""
    turn = inspection.turn
    if turn.kind == "text":
        return "Your text"
    return f"{turn.kind.capitalize()} {turn.number}{' of the kept rows' * (turn.kind == 'row')}"


def remarks(inspection: Inspection, command: str) -> list[str]:
    """Sentences on the contexts: which are the same tokens, what the template adds, what it refuses.

    `command` builds the recipe's rows; it is named if there are none yet.
    """
    prompts = inspection.prompts
    sentences = []
    if inspection.turn.kind == "number prompt":
        sentences.append(
            f"No rows are built yet, so this is number prompt {inspection.turn.number} as the student would "
            "read it, without an answer to train on. The filter drops rows, so the kept row of that number "
            f"may belong to a later prompt. To make the rows: {command}"
        )
    groups = [
        (list(map(context_label, names)), len(prompts[names[0]].tokens)) for names in inspection.token_groups
    ]
    sentences += [
        f"{listed(names)} are the same {size} tokens with this model: no result can tell them apart."
        for names, size in groups
        if len(names) > 1
    ]
    if len(groups) > 1:
        sizes = listed([f"{names[0]} ({size})" for names, size in groups])
        sentences.append(f"{count(len(groups), 'different token sequence')}, by their length: {sizes}.")
    if "default" in prompts:
        text = prompts["default"].text_of("system", "identity")
        added = f"“{text}”" if text else "no text."
        sentences.append(f"default: no system message is given, and the template puts in {added}")
    if "empty" in prompts and "none" in prompts and prompts["empty"].ids != prompts["none"].ids:
        extra = len(prompts["empty"].tokens) - len(prompts["none"].tokens)
        sentences.append(
            f"empty: a system message without text, {count(extra, 'token')} more than none, which has no "
            "message."
        )
    if inspection.training in prompts and len(prompts) > 1:
        training = context_label(inspection.training)
        sentences.append(
            f"shared: tokens that {training}, where the student is trained, has at the same role too."
        )
    sentences += [
        f"{context_label(name)}: cannot be rendered: {reason}" for name, reason in inspection.refused.items()
    ]
    return sentences


def document(inspection: Inspection, command: str) -> dict[str, Any]:
    """The whole inspection as plain data, for `--json`."""
    return {
        "recipe": inspection.recipe,
        "model": inspection.model,
        "subject": vars(inspection.turn),
        "training_context": inspection.training,
        "eval_contexts": list(inspection.evaluated),
        "same_tokens": [names for names in inspection.token_groups if len(names) > 1],
        "refused": dict(inspection.refused),
        "told": remarks(inspection, command),
        "positions": inspection.positions,
        "contexts": [
            {
                "context": view.context,
                "text": view.text,
                "tokens": [
                    {**asdict(line.token), "trained": line.trained, "shared_by": line.shared_by}
                    for line in view.lines
                ],
            }
            for view in inspection.views
        ],
    }


def write_page(inspection: Inspection, path: Path, command: str) -> None:
    """Write the inspection as one HTML file that loads nothing else.

    Raises:
        RecipeError: the file cannot be written.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (files("sublim_cli.inspection") / "templates" / "tokens.html.j2").read_text(encoding="utf-8")
    views = inspection.views
    page = environment.from_string(template).render(
        inspection=inspection,
        title=title(inspection),
        remarks=remarks(inspection, command),
        letters=context_letters(inspection),
        meanings={role: text for role, text in MEANINGS.items() if any(view.count(role) for view in views)},
        shared={name: len(sets["shared_only"]) for name, sets in inspection.positions.items()},
        uses={name: context_use(inspection, name) for name in inspection.prompts},
        views=[(view, _role_spans(inspection, view)) for view in views],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"--html {path}: cannot be written ({error.strerror}); name a file in a directory of yours"
        ) from error


def _role_spans(inspection: Inspection, view: ContextView) -> list[list[tuple[int, TokenLine, str, str]]]:
    """The tokens, those of one role together: position, line, label, and the contexts that share it."""
    labels = token_labels([line.token for line in view.lines])
    boxes = [
        (index, line, label, shared_by_text(inspection, line))
        for index, (line, label) in enumerate(zip(view.lines, labels, strict=True))
    ]
    spans = groupby(boxes, lambda box: (box[1].token.role, box[1].trained))
    return [list(span) for _, span in spans]
