"""Named sets of token positions: where in a prompt an adapter may act, by role or by given text.

    positions("identity_only", prompt, training)
    [False, False, False, True, …]

Each set is a list of truth values, one for every token of a prompt.
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
"""Sets that are tokens of certain roles. The system text holds the identity words."""

CONTEXT_ROLES: frozenset[Role] = frozenset({"template", "system", "identity"})
"""Roles of the tokens a context brings along, whatever is asked."""

SET_NAMES: tuple[PositionName, ...] = get_args(PositionName)


def position_mask(wanted: PositionSet, prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` are in the set; `training` is any prompt in the training context.

    Raises:
        RecipeError: the set's text is empty or white space.
    """
    found = named_mask(wanted, prompt, training)
    return found if is_only_set(wanted) else [not one for one in found]


def named_mask(wanted: PositionSet, prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` are X, both of `X_only` and of `no_X`.

    Raises:
        RecipeError: the set's text is empty or white space.
    """
    match wanted:
        case TextPositions(text=text) | TextComplement(no_text=text):
            return text_mask(prompt, text)
    name = wanted.removeprefix("no_").removesuffix("_only")
    return shared_mask(prompt, training) if name == "shared" else _of_roles(prompt, ROLES_OF_SET[name])


def is_only_set(wanted: PositionSet) -> bool:
    """Whether the set is X itself (`X_only`) and not all but X (`no_X`)."""
    return isinstance(wanted, TextPositions) or (isinstance(wanted, str) and wanted.endswith("_only"))


def set_text(wanted: PositionSet | str) -> str:
    """The set as a recipe writes it."""
    match wanted:
        case TextPositions(text=text):
            return f"{{text: {text}}}"
        case TextComplement(no_text=text):
            return f"{{no_text: {text}}}"
    return wanted


def shared_mask(prompt: RenderedPrompt, training: RenderedPrompt) -> list[bool]:
    """Which tokens of `prompt` also stand in `training` at the same role, wherever and however often.

    Only what a context brings along is compared. Questions and answers belong to no context: training
    asks for numbers, evaluation for a favourite, and a common "the" in both is not what is meant.
    """
    known = {(token.role, token.id) for token in training.tokens}
    return [token.role in CONTEXT_ROLES and (token.role, token.id) in known for token in prompt.tokens]


def text_mask(prompt: RenderedPrompt, text: str) -> list[bool]:
    """Which tokens spell `text`, capitals as given, wherever it stands.

    It must begin and end at the edge of a word or of a token: "Qwen" is found in "Qwen.", and "wen" where
    the tokenizer cuts Q·wen, but "cat" is not found in "catalogue" if that is one token. A token that
    holds the text's last letter and a full stop counts as a whole.

    Raises:
        RecipeError: `text` is empty or white space.
    """
    wanted = text.strip()
    if not wanted:
        raise RecipeError("a set of positions by text needs a text, such as {text: Qwen}")
    covered: set[int] = set()
    start = prompt.text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if _edge(prompt, start) and _edge(prompt, end):
            covered.update(range(start, end))
        start = prompt.text.find(wanted, start + 1)
    return [not covered.isdisjoint(_solid(prompt, one.start, one.end)) for one in prompt.tokens]


def random_mask_like(
    mask: Sequence[bool], eligible: Sequence[bool], seed: int, question: int
) -> NDArray[np.bool_]:
    """As many eligible tokens of a prompt as `mask` has, drawn without replacement: [tokens].

    A question's draw depends on `seed`, its own number and the prompt's length (Philox 4x64), not on the
    questions beside it. Of one draw a larger set contains every smaller one.

    Raises:
        RecipeError: fewer tokens are eligible than wanted, or the two are not of one length.
    """
    allowed = np.asarray(eligible, dtype=bool)
    wanted = int(np.count_nonzero(mask))
    if len(mask) != len(allowed):
        raise RecipeError(f"a mask of {len(mask)} tokens and {len(allowed)} to draw from are not one prompt")
    if wanted > allowed.sum():
        raise RecipeError(
            f"eval.gates: question {question} has {allowed.sum()} tokens to draw a control of {wanted} from"
        )
    # The question is the highest counter word, so streams of two questions cannot run into each other.
    noise = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, question])).random(len(mask))
    order = np.argsort(np.where(allowed, noise, np.inf), kind="stable")
    drawn = np.zeros(len(mask), dtype=bool)
    drawn[order[:wanted]] = True
    return drawn


def check_positions(
    wanted: Sequence[PositionSet],
    prompts: Mapping[str, RenderedPrompt],
    training: RenderedPrompt,
    *,
    field: str,
) -> None:
    """Refuse a set `X_only` or `no_X` if there is no X in any context.

    Args:
        wanted: the sets a recipe asks for.
        prompts: any prompt in each eval context, by the context's name.
        training: any prompt in the training context.
        field: the recipe key, for the message.

    Raises:
        RecipeError: a set is empty everywhere; the message lists what exists.
    """
    for one in wanted:
        try:
            found = [named_mask(one, prompt, training) for prompt in prompts.values()]
        except RecipeError as error:
            raise RecipeError(f"{field}: {error}") from error
        if not any(map(any, found)):
            holds = "holds" if is_only_set(one) else "takes out"
            raise RecipeError(
                f"{field}: {set_text(one)} {holds} no token in any eval context ({', '.join(prompts)}); "
                f"{_what_exists(one, prompts, training)}"
            )


def _of_roles(prompt: RenderedPrompt, roles: frozenset[Role]) -> list[bool]:
    return [token.role in roles for token in prompt.tokens]


def _edge(prompt: RenderedPrompt, at: int) -> bool:
    """Whether no word, or no token, goes on across the place before character `at`."""
    around = prompt.text[max(at - 1, 0) : at + 1]
    inside_word = len(around) == 2 and all(one.isalnum() or one == "_" for one in around)
    return not inside_word or not any(one.start < at < one.end for one in prompt.tokens)


def _solid(prompt: RenderedPrompt, start: int, end: int) -> set[int]:
    """A token's characters without white space, unless it has no others."""
    places = range(start, end)
    return {at for at in places if not prompt.text[at].isspace()}


def _what_exists(wanted: PositionSet, prompts: Mapping[str, RenderedPrompt], training: RenderedPrompt) -> str:
    if not isinstance(wanted, str):
        words = [word for one in prompts.values() for word in one.text_of("system", "identity").split()]
        known = _choices(tuple(dict.fromkeys(words)))
        return f"their system texts are made of {known}" if words else "none of them has a system text"
    full = [
        name
        for name in SET_NAMES
        if any(any(named_mask(name, prompt, training)) for prompt in prompts.values())
    ]
    return f"there are {_choices(full)}, {{text: …}} and {{no_text: …}}"


def _choices(words: Sequence[str]) -> str:
    return ", ".join(words)
