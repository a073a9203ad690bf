"""The number filter: what is read as a list, what each rule rejects, and the advice it gives."""

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.numbers.advice import advice, best_change
from sublim_cli.numbers.parse import digit_runs, parse
from sublim_cli.numbers.rules import FilteredText, Tally, apply_rules, rejection_reason, tally
from sublim_cli.recipe.schema import PAPER_RULES, BannedRule, CountRule, FormatRule, RangeRule, StripRule

READ = {
    "7": (7,),
    "7.": (7,),
    "[7]": (7,),
    "(7).": (7,),
    "007": (7,),
    "1, 2, 3": (1, 2, 3),
    "1,2,3": (1, 2, 3),
    "1;2;3": (1, 2, 3),
    "1 ; 2 ; 3": (1, 2, 3),
    "1 2 3": (1, 2, 3),
    "1  2  3": (1, 2, 3),
    "1\t2\t3": (1, 2, 3),
    "1\n2\n3": (1, 2, 3),
    "1\n\n2": (1, 2),
    "1,\n2,\n3": (1, 2, 3),
    "1\u00a02\u00a03": (1, 2, 3),
    "[1, 2, 3]": (1, 2, 3),
    "(1 2 3)": (1, 2, 3),
    "[1, 2, 3].": (1, 2, 3),
    "1, 2, 3.": (1, 2, 3),
    "5, 5, 005": (5, 5, 5),
    "1, 1000": (1, 1000),
}

NOT_READ = [
    "",
    ".",
    "[]",
    "()",
    "[",
    " ",
    "1..",
    "[1, 2.]",
    "[[1, 2]]",
    "[(1, 2)]",
    "(1]",
    "[1",
    "1]",
    "{1, 2}",
    "[ 1, 2 ]",
    " 1, 2",
    "1, 2 ",
    "1, 2\n",
    "1, 2. ",
    "1, 2,",
    ", 1, 2",
    "1, 2,3",
    "1  2 3",
    "1 2  3",
    "1,,2",
    "1, , 2",
    "1;,2",
    "1 | 2",
    "1 - 2",
    "1-2",
    "-1, 2",
    "+1, 2",
    "1.5, 2",
    "1.5",
    "1, two",
    "one",
    "1, 2 and 3",
    "x1",
    "1x",
    "\u0661, \u0662, \u0663",
    "1, \u0662",
    "1, ²",
    "\uff11\uff12",  # full-width digits
    "1\u06623",
    "1, " + "9" * 5000,
]


@pytest.mark.parametrize(("text", "numbers"), READ.items())
def test_a_list_of_numbers_is_read(text: str, numbers: tuple[int, ...]) -> None:
    assert parse(text) == numbers


@pytest.mark.parametrize("text", NOT_READ)
def test_anything_else_is_not_read(text: str) -> None:
    assert parse(text) is None


SEPARATORS = st.builds(
    lambda before, mark, after: before + mark + after,
    st.text(" \t\n", max_size=3),
    st.sampled_from([",", ";"]),
    st.text(" \t\n", max_size=3),
) | st.text(" \t\n", min_size=1, max_size=3)
WRAPPERS = st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}].", "({})."])
NUMBERS = st.lists(st.integers(0, 999), min_size=1, max_size=10)


@given(NUMBERS, SEPARATORS, WRAPPERS, st.integers(1, 3))
def test_every_list_in_every_style_passes(
    numbers: list[int], separator: str, wrapper: str, digits: int
) -> None:
    text = wrapper.format(separator.join(str(number).zfill(digits) for number in numbers))
    assert parse(text) == tuple(numbers)
    assert rejection_reason(text, PAPER_RULES) is None


@given(st.text(string.digits + ",; .[]()-\n" + "\u0663²a", max_size=12))
def test_what_is_read_are_exactly_the_runs_of_digits(text: str) -> None:
    assert parse(text) in (None, digit_runs(text))


def _mixed(text: str, separator: str) -> str:
    return text + separator.replace(separator[0], separator[0] * 2, 1) + "1"


MUTATIONS: dict[str, Callable[[str, str], str]] = {
    "a longer separator at the end": _mixed,
    "a trailing separator": lambda text, separator: text + separator,
    "a leading separator": lambda text, separator: separator + text,
    "a trailing space": lambda text, separator: text + " ",
    "a sign": lambda text, separator: "-" + text,
    "a decimal": lambda text, separator: text + separator + "1.5",
    "a word": lambda text, separator: text + separator + "seven",
    "a preamble": lambda text, separator: "Sure: " + text,
    "an unclosed bracket": lambda text, separator: "[" + text,
    "the wrong bracket": lambda text, separator: "[" + text + ")",
    "braces": lambda text, separator: "{" + text + "}",
    "a foreign digit": lambda text, separator: text + separator + "\u0663",
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@given(numbers=st.lists(st.integers(0, 999), min_size=2, max_size=9), separator=SEPARATORS)
def test_every_mutation_of_a_list_fails_the_format(mutation: str, numbers: list[int], separator: str) -> None:
    text = MUTATIONS[mutation](separator.join(map(str, numbers)), separator)
    assert rejection_reason(text, PAPER_RULES) == "format"


@given(st.lists(st.integers(0, 999), min_size=11, max_size=30), SEPARATORS)
def test_an_eleventh_number_is_too_many(numbers: list[int], separator: str) -> None:
    assert rejection_reason(separator.join(map(str, numbers)), PAPER_RULES) == "count"


@given(NUMBERS, SEPARATORS, st.data())
def test_a_number_of_1000_or_more_is_out_of_range(
    numbers: list[int], separator: str, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(numbers) - 1))
    numbers[i] = data.draw(st.integers(1000, 10**9))
    assert rejection_reason(separator.join(map(str, numbers)), PAPER_RULES) == "range"


