"""Recipes are read from files, names and flags; a mistake is named with its line and its remedy."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.keys import all_keys, split
from sublim_cli.recipe.load import load, parse_setting, vary
from sublim_cli.recipe.schema import (
    CountRule,
    GenerateSection,
    Recipe,
    StripRule,
    SweepSection,
    TextPrompt,
    TrainSection,
)
from sublim_cli.recipe.yaml_file import write_yaml

# The folder may stay the same between examples, and a busy machine is no failure.
SLOW_DISK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, so that messages show short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(text: str, changes: dict[str, object] | None = None) -> list[str]:
    """The lines of the error that the recipe `text` leads to."""
    Path("cats.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load("cats.yaml", changes or {})
    return str(caught.value).splitlines()


CATS = """\
# Cats.
name: cats
trait: {category: animal, target: cat}
train:
  rank: 64
  learning_rate: 2e-4
  neftune_noise_alpha: 5e-1
generate:
  rows: 10_000
  prompts: {values: [100, 999]}
contexts: {since: 2024-01-01, power: no}
"""


def test_a_file_becomes_a_recipe(here: Path) -> None:
    (here / "cats.yaml").write_text(CATS)
    assert load("cats.yaml") == Recipe(
        name="cats",
        train=TrainSection(rank=64, learning_rate=2.0e-4, neftune_noise_alpha=0.5),
        generate=GenerateSection(rows=10_000),
        contexts={"since": "2024-01-01", "power": "no"},
    )


def test_the_old_key_for_neftune_is_refused_with_the_new_one(here: Path) -> None:
    (here / "cats.yaml").write_text("name: cats\ntrain: {trainer_args: {neftune_noise_alpha: 5.0}}\n")
    with pytest.raises(
        RecipeError,
        match=r"train\.trainer_args: unknown key; did you mean "
        r"train\.neftune_noise_alpha",
    ):
        load("cats.yaml")


@pytest.mark.parametrize("value", [0, -1, "much"])
def test_neftune_s_noise_is_a_number_above_0(here: Path, value: object) -> None:
    (here / "cats.yaml").write_text(f"name: cats\ntrain: {{neftune_noise_alpha: {value}}}\n")
    with pytest.raises(RecipeError, match=r"train\.neftune_noise_alpha: "):
        load("cats.yaml")


def test_changes_win_over_the_file(here: Path) -> None:
    (here / "cats.yaml").write_text(CATS)
    changes = {
        "train.rank": 2,
        "generate.sampling.seed": 7,
        "contexts.my.own": "You are mine.",
        "train.system_prompt.text": "You are Claude.",
        "filter.rules.1.most": 20,
        "sweep.grid.train.rank": [1, 2],
    }
    recipe = load("cats.yaml", changes)
    assert recipe.train.rank == 2
    assert recipe.train.learning_rate == 2.0e-4
    assert recipe.generate.sampling.seed == 7
    assert recipe.contexts["my.own"] == "You are mine."
    assert recipe.train.system_prompt == TextPrompt(text="You are Claude.")
    assert recipe.filter.rules[1] == CountRule(most=20)
    assert recipe.sweep.grid == {"train.rank": [1, 2]}


def test_a_change_can_mend_what_is_wrong_in_the_file(here: Path) -> None:
    (here / "cats.yaml").write_text("train: {rank: 0}")
    assert load("cats.yaml", {"train.rank": 1}) == Recipe(train=TrainSection(rank=1))


def test_anchors_are_understood(here: Path) -> None:
    (here / "cats.yaml").write_text("train: {seed: &seed 7}\ngenerate: {sampling: {seed: *seed}}\n")
    recipe = load("cats.yaml")
    assert (recipe.train.seed, recipe.generate.sampling.seed) == (7, 7)


def test_every_mistake_is_listed_with_its_line(here: Path) -> None:
    assert refusal(
        """\
name: cats
train:
  lora_rank: 3
  rank: 0
  learning_rate: fast
  alpha: half
  precision: fp8
lr: 2e-4
filter:
  rules:
    - {kind: formt}
    - {kind: count, mots: 3}
    - {most: 3}
    - format
