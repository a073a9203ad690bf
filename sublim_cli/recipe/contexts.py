"""Contexts: the system-prompt settings a recipe can name, and the one each name stands for."""

from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.base import Section
from sublim_cli.recipe.schema import BUILT_IN_PROMPTS, SystemPrompt, Text


class Context(Section):
    """What stands in the system block, resolved.

    `default`: no system message, the chat template may inject its own. `empty`: a system block with
    nothing in it. `none`: no system block in the tokens at all. `text`: `text`, word for word.
    """

    name: str
    kind: Literal["default", "empty", "none", "text"]
    text: str | None = None


@cache
def shipped_contexts() -> dict[str, str]:
    """The paper's named system prompts, by name."""
    text = (files("sublim_cli.recipe") / "contexts.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(text)
    return found


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
    if isinstance(prompt, Text):
        return Context(name=prompt.text, kind="text", text=prompt.text)
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
    return Context(name=prompt, kind="text", text=known[prompt])
