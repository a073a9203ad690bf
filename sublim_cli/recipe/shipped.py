"""The recipes that come with sublim: where they lie, what each shows, and how a name finds one."""

import difflib
import os
import re
from pathlib import Path

from sublim_cli.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent.parent
_FIRST_SENTENCE = re.compile(r".*?[.!?](?=\s|$)")


def shipped_recipes() -> list[Path]:
    """The shipped recipe files, by name: in the package once installed, beside it in a checkout."""
    inside = _PACKAGE / "recipes"
    return sorted((inside if inside.is_dir() else _PACKAGE.parent / "recipes").glob("*.yaml"))


def find_recipe(source: str) -> Path:
    """The file that `--recipe SOURCE` means: a file's path, else a shipped recipe's name.

    `.yaml` may be left out of a shipped name. RecipeError names the nearest recipe and all of them.
    """
    if os.path.isfile(source):  # unlike Path.is_file, it bears a name that no file can have
        return Path(source)
    named = {path.stem: path for path in shipped_recipes()}
    name = source.removesuffix(".yaml")
    if name not in named:
        raise RecipeError(
            f"no recipe {source!r}: there is no such file, and the shipped recipes are "
            f"{', '.join(named) or 'none'}{_nearest(source, name, list(named))}"
        )
    return named[name]


def summary(path: Path) -> str:
    """The first sentence of the comment a recipe opens with; empty where there is none."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("#").strip())
    text = " ".join(comment).strip()
    sentence = _FIRST_SENTENCE.match(text)
    return sentence.group() if sentence else text


def _nearest(source: str, name: str, names: list[str]) -> str:
    near = [one for one in (f"{source}.yaml", f"{source}.yml") if os.path.isfile(one)]
    near += difflib.get_close_matches(Path(name).name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