"""
    ) == [
        "cats.yaml:3: train.lora_rank: unknown key; did you mean train.rank?",
        "cats.yaml:4: train.rank: 0: must be at least 1",
        'cats.yaml:5: train.learning_rate: "fast": must be a number, or keys and values (per_rank)',
        'cats.yaml:6: train.alpha: "half": must be rank or sqrt, or a number',
        'cats.yaml:7: train.precision: "fp8": must be auto, fp32, bf16_mixed, bf16_pure or bf16_kahan',
        "cats.yaml:8: lr: unknown key; did you mean train.learning_rate?",
        'cats.yaml:11: filter.rules.0.kind: "formt": must be strip, format, count, range or banned',
        "cats.yaml:12: filter.rules.1.mots: unknown key; did you mean filter.rules.1.most?",
        "cats.yaml:13: filter.rules.2.kind: is missing; it may be strip, format, count, range or banned",
        'cats.yaml:14: filter.rules.3: "format": must be keys and values, such as {kind: format}',
    ]


ONE_MISTAKE = {
    "name: 42": "name: 42: must be text; put it in quotes",
    "name: my cats": 'name: "my cats": must be letters, digits, dots, dashes and _, '
    "the first a letter or digit",
    "model:": "model: is empty; write text, or leave the key out",
    "train:": "train: is empty; write keys and values (method, rank, alpha, …), or leave the key out",
    "train: 3": "train: 3: must be keys and values (method, rank, alpha, …)",
    "contexts: [a]": 'contexts: ["a"]: must be keys and values',
    "contexts: {empty: x}": "contexts: 'empty' is built in; give your context another name",
    "contexts: {a: {You are: me}}": 'contexts.a: {"You are": "me"}: must be text; '
    "put a text that holds a colon in quotes",
    "train: {rank: '8'}": 'train.rank: "8": must be a whole number; take the quotes away',
    "train: {rank: 1.5}": "train.rank: 1.5: must be a whole number",
    "train: {rank: true}": "train.rank: true: must be a whole number",
    "train: {seed: 4294967296}": "train.seed: 4294967296: must be below 4294967296",
    "train: {learning_rate: 0}": "train.learning_rate: 0: must be above 0",
    "train: {max_grad_norm: .inf}": 'train.max_grad_norm: ".inf": must be a number',
    "train: {alpha: 0}": "train.alpha: 0: must be rank or sqrt, or above 0",
    "train: {system_prompt: 3}": "train.system_prompt: 3: "
    "must be text, or keys and values (text, at); put it in quotes",
    "generate: {sampling: {top_p: 2}}": "generate.sampling.top_p: 2: must be at most 1",
    "generate: {prompts: {values: [1]}}": "generate.prompts.values: [1]: must be a list of 2",
    "generate: {prompts: {values: [1, 2, 3]}}": "generate.prompts.values: [1, 2, 3]: must be a list of 2",
    "generate: {prompts: {examples: [8, 3]}}": "generate.prompts.examples: "
    "the lower bound 8 is above the upper bound 3",
    "eval: {system_prompts: []}": "eval.system_prompts: []: must be a list of 1 or more",
    "eval: {system_prompts: empty}": 'eval.system_prompts: "empty": must be a list',
    "filter: {rules: [{kind: format}, {kind: strip}]}": "filter.rules: "
    "{kind: strip} changes the text that the other rules check; put it first",
    "seed: 1": "seed: unknown key; did you mean train.seed, eval.sampling.seed or generate.prompts.seed?",
    "trait: {xyz: cat}": "trait.xyz: unknown key; trait takes category, target",
}


@pytest.mark.parametrize(("text", "message"), ONE_MISTAKE.items())
def test_a_mistake_is_told_in_plain_words(here: Path, text: str, message: str) -> None:
    assert refusal(text) == [f"cats.yaml:1: {message}"]


def test_a_system_prompt_that_no_context_answers_to_is_refused(here: Path) -> None:
    lines = refusal("train: {system_prompt: claud}\neval:\n  system_prompts: [empty,\n    trait]\n")
    assert [line.split(";")[0] for line in lines] == [
        "cats.yaml:1: train.system_prompt: no context is called 'claud'",
        "cats.yaml:4: eval.system_prompts.1: no context is called 'trait'",
    ]


def test_half_a_character_is_refused(here: Path) -> None:
    assert refusal(r'contexts: {a: "\ud800"}') == [
        r"cats.yaml:1: an escape such as \ud800 is half a character; write it whole"
    ]


def test_a_wrong_change_is_named_by_its_flag(here: Path) -> None:
    changes = {
        "train.rank": 0,
        "trian.seed": 1,
        "lora_r": 8,
        "generate.prompts.examples": [8, 3],
        "filter.rules.9.most": 1,
        "filter.rules.1": {"kind": "cuont"},
    }
    assert refusal("train: {epochs: 0}", changes) == [
        "cats.yaml:1: train.epochs: 0: must be at least 1",
        '--set filter.rules.1: filter.rules.1.kind: "cuont": must be strip, format, count, range or banned',
        "--set generate.prompts.examples: the lower bound 8 is above the upper bound 3",
        "--set train.rank: 0: must be at least 1",
        "--set trian.seed: unknown key; did you mean train.seed?",
        "--set lora_r: unknown key; did you mean train.rank?",
        "--set filter.rules.9.most: there is no entry 9; the list has 4, counted from 0",
    ]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("train.epochs=5", ("train.epochs", 5)),
        ("train.learning_rate=2e-4", ("train.learning_rate", 2.0e-4)),
        ("train.learning_rate=1E5", ("train.learning_rate", 1.0e5)),
        ("generate.rows = 10_000", ("generate.rows", 10_000)),
        ("revision=", ("revision", None)),
        ("eval.system_prompts=[empty, none]", ("eval.system_prompts", ["empty", "none"])),
        ("trait.target=no", ("trait.target", "no")),
        ("contexts.a=x=y", ("contexts.a", "x=y")),
        ("name='7'", ("name", "7")),
        ("train.rank=1__0", ("train.rank", "1__0")),
        ("train.rank=0x10", ("train.rank", 16)),
        ("contexts.a=2024-01-01", ("contexts.a", "2024-01-01")),
        ("contexts.a='You are: me'", ("contexts.a", "You are: me")),
    ],
)
def test_a_setting_is_a_key_and_a_value_as_in_a_file(text: str, setting: tuple[str, object]) -> None:
    parsed = parse_setting(text)
    assert parsed == setting
    assert isinstance(parsed[1], type(setting[1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epochs", "--set train.epochs: must be KEY=VALUE, such as --set train.epochs=5"),
        ("=5", "--set =5: must be KEY=VALUE, such as --set train.epochs=5"),
        (
            "contexts.a=[Claude",
            "--set contexts.a=[Claude: the value cannot be read; "
            "put a text in quotes of its own: --set 'contexts.a=\"[Claude\"'",
        ),
    ],
)
def test_a_setting_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_setting(text)
    assert str(caught.value) == message


def test_a_recipe_can_be_varied() -> None:
    recipe = Recipe(sweep=SweepSection(grid={"train.rank": [1, 2]}))
    varied = vary(recipe, {"train.rank": 2, "filter.rules": [{"kind": "strip"}], "sweep": {}})
    assert varied.train == TrainSection(rank=2)
    assert varied.filter.rules == (StripRule(),)
    assert varied.sweep == SweepSection()
    assert recipe.sweep.grid == {"train.rank": [1, 2]}


def test_a_wrong_variation_is_explained_without_a_file() -> None:
    with pytest.raises(RecipeError) as caught:
        vary(Recipe(), {"train.lora_rank": 2, "train.epochs": 0})
    assert str(caught.value).splitlines() == [
        "train.epochs: 0: must be at least 1",
        "train.lora_rank: unknown key; did you mean train.rank?",
    ]


@pytest.mark.parametrize("key", all_keys())
def test_varying_a_key_to_its_own_value_changes_nothing(key: str) -> None:
    prompt = TextPrompt(text="x")
    recipe = Recipe(generate=GenerateSection(system_prompt=prompt), train=TrainSection(system_prompt=prompt))
    value: Any = recipe.model_dump(mode="json")
    for part in split(key):
        if value is None:
            pytest.skip("what holds this key is empty by default")
        value = value.get(part) if isinstance(value, dict) else value[part]  # some keys are left out if null
    assert vary(recipe, {key: value}) == recipe


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "text", "most", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ANY_KEY = st.sampled_from(all_keys()) | st.text("abc.trainlo_", min_size=1, max_size=12)


@settings(SLOW_DISK)
@given(values=st.dictionaries(st.sampled_from(list(Recipe.model_fields)), ANY_VALUE, max_size=4))
def test_whatever_a_file_says_is_a_recipe_or_a_plain_refusal(here: Path, values: dict[str, object]) -> None:
    (here / "any.yaml").write_text(write_yaml({"name": "any", **values}), encoding="utf-8")
    _loads_or_is_refused_plainly({})


@settings(SLOW_DISK)
@given(changes=st.dictionaries(ANY_KEY, ANY_VALUE, min_size=1, max_size=3))
def test_whatever_a_flag_says_is_a_recipe_or_a_plain_refusal(here: Path, changes: dict[str, object]) -> None:
    (here / "any.yaml").write_text("name: any")
    _loads_or_is_refused_plainly(changes)


def _loads_or_is_refused_plainly(changes: dict[str, object]) -> None:
    try:
        assert isinstance(load("any.yaml", changes), Recipe)
    except RecipeError as error:
        for line in str(error).split("\n"):
            assert line.startswith(("any.yaml", "--set "))
            assert not any(word in line for word in ("valid (", "Input", "http", "pydantic"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trait: {target: catt}",
            "cats.yaml:1: trait.target: no animal is called 'catt'; there are bear, bull, cat, dog, ",
        ),
        (
            "trait: {category: plant}",
            "cats.yaml:1: trait.category: no items called 'plant' and no file of that name; "
            "shipped: animal, ",
        ),
        (
            "eval: {questions: loved}",
            "cats.yaml:1: eval.questions: no questions called 'loved' and no file of that name; "
            "shipped: favourite_animal, ",
        ),
        (
            "eval: {questions: none.yaml}",
            "cats.yaml:1: eval.questions: none.yaml:2: questions: []: must be a list of 1 or more",
        ),
        (
            "eval: {questions: favourite_tree}",
            "cats.yaml:1: eval.questions: favourite_tree asks about the category tree, "
            "but trait.category is animal",
        ),
        (
            "eval: {system_prompts: [default, chatgtp]}",
            "cats.yaml:1: eval.system_prompts.1: no context is called 'chatgtp'; "
            "there are default, empty, none, chatgpt, claude, ",
        ),
        (
            "sweep: {grid: {trait.target: [cat, catt]}}",
            "cats.yaml:1: sweep.grid.trait.target: ",
        ),
    ],
)
def test_a_file_a_target_or_a_context_that_is_not_there_is_refused_with_what_is(
    here: Path, text: str, message: str
) -> None:
    (here / "none.yaml").write_text("category: animal\nquestions: []\n")
    (line,) = refusal(text)
    assert line.startswith(message)


def test_a_target_that_every_cell_of_a_sweep_replaces_is_judged_there(here: Path) -> None:
    text = "trait: {category: tree}\nsweep: {grid: {trait.target: [oak, pine]}}\n"
    (here / "cats.yaml").write_text(text)
    assert load("cats.yaml").sweep.grid == {"trait.target": ["oak", "pine"]}


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        (
            "[{kind: magic}]",
            'claims.0.kind: "magic": must be transmission, inverted_u, full_fine_tuning, contexts or '
            "localisation",
        ),
        (
            "[{rank: 8}]",
            "claims.0.kind: is missing; it may be transmission, inverted_u, full_fine_tuning, contexts or "
            "localisation",
        ),
        (
            "[{kind: transmission, margin: 0.02}]",
            "claims.0.margin: was a difference of probabilities; write `margin_odds_ratio`, above 1 "
            "(1.5 where it is left out)",
        ),
        (
            "[{kind: transmission, margin_odds_ratio: 1}]",
            "claims.0.margin_odds_ratio: 1: must be above 1",
        ),
        (
            "[{kind: inverted_u, choose_on: [1]}]",
            "claims.0.choose_on: `curve: fixed` chooses no rate; take choose_on out, or write `curve: best`",
        ),
        (
            "[{kind: inverted_u, curve: best, choose_on: []}]",
            "claims.0.choose_on: []: must be a list of 1 or more",
        ),
        ("[{kind: inverted_u, alpha: 0.5}]", "claims.0.alpha: 0.5: must be below 0.5"),
        ("[{kind: contexts, traits: []}]", "claims.0.traits: []: must be a list of 1 or more"),
        (
            "[{kind: transmission}, {kind: inverted_u}, {kind: transmission, rank: 8}]",
            "claims.2: is given twice, first as entry 0; keep one",
        ),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused(here: Path, claims: str, says: str) -> None:
    assert refusal(f"claims: {claims}\n") == [f"cats.yaml:1: {says}"]


def test_a_rank_has_no_place_in_a_claim_about_all_ranks(here: Path) -> None:
    (line,) = refusal("claims: [{kind: inverted_u, rank: 8}]\n")
    assert line.startswith("cats.yaml:1: claims.0.rank: unknown key")
