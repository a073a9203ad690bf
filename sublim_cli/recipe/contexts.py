"""Contexts: the system prompts that a recipe can name, and what each name stands for."""

from functools import cache
from typing import Literal

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import BUILT_IN_PROMPTS, ChatTemplateSection, Section, SystemPrompt, TextPrompt
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


def has_persona(context: Context) -> bool:
    """Whether a teacher in this context has a persona; a teacher without one is a control."""
    return bool((context.text or "").strip())


def resolve_context(
    prompt: SystemPrompt,
    contexts: dict[str, str],
    *,
    persona: str | None = None,
    template: ChatTemplateSection | None = None,
    field: str,
) -> Context:
    """The context that a recipe's `prompt` stands for.

    Args:
        prompt: the recipe's value: a name or `{text: …}`.
        contexts: the recipe's `contexts`; they take precedence over shipped ones of the same name.
        persona: the teacher's system prompt, where `trait` is allowed.
        template: the recipe's `chat_template`: with `system_at: user` a text stands in the user's turn.
        field: the recipe key, for the message.

    Raises:
        RecipeError: the name is unknown, or is `trait` where there is no persona.
    """
    in_user_turn = template is not None and template.system_at == "user"

    def text_context(name: str, text: str, at: str = "system") -> Context:
        return Context(name=name, kind="user" if in_user_turn or at == "user" else "text", text=text)

    if not isinstance(prompt, str):
        name = prompt.text if prompt.at == "system" else f"user: {prompt.text}"
        return text_context(name, prompt.text, prompt.at)
    match prompt:
        case "empty" if in_user_turn:
            return Context(name=prompt, kind="default")
        case "default" | "empty" | "none":
            return Context(name=prompt, kind=prompt)
        case "trait" if persona is not None:
            return text_context(prompt, persona)
    by_name = {**shipped_contexts(), **contexts}
    if prompt not in by_name:
        built_in = [name for name in BUILT_IN_PROMPTS if name != "trait" or persona is not None]
        raise RecipeError(
            f"{field}: no context is called {prompt!r}; there are "
            f"{', '.join([*built_in, *sorted(by_name)])}. Add yours under `contexts:`, "
            "or write `{text: …}`"
        )
    value = by_name[prompt]
    return (
        text_context(prompt, value) if isinstance(value, str) else text_context(prompt, value.text, value.at)
    )
