"""The keys of a recipe are read off its schema, and a wrong one leads to the right one."""

import pytest

from sublim_cli.recipe.keys import FOREIGN_NAMES, all_keys, dotted, is_key, overlap, split, suggest


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_known_and_survives_splitting(key: str) -> None:
    assert is_key(split(key))
    assert dotted(split(key)) == key


@pytest.mark.parametrize("key", [key for key in all_keys() if len(key.split(".")[-1]) > 3])
def test_a_key_with_a_missing_letter_is_recognised(key: str) -> None:
    section, dot, name = key.rpartition(".")
    assert key in suggest(split(f"{section}{dot}{name[:2]}{name[3:]}"))


@pytest.mark.parametrize(("key", "names"), FOREIGN_NAMES.items())
def test_a_foreign_name_leads_to_the_recipe_s_wherever_it_stands(key: str, names: tuple[str, ...]) -> None:
    assert key in all_keys()
    for name in names:
        for section in ("", "train.", "generate.sampling.", "eval.", "nonsense."):
            assert not is_key(split(section + name))
            assert suggest(split(section + name)) == [key]


def test_a_key_in_the_wrong_section_leads_to_the_right_one() -> None:
    assert suggest(("rank",)) == ["train.rank"]
    assert suggest(("generate", "temperature")) == ["generate.sampling.temperature"]
    assert suggest(("train", "Rank")) == ["train.rank"]
    assert suggest(("trian", "seed")) == ["train.seed"]
    assert suggest(("xyzzy",)) == []


def test_what_a_dictionary_holds_is_one_name() -> None:
    assert split("sweep.grid.train.rank") == ("sweep", "grid", "train.rank")
    assert split("sweep.also.0.train.rank") == ("sweep", "also", 0, "train.rank")
    assert split("contexts.my.own") == ("contexts", "my.own")
    assert split("filter.rules.1.most") == ("filter", "rules", 1, "most")
    assert split("train.rank.1") == ("train", "rank", "1")


@pytest.mark.parametrize(
    "key",
    ["train.system_prompt.text", "eval.system_prompts.0", "eval.system_prompts.0.text",
     "filter.rules.3.numbers.0", "train.learning_rate.per_rank.8", "contexts.x"],
)  # fmt: skip
def test_entries_of_lists_and_dictionaries_are_known(key: str) -> None:
    assert is_key(split(key))


@pytest.mark.parametrize("key", ["", ".", "train.", "train.rank.x", "filter.rules.x", "contexts"])
def test_what_is_not_there_is_not_known(key: str) -> None:
    assert is_key(split(key)) == (key == "contexts")


def test_paths_overlap_if_one_leads_into_the_other() -> None:
    assert overlap(("train",), ("train", "rank"))
    assert overlap(("train", "rank"), ("train",))
    assert not overlap(("train", "rank"), ("train", "alpha"))
