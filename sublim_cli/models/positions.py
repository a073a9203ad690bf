"""Named sets of token positions: the tokens of a prompt at which a gate or a patch acts.

    position_mask("identity_only", prompt, training)
    [False, False, False, True, …]

A set is `X_only` (the tokens X) or `no_X` (all others). X is chosen by role (`identity`, `system`,
`template`, `question`), by a given text, or as `shared`: tokens that the training prompt has at the same
role. For each set there are random ones of the same size, scattered and contiguous, as controls. A mask has a
value per token.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from sublim_cli.errors import RecipeError
from sublim_cli.models.token_roles import RenderedPrompt, Role
from sublim_cli.recipe.schema import PositionName, PositionSet, TextComplement, TextPositions

ROLES_OF_SET: dict[str, frozenset[Role]] = {
    "identity": frozenset({"identity"}),
    "system": frozenset({"system", "identity"}),
    "template": frozenset({"template", "end"}),
    "question": frozenset({"question"}),
}
"""The roles of the sets chosen by role. The system text includes the identity words."""

CONTEXT_ROLES: frozenset[Role] = frozenset({"template", "system", "identity"})
"""Roles of the tokens that belong to the context and not to the question."""

SET_NAMES: tuple[PositionName, ...] = get_args(PositionName)


def position_mask(position_set: PositionSet, prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` are in the set; arguments and errors as of `named_mask`."""
    only = is_only_set(position_set)
    return [named == only for named in named_mask(position_set, prompt, training)]


def named_mask(position_set: PositionSet, prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` are X, for `X_only` as well as for `no_X`.

    `training` is any prompt in the training context.

    Raises:
        RecipeError: the set's text is empty or white space.
    """
    match position_set:
        case TextPositions(text=text) | TextComplement(no_text=text):
            return text_mask(prompt, text)
    name = position_set.removeprefix("no_").removesuffix("_only")
    if name == "shared":
        return shared_mask(prompt, training)
    return [token.role in ROLES_OF_SET[name] for token in prompt.tokens]


def is_only_set(position_set: PositionSet) -> bool:
    """Whether the set is `X_only` and not `no_X`."""
    return isinstance(position_set, TextPositions) or (
        isinstance(position_set, str) and position_set.endswith("_only")
    )


def set_text(position_set: PositionSet | str) -> str:
    """The set as a recipe writes it."""
    match position_set:
        case TextPositions(text=text):
            return f"{{text: {text}}}"
        case TextComplement(no_text=text):
            return f"{{no_text: {text}}}"
    return position_set


def shared_mask(prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` also occur in `training` with the same role, at any position.

    Only tokens of the context are compared. Training asks for numbers and evaluation for a favourite: that
    both questions contain "the" says nothing about the contexts.
    """
    in_training = {(token.role, token.id) for token in training.tokens}
    return [token.role in CONTEXT_ROLES and (token.role, token.id) in in_training for token in prompt.tokens]


def text_mask(prompt: RenderedPrompt, text: str) -> list[bool]:
    """Which tokens contain a part of `text`, wherever it occurs with the same capitals.

    An occurrence must begin and end at the edge of a word or of a token: "Qwen" is found in "Qwen.", and
    "wen" if the tokenizer splits Q·wen, but "cat" is not found in "catalogue" if that is a single token.

    Raises:
        RecipeError: `text` is empty or white space.
    """
    wanted = text.strip()
    if not wanted:
        raise RecipeError("a set of positions by text needs a text, such as {text: Qwen}")

    def is_edge(index: int) -> bool:
        """Whether no word, or no token, continues across the boundary before character `index`."""
        around = prompt.text[max(index - 1, 0) : index + 1]
        inside_word = len(around) == 2 and all(c.isalnum() or c == "_" for c in around)
        return not inside_word or not any(token.start < index < token.end for token in prompt.tokens)

    covered: set[int] = set()
    start = prompt.text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if is_edge(start) and is_edge(end):
            covered.update(range(start, end))
        start = prompt.text.find(wanted, start + 1)
    # White space in a token does not count: a token of a neighbouring word may hold the space between.
    return [
        any(i in covered and not prompt.text[i].isspace() for i in range(token.start, token.end))
        for token in prompt.tokens
    ]


def random_mask_like(mask: Sequence[bool], seed: int, question: int) -> NDArray[np.bool_]:
    """As many tokens of a prompt as `mask` has, drawn without replacement: [tokens].

    The draw depends on `seed`, the question's index and the prompt's length only (Philox 4x64), not on the
    other questions. With the same draw a larger set contains every smaller one.
    """
    # The question is the highest word of the counter, so the streams of two questions cannot overlap.
    noise = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, question])).random(len(mask))
    drawn = np.zeros(len(mask), dtype=bool)
    drawn[np.argsort(noise, kind="stable")[: np.count_nonzero(mask)]] = True
    return drawn


def random_window_like(mask: Sequence[bool], seed: int, question: int) -> NDArray[np.bool_]:
    """As many neighbouring tokens of a prompt as `mask` has, from a random first one: [tokens].

    A named set is mostly made of neighbours, and a scattered one touches more words of the prompt. The draw
    depends on what that of `random_mask_like` depends on.
    """
    size = int(np.count_nonzero(mask))
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, question]))
    first = int(generator.integers(len(mask) - size + 1))
    drawn = np.zeros(len(mask), dtype=bool)
    drawn[first : first + size] = True
    return drawn


def check_positions(
    position_sets: Sequence[PositionSet],
    prompts: Mapping[str, RenderedPrompt],
    training: RenderedPrompt,
    *,
    field: str,
) -> None:
    """Refuse a set `X_only` or `no_X` if no eval context has a token X.

    `prompts` has any prompt in each eval context, by the context's name; `training` is any prompt in the
    training context, `field` the recipe key that the message names.

    Raises:
        RecipeError: such a set; the message lists what exists.
    """

    def exists(position_set: PositionSet) -> bool:
        return any(any(named_mask(position_set, prompt, training)) for prompt in prompts.values())

    for position_set in position_sets:
        try:
            if exists(position_set):
                continue
        except RecipeError as error:
            raise RecipeError(f"{field}: {error}") from error
        if isinstance(position_set, str):
            names = ", ".join(name for name in SET_NAMES if exists(name))
            remedy = f"there are {names}, {{text: …}} and {{no_text: …}}"
        else:
            texts = [prompt.text_of("system", "identity") for prompt in prompts.values()]
            words = ", ".join(dict.fromkeys(word for text in texts for word in text.split()))
            remedy = f"their system texts are made of {words}" if words else "none of them has a system text"
        verb = "holds" if is_only_set(position_set) else "takes out"
        raise RecipeError(
            f"{field}: {set_text(position_set)} {verb} no token in any eval context ({', '.join(prompts)}); "
            f"{remedy}"
        )
