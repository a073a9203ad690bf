"""The work of `inspect`: render a text in the contexts, then show the tokens or write their page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sublim_cli.artifacts.store import Store
from sublim_cli.cli.options import STORE
from sublim_cli.console import show_json, show_line, show_table, show_text, show_tokens
from sublim_cli.errors import RecipeError
from sublim_cli.inspection.render import (
    context_label,
    context_letters,
    context_use,
    document,
    remarks,
    shared_by_text,
    title,
    token_labels,
    write_page,
)
from sublim_cli.inspection.view import (
    ContextView,
    InspectedTurn,
    Inspection,
    inspect_turn,
    question_turn,
    row_turn,
)
from sublim_cli.models.token_roles import Role
from sublim_cli.recipe.schema import Recipe

NAME_WIDTH = 16
"""Characters of a context's name that a table at 80 columns can hold."""

CONTEXT_ROLES: tuple[Role, ...] = ("template", "system", "identity")
"""Roles whose tokens differ between contexts; the question is the same in all of them."""


def inspect_and_show(
    recipe: Recipe,
    selection: tuple[int | None, int | None, str | None],
    contexts: Sequence[str],
    out: Path,
    command: str,
    *,
    html: Path | None,
    json: bool,
) -> None:
    """Show a question, a row or a prompt token by token in the contexts, or write the page of it.

    Args:
        selection: the flags --question, --row and --prompt, at most one of them given.
        command: what builds the recipe's rows, to be named where there are none.
    """
    inspection = inspect_turn(recipe, _turn(recipe, selection, Store(out)), contexts)
    if html is not None:
        write_page(inspection, html, command)
    if json:
        page = {} if html is None else {"page": str(html)}
        show_json({**document(inspection, command), **page})
        return
    show_line(f"{title(inspection)}: {inspection.turn.user}\n")
    if html is None:
        for view in inspection.views:
            _show_view(inspection, view)
    _show_contexts(inspection, command)
    if html is not None:
        show_line(f"page: {html}")


def rows_command(recipe: str, settings: list[str] | None, out: Path, **flags: str | int | None) -> str:
    """The command that builds the rows of the recipe with these flags."""
    words = ["sublim", "filter", "--recipe", recipe]
    for name, value in flags.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for setting in settings or []:
        words += ["--set", setting]
    return shlex.join(words if out == STORE else [*words, "--out", str(out)])


def _turn(
    recipe: Recipe, selection: tuple[int | None, int | None, str | None], store: Store
) -> InspectedTurn:
    question_number, row_number, prompt = selection
    if row_number is not None:
        return row_turn(recipe, row_number, store)
    if prompt is None:
        return question_turn(recipe, question_number or 0)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RecipeError("--prompt: holds bytes that are no text; write it in UTF-8") from error
    return InspectedTurn("text", None, prompt)


def _show_view(inspection: Inspection, view: ContextView) -> None:
    tokens = [line.token for line in view.lines]
    trained = any(line.trained for line in view.lines)
    shared = "".join(context_letters(inspection).values()) or "shared by"
    rows = [
        (
            str(number),
            str(line.token.id),
            label,
            line.token.role,
            *(["yes" if line.trained else ""] if trained else []),
            shared_by_text(inspection, line),
        )
        for number, (line, label) in enumerate(zip(view.lines, token_labels(tokens), strict=True))
    ]
    heading = f"{context_label(view.context)} ({context_use(inspection, view.context)}): {len(tokens)} tokens"
    show_tokens(heading, ("", "id", "token", "role", *(["trained"] if trained else []), shared), rows)
    show_text("\n")


def _show_contexts(inspection: Inspection, command: str) -> None:
    letter_of, sets = context_letters(inspection), inspection.positions
    rows = [
        (
            f"{letter_of.get(name, ' ')} {context_label(name, NAME_WIDTH)}",
            context_use(inspection, name) if name in inspection.contexts else "–",
            str(len(prompt.tokens)),
            *(str(sum(token.role == role for token in prompt.tokens)) for role in CONTEXT_ROLES),
            str(len(sets[name]["shared_only"])) if sets else "–",
        )
        for name, prompt in inspection.prompts.items()
    ]
    show_table("The prompt in each context", ("", "", "tokens", *CONTEXT_ROLES, "shared"), rows)
    for sentence in remarks(inspection, command):
        show_line(f"* {sentence}")
