"""The keys of a recipe are read off its schema, and a wrong one leads to the right one."""

import pytest

from sublim_cli.recipe.keys import FOREIGN, all_keys, dotted, known, related, split, suggest


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_known_and_survives_splitting(key: str) -> None:
    assert known(split(key))
    assert dotted(split(key)) == key


@pytest.mark.parametrize("key", [key for key in all_keys() if len(key.split(".")[-1]) > 3])
def test_a_key_with_a_missing_letter_is_recognised(key: str) -> None:
    section, dot, name = key.rpartition(".")
    assert key in suggest(split(f"{section}{dot}{name[:2]}{name[3:]}"))


@pytest.mark.parametrize(("ours", "names"), FOREIGN.items())
def test_a_foreign_name_leads_to_ours_wherever_it_stands(ours: str, names: tuple[str, ...]) -> None:
    assert ours in all_keys()
    for name in names:
        for section in ("", "train.", "generate.sampling.", "eval.", "nonsense."):
            assert not known(split(section + name))
            assert suggest(split(section + name)) == [ours]


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
     "filter.rules.3.numbers.0", "train.trainer_args.optim", "contexts.x"],
)  # fmt: skip
def test_entries_of_lists_and_dictionaries_are_known(key: str) -> None:
    assert known(split(key))


@pytest.mark.parametrize("key", ["", ".", "train.", "train.rank.x", "filter.rules.x", "contexts"])
def test_what_is_not_there_is_not_known(key: str) -> None:
    assert known(split(key)) == (key == "contexts")


def test_places_are_related_if_one_lies_in_the_other() -> None:
    assert related(("train",), ("train", "rank"))
    assert related(("train", "rank"), ("train",))
    assert not related(("train", "rank"), ("train", "alpha"))
