"""The tables of `inspect`: the tokens of a text in each context, and the contexts side by side."""

from sublim_cli.console import show_line, show_table, show_tokens
from sublim_cli.inspection.render import (
    context_label,
    context_letters,
    context_use,
    remarks,
    shared_by_text,
    title,
    token_labels,
)
from sublim_cli.inspection.view import ContextView, Inspection
from sublim_cli.models.token_roles import Role

NAME_WIDTH = 16
"""Characters of a context's name that a table at 80 columns can hold."""

CONTEXT_ROLES: tuple[Role, ...] = ("template", "system", "identity")
"""Roles whose tokens differ between contexts; the question is the same in all of them."""


def show_inspection(inspection: Inspection, command: str, *, tokens: bool) -> None:
    """Show the contexts and remarks, and with `tokens` a table of tokens for each context before them.

    Args:
        command: what builds the recipe's rows, to be named where there are none.
    """
    show_line(f"{title(inspection)}: {inspection.turn.user}\n")
    for view in inspection.views if tokens else ():
        _show_view(inspection, view)
        show_line("")
    _show_contexts(inspection)
    for sentence in remarks(inspection, command):
        show_line(f"* {sentence}")


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


def _show_contexts(inspection: Inspection) -> None:
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
