"""The recipes that come with sublim: their files, what each shows, and how one is found by its name."""

import difflib
import os
import re
from itertools import takewhile
from pathlib import Path

from sublim_cli.errors import RecipeError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_recipes() -> list[Path]:
    """The shipped recipe files, sorted: in the package once installed, beside it in a checkout."""
    installed = _PACKAGE / "recipes"
    return sorted((installed if installed.is_dir() else _PACKAGE.parent / "recipes").glob("*.yaml"))


def find_recipe(source: str) -> Path:
    """The file that `--recipe SOURCE` means: the file at that path, else the shipped recipe of that name.

    `.yaml` may be left out of a shipped name. RecipeError names the most similar recipe and all of them.
    """
    if os.path.isfile(source):  # Path.is_file raises on a name that no file can have
        return Path(source)
    by_name = {path.stem: path for path in shipped_recipes()}
    name = source.removesuffix(".yaml")
    if name in by_name:
        return by_name[name]
    near = [path for path in (f"{source}.yaml", f"{source}.yml") if os.path.isfile(path)]
    near += difflib.get_close_matches(Path(name).name, list(by_name), n=1)
    raise RecipeError(
        f"no recipe {source!r}: there is no such file, and the shipped recipes are "
        f"{', '.join(by_name) or 'none'}{f'; did you mean {near[0]}?' if near else ''}"
    )


def summary(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe; empty where there is none."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.lstrip("#").strip() for line in comment).strip()
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
