"""Shipped recipes are found by name, load, and say in one sentence what they show."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import RecipeError
from sublim_cli.recipe.load import load, vary
from sublim_cli.recipe.schema import Recipe
from sublim_cli.recipe.shipped import find_recipe, shipped_recipes, summary
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.tables.localisation import located_runs
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.runs import study_runs
from sublim_cli.report.tables.varied_keys import varied_keys
from sublim_cli.sweep.cells import study


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_what_it_shows(path: Path) -> None:
    assert load(path.stem).name == path.stem
    assert summary(path).endswith(".")


CLAIMING = [path.stem for path in shipped_recipes() if load(path.stem).claims]


def with_few_seeds(name: str, runs: int = 2) -> Recipe:
    """A shipped study on micro, with a few runs of every cell."""
    recipe = load(name, {"model": "micro"})
    grid = {
        key: values[:runs] if key == "train.seed" else values for key, values in recipe.sweep.grid.items()
    }
    if "generate.sampling.seed" in grid:
        grid["generate.sampling.seed"] = [1]
    return vary(recipe, {"sweep.grid": grid, "sweep.replicates": recipe.sweep.replicates[:runs]})


@pytest.mark.parametrize("name", CLAIMING)
def test_a_shipped_study_plans_all_that_its_claims_need(name: str, tmp_path: Path) -> None:
    """With a value for every planned run no claim lacks a cell."""
    recipe = with_few_seeds(name, runs=3)
    planned, reader = study(recipe), StoreReader(Store(tmp_path), {})
    keys = varied_keys(planned.cells)
    values = {"p_target_base": 0.1, "number_loss": 3.0, "update_norm": 1.0, "missing": ""}
    runs = [
        replace(run, **values, p_target=0.1 if run.role == "control" else 0.3)
        for run in study_runs(planned, keys, reader, {})
    ]
    replicates = len({run.seeds for run in runs if run.role == "student"})
    parts = {"p_target": 0.2, "p_target_student": 0.3, "p_target_base": 0.1, "missing": ""}
    rows = located_runs(planned, keys, reader)
    sets = ((None, ""), (1, "scattered"), (1, "window"))
    located = [
        replace(row, **parts, control=control, control_kind=kind) for row in rows for control, kind in sets
    ]
    for verdict in evaluate(recipe.claims, runs, located):
        assert verdict.lacks == ()
        assert verdict.findings
        pilots = verdict.number in ("C2", "C3c") and bool(verdict.claim.choose_on)
        counts = {finding.effect.n for finding in verdict.findings if finding.effect is not None}
        assert counts == {replicates - pilots}, verdict.number
        assert all(finding.effect is not None for finding in verdict.findings)


def test_the_micro_study_is_as_large_as_its_header_says() -> None:
    planned = study(with_few_seeds("study-micro"))
    trained = {digest(cell.chain.train): (cell.role, cell.recipe.train.method) for cell in planned.cells}
    assert Counter(trained.values()) == {
        ("student", "lora"): 2 * (48 + 9),
        ("student", "full"): 2 * 24,
        ("control", "lora"): 2 * 4,
        ("control", "full"): 2 * 8,
    }
    assert load("study-micro").sweep.replicates == (1, 2, 3, 4, 5)


def test_a_recipe_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = shipped_recipes()[0]
    assert find_recipe(str(path)) == path
    assert find_recipe(path.stem) == find_recipe(path.name) == path
    (tmp_path / path.name).write_text("name: mine")
    assert find_recipe(path.name) == Path(path.name)
    assert find_recipe(path.stem) == path


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in shipped_recipes()]
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
            find_recipe(source)
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
