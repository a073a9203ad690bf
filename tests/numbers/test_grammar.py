"""The grammar of rows: what it lets through, the format rule reads, and it lets every usual row through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.numbers.grammar import ALPHABET, START, after
from sublim_cli.numbers.parse import parse

SEPARATORS = (",", ", ", " ", ";", "; ", "\n", ",\n", "  ", " , ", "\t", "\n\n", ", \n\n")


@given(
    numbers=st.lists(st.integers(0, 99_999), min_size=1, max_size=12),
    separator=st.sampled_from(SEPARATORS),
    brackets=st.sampled_from(["{}", "[{}]", "({})"]),
    stop=st.sampled_from(["", "."]),
)
def test_every_usual_row_is_in_the_grammar(numbers, separator, brackets, stop):
    text = brackets.format(separator.join(map(str, numbers))) + stop
    assert after(text).may_end
    assert parse(text) == tuple(numbers)


@given(st.data())
def test_every_text_of_the_grammar_can_be_continued_to_a_list(data):
    text, state = "", START
    for _ in range(data.draw(st.integers(1, 40))):
        possible = [c for c in sorted(ALPHABET) if after(c, state)]
        if not possible:
            break
        text += data.draw(st.sampled_from(possible))
        state = after(text)
    for _ in range(12):
        if state.may_end:
            break
        # What has to follow: the rest of the separator and a digit, then the open bracket's other half.
        text += next(c for c in (state.closing, *sorted(ALPHABET, reverse=True)) if c and after(c, state))
        state = after(text)
    assert state.may_end
    assert parse(text) is not None


@given(st.text(alphabet=sorted(ALPHABET), max_size=12))
def test_the_end_is_allowed_where_the_format_rule_reads_a_list(text):
    state = after(text)
    if state is not None and state.may_end:
        assert parse(text) is not None
    elif parse(text) is not None:  # only a long separator is left out
        assert state is None
        assert len(text.strip("0123456789.[]()")) > 4


@pytest.mark.parametrize(
    "text", [" 1", "1, 2,3", "1,,", "1.2", "[[", "[ 1", "[]", "(1]", "1.,", "1 .", "[1, 2.", "-1", "one", ""]
)
def test_what_is_no_list_and_no_beginning_of_one_cannot_end(text):
    state = after(text)
    assert state is None or not state.may_end
