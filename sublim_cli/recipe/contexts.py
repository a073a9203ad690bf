"""Contexts: the settings around a question that a recipe can name, and the one each name stands for."""

from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import BUILT_IN_PROMPTS, Section, SystemPrompt, TextPrompt


class Context(Section):
    """What stands in the system block, resolved.

    `default`: no system message, the chat template may inject its own. `empty`: a system block with
    nothing in it. `none`: no system block in the tokens at all. `text`: `text`, word for word. `user`:
    `text` heads the user's turn, a blank line before what is asked, and no system message, as in `default`.
    """

    name: str
    kind: Literal["default", "empty", "none", "text", "user"]
    text: str | None = None


@cache
def shipped_contexts() -> dict[str, str | TextPrompt]:
    """The paper's named contexts, by name."""
    text = (files("sublim_cli.recipe") / "contexts.yaml").read_text(encoding="utf-8")
    return {
        name: TextPrompt.model_validate(one) if isinstance(one, dict) else one
        for name, one in yaml.safe_load(text).items()
    }


def shipped_texts() -> tuple[str, ...]:
    """Every shipped context's text once, wherever it stands, in the file's order."""
    every = (one.text if isinstance(one, TextPrompt) else one for one in shipped_contexts().values())
    return tuple(dict.fromkeys(every))


def resolve_context(
    prompt: SystemPrompt, own: dict[str, str], *, persona: str | None = None, field: str
) -> Context:
    """The context that a recipe's `prompt` stands for.

    Args:
        prompt: what the recipe says: a name or `{text: …}`.
        own: the recipe's `contexts`; they win over the shipped ones.
        persona: the teacher's system prompt, where `trait` is allowed.
        field: the recipe key, for the message.

    Raises:
        RecipeError: the name is unknown, or `trait` stands where no teacher is meant.
    """
    if not isinstance(prompt, str):
        return _said(prompt, name=prompt.text if prompt.at == "system" else f"user: {prompt.text}")
    match prompt:
        case "default" | "empty" | "none":
            return Context(name=prompt, kind=prompt)
        case "trait" if persona is not None:
            return Context(name="trait", kind="text", text=persona)
    known = {**shipped_contexts(), **own}
    if prompt not in known:
        names = [one for one in BUILT_IN_PROMPTS if one != "trait" or persona is not None]
        raise RecipeError(
            f"{field}: no context is called {prompt!r}; there are "
            f"{', '.join([*names, *sorted(known)])}. Add yours under `contexts:`, "
            "or write `{text: …}`"
        )
    found = known[prompt]
    return _said(TextPrompt(text=found) if isinstance(found, str) else found, name=prompt)


def _said(prompt: TextPrompt, name: str) -> Context:
    return Context(name=name, kind="text" if prompt.at == "system" else "user", text=prompt.text)
