"""Contexts: the system prompts that a recipe can name, and what each name stands for."""

from functools import cache
from typing import Literal

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import BUILT_IN_PROMPTS, Section, SystemPrompt, TextPrompt
from sublim_cli.recipe.yaml_file import read_package_data


class Context(Section):
    """The content of the system block, resolved.

    `default`: no system message; the chat template may insert its own. `empty`: a system block with
    nothing in it. `none`: no system block in the tokens at all. `text`: `text`, word for word. `user`:
    `text` and a blank line precede the question in the user's turn, without a system message as in `default`.
    """

    name: str
    kind: Literal["default", "empty", "none", "text", "user"]
    text: str | None = None


@cache
def shipped_contexts() -> dict[str, str | TextPrompt]:
    """The paper's named contexts, by name."""
    return {
        name: TextPrompt.model_validate(value) if isinstance(value, dict) else value
        for name, value in read_package_data(__package__, "contexts.yaml").items()
    }


def shipped_texts() -> tuple[str, ...]:
    """The text of every shipped context once, in the file's order."""
    prompts = shipped_contexts().values()
    return tuple(dict.fromkeys(p.text if isinstance(p, TextPrompt) else p for p in prompts))


def resolve_context(
    prompt: SystemPrompt, contexts: dict[str, str], *, persona: str | None = None, field: str
) -> Context:
    """The context that a recipe's `prompt` stands for.

    Args:
        prompt: the recipe's value: a name or `{text: …}`.
        contexts: the recipe's `contexts`; they take precedence over shipped ones of the same name.
        persona: the teacher's system prompt, where `trait` is allowed.
        field: the recipe key, for the message.

    Raises:
        RecipeError: the name is unknown, or is `trait` where there is no persona.
    """
    if not isinstance(prompt, str):
        name = prompt.text if prompt.at == "system" else f"user: {prompt.text}"
        return Context(name=name, kind="text" if prompt.at == "system" else "user", text=prompt.text)
    match prompt:
        case "default" | "empty" | "none":
            return Context(name=prompt, kind=prompt)
        case "trait" if persona is not None:
            return Context(name="trait", kind="text", text=persona)
    by_name = {**shipped_contexts(), **contexts}
    if prompt not in by_name:
        built_in = [name for name in BUILT_IN_PROMPTS if name != "trait" or persona is not None]
        raise RecipeError(
            f"{field}: no context is called {prompt!r}; there are "
            f"{', '.join([*built_in, *sorted(by_name)])}. Add yours under `contexts:`, "
            "or write `{text: …}`"
        )
    value = by_name[prompt]
    if isinstance(value, str):
        return Context(name=prompt, kind="text", text=value)
    return Context(name=prompt, kind="text" if value.at == "system" else "user", text=value.text)
