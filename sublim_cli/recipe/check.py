"""Check a recipe: its values, the contexts and files it names, and the changes made to it by dotted keys."""

from collections.abc import Mapping

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.explain import Problem, unknown_key, validate
from sublim_cli.recipe.keys import dotted, is_key, split
from sublim_cli.recipe.questions import find_item, load_items, questions_for
from sublim_cli.recipe.schema import Recipe, SystemPrompt
from sublim_cli.recipe.yaml_file import KeyPath

_DEFAULTS = Recipe().model_dump(mode="json")


def check(values: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe with these values, or everything that is wrong with them."""
    recipe = validate(Recipe, values)
    if isinstance(recipe, list):
        return recipe
    return [*_context_problems(recipe), *_file_problems(recipe)] or recipe


def check_changed(values: Mapping[str, object], changes: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe with these values after `changes` were made in their order, or everything that is wrong.

    A change below a key that is not in `values` starts from its default: `filter.rules.1.most` works on a
    recipe without rules. List indices count from 0.
    """
    problems: list[Problem] = []
    changed: object = values
    for path, value in ((split(key), value) for key, value in changes.items()):
        if not is_key(path):
            problems.append(unknown_key(path))
            continue
        try:
            changed = _replace(changed, path, value, _DEFAULTS)
        except IndexError as error:
            problems.append(Problem(path, str(error)))
    outcome = check(changed) if isinstance(changed, dict) else []
    if isinstance(outcome, list):
        return [*outcome, *problems]
    return problems or outcome


def _replace(values: object, path: KeyPath, value: object, default: object) -> object:
    """A copy of `values` with `value` at `path`; where `values` has no keys or entries, of `default`."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    base = next((base for base in (values, default) if isinstance(base, dict | list)), {})
    if isinstance(base, dict):
        default_below = default.get(head) if isinstance(default, dict) else None
        return {**base, head: _replace(base.get(head), rest, value, default_below)}
    if not isinstance(head, int) or head >= len(base):
        raise IndexError(f"there is no entry {head}; the list has {len(base)}, counted from 0")
    return [*base[:head], _replace(base[head], rest, value, None), *base[head + 1 :]]


def _context_problems(recipe: Recipe) -> list[Problem]:
    """System prompts that are not the name of a context."""
    prompts: list[tuple[KeyPath, SystemPrompt, str | None]] = [
        (("generate", "system_prompt"), recipe.generate.system_prompt, "the trait"),
        (("train", "system_prompt"), recipe.train.system_prompt, None),
    ]
    prompts += [
        (("eval", key, i), prompt, None)
        for key in ("system_prompts", "gate_contexts")
        for i, prompt in enumerate(getattr(recipe.eval, key) or ())
    ]
    problems = []
    for path, prompt, persona in prompts:
        field = dotted(path)
        try:
            resolve_context(prompt, recipe.contexts, persona=persona, field=field)
        except RecipeError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{field}: ")))
    return problems


def _file_problems(recipe: Recipe) -> list[Problem]:
    """An item file, a target or a question file that does not exist or cannot be used.

    Keys that the sweep's grid sets in every cell are checked in the cells.
    """
    trait, grid = recipe.trait, recipe.sweep.grid
    if {"trait", "trait.category"} & set(grid):
        return []
    try:
        items = load_items(trait.category)
    except RecipeError as error:
        return _each_line(("trait", "category"), error)
    problems = []
    try:
        find_item(items, trait.target)
    except RecipeError as error:
        problems += _each_line(("trait", "target"), error)
    try:
        questions_for(items, recipe.eval.questions)
    except RecipeError as error:
        problems += _each_line(("eval", "questions"), error)
    return [problem for problem in problems if dotted(problem.path) not in grid]


def _each_line(path: KeyPath, error: RecipeError) -> list[Problem]:
    return [Problem(path, line) for line in str(error).splitlines()]
