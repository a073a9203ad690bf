"""Change dotted keys of a recipe that is still plain values, and check what comes out."""

from collections.abc import Mapping

from sublim_cli.recipe.document import Where
from sublim_cli.recipe.explain import Problem, check, unknown_key
from sublim_cli.recipe.keys import known, split
from sublim_cli.recipe.schema import Recipe

_DEFAULTS = Recipe().model_dump(mode="json")


def changed(values: Mapping[str, object], changes: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe `values` are once `changes` are made in their order, or all that is wrong.

    A change below something that is not written starts from its default: `filter.rules.1.most`
    works on a recipe without rules of its own. List places count from 0.
    """
    problems: list[Problem] = []
    new: object = values
    for way, value in ((split(key), value) for key, value in changes.items()):
        if not known(way):
            problems.append(unknown_key(way))
            continue
        try:
            new = _put(new, way, value, _DEFAULTS)
        except IndexError as error:
            problems.append(Problem(way, str(error)))
    outcome = check(new) if isinstance(new, dict) else []
    if isinstance(outcome, list):
        return [*outcome, *problems]
    return problems or outcome


def _put(values: object, way: Where, value: object, default: object) -> object:
    """`values` with `value` at the end of `way`; `default` serves where it is missing."""
    if not way:
        return value
    head, rest = way[0], way[1:]
    here = next((one for one in (values, default) if isinstance(one, dict | list)), {})
    if isinstance(here, list):
        return _put_in_list(here, head, rest, value)
    below = default.get(head) if isinstance(default, dict) else None
    return {**here, head: _put(here.get(head), rest, value, below)}


def _put_in_list(here: list[object], head: str | int, rest: Where, value: object) -> list[object]:
    if not isinstance(head, int) or head >= len(here):
        raise IndexError(f"there is no entry {head}; the list has {len(here)}, counted from 0")
    return [*here[:head], _put(here[head], rest, value, None), *here[head + 1 :]]
