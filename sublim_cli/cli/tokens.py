"""What `inspect` does after reading its flags."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sublim_cli.artifacts.store import Store
from sublim_cli.cli.options import STORE
from sublim_cli.console import show_json, show_line, show_table, show_text, show_tokens
from sublim_cli.inspection import Inspection, Subject, View, inspection, question, row
from sublim_cli.models.roles import MEANINGS
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.tokens import (
    document,
    labels,
    letters,
    place,
    sharing,
    title,
    told,
    visible,
    write_page,
)

NAME = 20
"""Characters of a context's name that a table at 80 columns can hold."""


def inspect_and_show(
    recipe: Recipe,
    wanted: tuple[int | None, int | None, str | None],
    contexts: Sequence[str],
    out: Path,
    command: str,
    *,
    html: Path | None,
    json: bool,
) -> None:
    """Read a question, row or prompt in the contexts, then show it, write its page, or both."""
    seen = inspection(recipe, _subject(recipe, wanted, Store(out)), contexts)
    if html is not None:
        write_page(seen, html, command)
    if json:
        page = {} if html is None else {"page": str(html)}
        show_json({**document(seen, command), **page})
        return
    show_line(f"{title(seen)}: {seen.subject.user}\n")
    if html is None:
        for view in seen.views:
            _show_view(seen, view)
    _show_contexts(seen, command)
    if html is not None:
        show_line(f"page: {html}")


def rows_command(recipe: str, settings: list[str] | None, out: Path, **flags: str | int | None) -> str:
    """The command that makes the rows which these flags mean."""
    words = ["sublim", "filter", "--recipe", recipe]
    for name, value in flags.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for setting in settings or []:
        words += ["--set", setting]
    return shlex.join(words if out == STORE else [*words, "--out", str(out)])


def _subject(recipe: Recipe, wanted: tuple[int | None, int | None, str | None], store: Store) -> Subject:
    asked, number, prompt = wanted
    if number is not None:
        return row(recipe, number, store)
    if prompt is not None:
        return Subject("text", None, prompt)
    return question(recipe, asked or 0)


def _show_view(seen: Inspection, view: View) -> None:
    tokens = [line.token for line in view.lines]
    trained = any(line.trained for line in view.lines)
    shared = "".join(letters(seen).values()) or "shared by"
    rows = [
        (
            str(number),
            str(line.token.id),
            label,
            line.token.role,
            *(["yes" if line.trained else ""] if trained else []),
            sharing(seen, line),
        )
        for number, (line, label) in enumerate(zip(view.lines, labels(tokens), strict=True))
    ]
    head = f"{_short(view.context)} ({place(seen, view.context)}): {len(tokens)} tokens"
    show_tokens(head, ("", "id", "token", "role", *(["trained"] if trained else []), shared), rows)
    show_text("\n")


def _show_contexts(seen: Inspection, command: str) -> None:
    known = letters(seen)
    sets = seen.positions
    there = {token.role for prompt in seen.prompts.values() for token in prompt.tokens}
    roles = [role for role in MEANINGS if role in there]
    rows = [
        (
            f"{known.get(name, ' ')} {_short(name)}",
            place(seen, name),
            str(len(prompt.tokens)),
            *(str(sum(token.role == role for token in prompt.tokens)) for role in roles),
            str(len(sets[name]["shared_only"])) if sets else "",
        )
        for name, prompt in seen.prompts.items()
    ]
    show_table("The prompt in each context", ("", "", "tokens", *roles, "shared"), rows)
    for sentence in told(seen, command):
        show_line(f"* {sentence}")


def _short(name: str) -> str:
    """A context's name as a table can hold it: an unnamed one is called by its whole text."""
    text = visible(name).replace("␣", " ")
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"
