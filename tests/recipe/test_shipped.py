"""Shipped recipes are found by name, load, and say in one sentence what they show."""

from pathlib import Path

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.load import load
from sublim_cli.recipe.shipped import find, shipped, summary


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_what_it_shows(path: Path) -> None:
    assert load(path.stem).name == path.stem
    assert summary(path).endswith(".")


def test_a_recipe_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shipped()[0]
    assert find(str(path)) == path
    assert find(path.stem) == find(path.name) == path
    (tmp_path / path.name).write_text("name: mine")
    assert find(path.name) == Path(path.name)
    assert find(path.stem) == path


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in shipped()]
    start = "there is no such file, and the shipped recipes are " + ", ".join(names)
    (tmp_path / "mine.yaml").write_text("name: mine")
    for source, end in [
        (f"{names[0]}z", f"; did you mean {names[0]}?"),
        (f"lost/{names[0]}.yaml", f"; did you mean {names[0]}?"),
        ("mine", "; did you mean mine.yaml?"),
        ("0", ""),
        ("", ""),
        ("x" * 300, ""),
    ]:
        with pytest.raises(RecipeError) as caught:
            find(source)
        assert str(caught.value) == f"no recipe {source!r}: {start}{end}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# Cats on Qwen2.5-7B: the cell. One GPU.\nname: x\n", "Cats on Qwen2.5-7B: the cell."),
        ("# Cats,\n#   and more.\n# Then.\n", "Cats, and more."),
        ("# No full stop\nname: x # not this.\n", "No full stop"),
        ("name: x\n# Too late.\n", ""),
        ("", ""),
    ],
)
def test_the_summary_is_the_first_sentence_of_the_header(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert summary(path) == sentence