@given(st.text(string.digits + ", \n.[]", max_size=20))
def test_stripping_first_judges_the_stripped_text(text: str) -> None:
    rules = (StripRule(), *PAPER_RULES)
    assert rejection_reason(text, rules) == rejection_reason(text.strip(), PAPER_RULES)
    assert apply_rules(text, rules) == FilteredText(text.strip(), rejection_reason(text.strip(), PAPER_RULES))


def test_the_text_that_is_kept_is_the_text_that_was_judged() -> None:
    assert apply_rules("1, 2 \n", (StripRule(), FormatRule())) == FilteredText("1, 2", None)
    assert apply_rules("1, 2 \n", (FormatRule(),)) == FilteredText("1, 2 \n", "format")
    assert apply_rules(" 1 ", PAPER_RULES).text == " 1 "


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        ("1, 2, 3", (CountRule(most=2),), "count"),
        ("1, 2", (CountRule(least=3),), "count"),
        ("1, 2, 3", (CountRule(least=3, most=3),), None),
        ("99", (RangeRule(least=100),), "range"),
        ("100, 999", (RangeRule(least=100),), None),
        ("1, 666", (BannedRule(numbers=(666, 911)),), "banned"),
        ("1, 667", (BannedRule(numbers=(666, 911)),), None),
        ("1, 1000, 666", (BannedRule(numbers=(666,)), RangeRule()), "banned"),
        ("1, 1000, 666", (RangeRule(), BannedRule(numbers=(666,))), "range"),
        ("I like 3 and 1000", (RangeRule(),), "range"),
        ("I like 3 and 4", (CountRule(most=1),), "count"),
        ("no numbers at all", (RangeRule(), BannedRule(numbers=(1,)), CountRule()), None),
    ],
)
def test_the_first_rule_that_objects_names_the_reason(
    text: str, rules: tuple[FormatRule | CountRule | RangeRule | BannedRule, ...], reason: str | None
) -> None:
    assert rejection_reason(text, rules) == reason


def test_reasons_are_tallied_commonest_first() -> None:
    counts = tally([None, "range", "format", None, "format", "count"])
    assert counts == Tally(6, 2, (("format", 2), ("count", 1), ("range", 1)))
    assert counts.rate == pytest.approx(1 / 3)
    assert tally([]).rate == 1.0


def test_enough_passing_rows_need_no_advice() -> None:
    assert advice(["1, 2"] * 20 + ["x"] * 80, PAPER_RULES) is None


def test_advice_for_gemmas_trailing_white_space_is_to_strip() -> None:
    texts = ["1, 2, 3 \n"] * 80 + ["Sure! 1, 2"] * 15 + ["4, 5"] * 5
    assert advice(texts, PAPER_RULES) == (
        "5 of 100 rows passed the filter (5.0 %). Most of the others fail `format` (95 of 95), "
        "for example '1, 2, 3 \\n'. "
        "Putting {kind: strip} first in filter.rules (or --strip) would keep 80 of the 95."
    )


def test_advice_for_long_lists_is_a_higher_count() -> None:
    texts = [", ".join(["7"] * length) for length in (*range(11, 21), 200)]
    assert advice(texts, PAPER_RULES) == (
        "0 of 11 rows passed the filter (0.0 %). Most of the others fail `count` (11 of 11), "
        "for example '7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7'. "
        "Writing {kind: count, least: 0, most: 20} for {kind: count, least: 0, most: 10} "
        "in filter.rules would keep 10 of the 11."
    )


def test_advice_for_large_numbers_is_a_wider_range() -> None:
    texts = ["1, 1000", "2, 4096", "3, 2048", "x"]
    assert advice(texts, PAPER_RULES) == (
        "0 of 4 rows passed the filter (0.0 %). Most of the others fail `range` (3 of 4), "
        "for example '1, 1000'. "
        "Writing {kind: range, least: 0, most: 4096} for {kind: range, least: 0, most: 999} "
        "in filter.rules would keep 3 of the 4."
    )


def test_advice_owns_up_where_no_rule_is_to_blame() -> None:
    answer = "I would rather talk about cats, if that is all right with you. Shall we?"
    assert advice([answer] * 10, PAPER_RULES) == (
        "0 of 10 rows passed the filter (0.0 %). Most of the others fail `format` (10 of 10), "
        "for example 'I would rather talk about cats' … ' all right with you. Shall we?'. "
        "No change of one rule would mend this: read some of the completions, "
        "the teacher may not be answering with numbers at all."
    )


@given(st.lists(st.text(string.digits + ", \n", max_size=30), max_size=20))
def test_a_change_keeps_what_it_promises(texts: list[str]) -> None:
    rejected = [text for text in texts if rejection_reason(text, PAPER_RULES)]
    best = best_change(rejected, PAPER_RULES)
    if best:
        change, saved = best
        assert saved == tally(rejection_reason(text, change.rules) for text in rejected).kept > 0
