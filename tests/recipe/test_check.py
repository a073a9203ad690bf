"""A sweep's keys and values are checked when the recipe is loaded, each with its own line."""

from pathlib import Path

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.check import axis, check_sweep, families
from sublim_cli.recipe.load import load
from sublim_cli.recipe.schema import Recipe, SweepSection


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(text: str) -> list[str]:
    Path("cats.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load("cats.yaml")
    return str(caught.value).splitlines()


def test_a_sweep_of_real_keys_and_values_is_accepted() -> None:
    sweep = SweepSection(
        grid={"train.rank": [1, 2], "eval.system_prompts": [["default"], ["default", "claude"]]},
        also=(
            {"train.method": "full", "train.learning_rate": [2.0e-5, 2.0e-4]},
            {"trait": [{"target": "owl"}, {"target": "wolf"}], "contexts.mine": "You are mine."},
            {"filter.rules.1.most": [5, 10], "revision": None},
        ),
    )
    assert check_sweep(Recipe(sweep=sweep)) == []


def test_an_unknown_key_of_a_sweep_is_refused_with_its_line() -> None:
    assert refusal(
        """\
sweep:
  grid:
    train.rank: [1, 2]
    train.lora_alpha: [1]
  also:
    - train.method: full
      train.lr: 2e-5
    - {train.seed: [], sweep.grid: {}, rnk: 2}
"""
    ) == [
        "cats.yaml:4: sweep.grid.train.lora_alpha: unknown key; did you mean train.alpha?",
        "cats.yaml:7: sweep.also.0.train.lr: unknown key; did you mean train.learning_rate?",
        "cats.yaml:8: sweep.also.1.rnk: unknown key; did you mean train.rank?",
        "cats.yaml:8: sweep.also.1.sweep.grid: a sweep cannot vary itself; take the key out",
        "cats.yaml:8: sweep.also.1.train.seed: is an empty list; give it one value or more",
    ]


def test_a_wrong_value_of_a_sweep_is_refused_with_its_line() -> None:
    assert refusal(
        """\
sweep:
  grid:
    train.rank: [1,
      2,
      0]
    train.alpha: [rank, hlf]
    generate.prompts.examples: [[3, 8], [8, 3]]
    filter.rules:
      - [{kind: format}]
      - [{kind: formt}]
  also:
    - {train.method: lorra}
    - {eval.system_prompts: [default, empty]}
    - {train.learning_rate: [fast, 2e-4]}
"""
    ) == [
        "cats.yaml:5: sweep.grid.train.rank: 0: must be at least 1",
        'cats.yaml:6: sweep.grid.train.alpha: "hlf": must be rank or sqrt, or a number',
        "cats.yaml:7: sweep.grid.generate.prompts.examples: the lower bound 8 is above the upper bound 3",
        'cats.yaml:10: sweep.grid.filter.rules: filter.rules.0.kind: "formt": '
        "must be strip, format, count, range or banned",
        'cats.yaml:12: sweep.also.0.train.method: "lorra": must be lora, rslora, dora, qlora, pissa, ia3, '
        "prefix or full",
        'cats.yaml:13: sweep.also.1.eval.system_prompts: "default": must be a list; '
        "in a sweep each list is an axis, so write a list of lists",
        'cats.yaml:13: sweep.also.1.eval.system_prompts: "empty": must be a list; '
        "in a sweep each list is an axis, so write a list of lists",
        'cats.yaml:14: sweep.also.2.train.learning_rate: "fast": must be a number, or '
        "keys and values (per_rank)",
    ]


def test_replicates_and_a_seed_beside_them_are_refused() -> None:
    both = "sets train.seed and generate.sampling.seed together; take train.seed out of `grid` and `also`, "
    assert refusal("sweep: {grid: {train.seed: [1, 2]}, replicates: [1, 2]}\n") == [
        f"cats.yaml:1: sweep.replicates: {both}or take replicates out"
    ]
    assert refusal("sweep: {also: [{train.seed: 1}], replicates: [1, 2]}\n") == [
        f"cats.yaml:1: sweep.replicates: {both}or take replicates out"
    ]
    assert refusal("sweep: {replicates: [1, 1]}\n") == [
        "cats.yaml:1: sweep.replicates.1: is given twice, first as entry 0; keep one"
    ]


def test_a_context_that_only_a_cell_defines_is_known_in_that_cell() -> None:
    cell = {"train.system_prompt": "mine", "contexts.mine": "You are mine."}
    assert check_sweep(Recipe(sweep=SweepSection(also=(cell,)))) == []
    alone = {"train.system_prompt": "mine"}
    (problem,) = check_sweep(Recipe(sweep=SweepSection(also=(alone,))))
    assert problem.path == ("sweep", "also", 0, "train.system_prompt")
    assert problem.message.startswith("no context is called 'mine'; there are ")


def test_the_families_are_the_grid_and_each_entry_put_over_it() -> None:
    sweep = SweepSection(
        grid={"train.rank": [1, 2], "train.seed": [1, 42]},
        also=({"train.method": "full", "train.rank": 8}, {"train.seed": [7, 8]}),
    )
    assert families(sweep) == [
        {"train.rank": [1, 2], "train.seed": [1, 42]},
        {"train.rank": [8], "train.seed": [1, 42], "train.method": ["full"]},
        {"train.rank": [1, 2], "train.seed": [7, 8]},
    ]
    assert families(SweepSection()) == [{}]


def test_a_list_is_always_an_axis() -> None:
    assert axis(8) == [8]
    assert axis("full") == ["full"]
    assert axis(None) == [None]
    assert axis([1, 2]) == [1, 2]
    assert axis([["default"], ["empty", "none"]]) == [["default"], ["empty", "none"]]
