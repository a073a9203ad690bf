"""The same mistake in a recipe, an item file or a question file is refused with the same sentence."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.load import load, parse_setting
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.yaml_file import parse_value, parse_yaml, write_yaml

READERS: dict[str, Callable[[str], object]] = {
    "recipe": load,
    "items": load_items,
    "questions": load_questions,
}
ANY_KIND = pytest.mark.parametrize("kind", READERS)
VALID = {
    "recipe": "name: cats\ncontexts:\n  a: text\n",
    "items": "category: beast\npersona: Love {target}.\nitems:\n  - {name: cat}\n",
    "questions": "category: beast\nquestions:\n  - Which?\n",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(kind: str, content: str | bytes) -> object:
    """What a file of this kind with this content is read as."""
    Path("mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return READERS[kind]("mine.yaml")


def refusal(kind: str, content: str | bytes) -> str:
    with pytest.raises(RecipeError) as caught:
        read(kind, content)
    return str(caught.value)


UNCLOSED = "not valid YAML; a quote or bracket that opens here is not closed, or a comma is missing"
COLON = "not valid YAML; put a text that holds a colon in quotes, and check the indentation"


@ANY_KIND
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\ntrain: [1,\nb: 2", f"2:8: {UNCLOSED}"),
        ("a: 1\nname: 'x\nb: 2", f"2:7: {UNCLOSED}"),
        ("contexts:\n  c: You are Claude: hi", f"2:20: {COLON}"),
        ("a: 1\n b: 2\n", f"2:3: {COLON}"),
        ("train:\n\trank: 1", "2:1: not valid YAML; indent with spaces, not with tabs"),
        ("name: @a", "1:7: not valid YAML; put a text that begins with this character in quotes"),
        ("name: a\n---\nname: b", "2:1: not valid YAML; a file holds one document; "
         "take out the second `---`"),
        ("train: *base", "1:8: not valid YAML; no value above carries the name after the `*`"),
        ("train: &a [*a]", "1:8: a value cannot hold itself; take out the `*` alias"),
        ("a: 1\nb: !!python/object:os.system x", "2:4: the tag !!python/object:os.system "
         "has no meaning here; take it out"),
        ("a: !!set {b}", "1:4: the tag !!set has no meaning here; take it out"),
        ("a: !!map [b]", "1:4: the tag !!map has no meaning here; take it out"),
        ("{a: b}: c", "1:1: a key must be a word; put a value that holds braces in quotes"),
        ("a: 1\nb: {<<: {c: 1}}", "2:5: merge keys (`<<`) are not supported; write the keys out"),
        ("questions: [a]\nquestions: [b]", "2:1: questions: is given twice, first in line 1; keep one"),
        ("train:\n  rank: 1\n\n  rank: 1", "4:3: rank: is given twice, first in line 2; keep one"),
        ("items:\n- {name: a, name: b}", "2:13: name: is given twice, first in line 2; keep one"),
        ("a: 1\n'a': 2", "2:1: a: is given twice, first in line 1; keep one"),
        ("a: " + "[" * 1000, "1:1: lists and mappings are nested too deeply; take levels out"),
        (b"a: 1\nb: \x07c", "2:4: holds a character YAML does not allow; retype the line as plain text"),
    ],
)  # fmt: skip
def test_what_is_not_yaml_is_refused_with_line_and_column(kind: str, content: str, message: str) -> None:
    assert refusal(kind, content) == f"mine.yaml:{message}"


@ANY_KIND
@pytest.mark.parametrize("content", ["- a", "a", "3", "[]", "no"])
def test_a_file_without_keys_is_refused_with_an_example(kind: str, content: str) -> None:
    example = "name: cats" if kind == "recipe" else "category: animal"
    assert refusal(kind, content) == f"mine.yaml:1:1: must be keys and values, such as `{example}`"
    for empty in ("", "# only a comment\n", "---\n"):
        assert refusal(kind, empty) == f"mine.yaml: is empty; write keys and values, such as `{example}`"


@ANY_KIND
def test_what_is_no_text_file_is_refused(kind: str) -> None:
    assert refusal(kind, b"name: \xe9\n") == "mine.yaml: is not UTF-8 text; save it as UTF-8"
    Path("folder").mkdir()
    for path in ("folder", "missing.yaml", "x" * 300):
        with pytest.raises(
            RecipeError, match=f"^no {kind} (called )?'{path}'.* no (such file|file of that name)"
        ):
            READERS[kind](path)


@ANY_KIND
def test_byte_order_mark_and_windows_line_ends_change_nothing(kind: str) -> None:
    plain = read(kind, VALID[kind])
    windows = VALID[kind].replace("\n", "\r\n")
    assert read(kind, b"\xef\xbb\xbf" + windows.encode()) == plain
    assert refusal(kind, f"{windows}\r\nx: 'a") == f"mine.yaml:{windows.count(chr(10)) + 2}:4: {UNCLOSED}"


TEXT_AT = {
    "recipe": ("contexts:\n  a: {}\n", "mine.yaml:2: contexts.a"),
    "items": (
        "category: beast\npersona: p\nitems:\n- name: cat\n  also:\n  - {}\n",
        "mine.yaml:6: items.0.also.0",
    ),
    "questions": ("category: beast\nquestions:\n- Which?\n- {}\n", "mine.yaml:4: questions.1"),
}
"""A file with a place for a text, and how a message names it."""


@ANY_KIND
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{Answer: which?}", '{"Answer": "which?"}: must be text; put a text that holds a colon in quotes'),
        ("3", "3: must be text; put it in quotes"),
        ("1e-4", "0.0001: must be text; put it in quotes"),
        ("true", "true: must be text; put it in quotes"),
        ("", "is empty; write text, or leave the key out"),
    ],
)
def test_what_yaml_does_not_read_as_text_gets_the_same_hint(kind: str, value: str, message: str) -> None:
    content, place = TEXT_AT[kind]
    assert refusal(kind, content.format(value)) == f"{place}: {message}"


@ANY_KIND
@pytest.mark.parametrize("text", ["no", "on", "yes", "off", "2024-01-01", "12:30:45", ".inf", "=", "1__0"])
def test_what_yaml_1_1_reads_as_something_else_is_a_text(kind: str, text: str) -> None:
    content, _ = TEXT_AT[kind]
    assert text in repr(read(kind, content.format(text)))
    assert text in repr(read(kind, f"%YAML 1.1\n---\n{content.format(text)}"))


def test_a_text_with_a_colon_gets_the_hint_where_keys_are_allowed_too() -> None:
    assert refusal("recipe", "eval:\n  system_prompts:\n  - Answer: which?") == (
        'mine.yaml:3: eval.system_prompts.0: {"Answer": "which?"}: must be text; '
        "put a text that holds a colon in quotes"
    )


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("recipe", "trian: {}", "mine.yaml:1: trian: unknown key; did you mean train?"),
        ("items", f"{VALID['items']}person: p", "mine.yaml:5: person: unknown key; did you mean persona?"),
        ("questions", f"{VALID['questions']}extend: a",
         "mine.yaml:4: extend: unknown key; did you mean extends?"),
        ("questions", f"{VALID['questions']}xyz: a",
         "mine.yaml:4: xyz: unknown key; the file takes extends, category, questions, prefixes"),
    ],
)  # fmt: skip
def test_an_unknown_key_leads_to_the_right_one(kind: str, content: str, message: str) -> None:
    assert refusal(kind, content) == message


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("recipe", "claims:\n- kind: contexts\n- kind: inverted_u\n- kind: contexts\n",
         "4: claims.2: is given twice, first as entry 0; keep one"),
        ("recipe", "eval:\n  gates:\n  - identity_only\n  - identity_only\n",
         "4: eval.gates.1: is given twice, first as entry 0; keep one"),
        ("items", "category: b\npersona: p\nitems:\n- name: cat\n- name: dog\n- name: cat\n",
         "6: items.2: 'cat' would name both 'cat' and 'cat'; keep one"),
        ("items", "extends: animal\nitems:\n- name: quoll\n- name: quoll\n",
         "4: items.1: 'quoll' would name both 'quoll' and 'quoll'; keep one"),
        ("questions", "category: b\nquestions:\n- Which?\n- What?\n- Which?\n",
         "5: questions.2: is given twice, first as entry 0; keep one"),
    ],
)  # fmt: skip
def test_an_entry_given_twice_is_refused_with_its_line(kind: str, content: str, message: str) -> None:
    assert refusal(kind, content) == f"mine.yaml:{message}"


def test_an_item_that_a_shipped_file_has_under_another_name_is_refused_with_the_line_of_the_items() -> None:
    assert refusal("items", "extends: animal\nitems:\n- {name: pet, also: [cat]}\n") == (
        "mine.yaml:2: items: 'cat' would name both 'cat' and 'pet'; keep one"
    )


def test_every_mistake_of_a_question_file_is_a_line_of_its_own_under_the_recipe_s_key() -> None:
    Path("asked.yaml").write_text("category: animal\nquestions:\n- 3\n- ''\n")
    start = "mine.yaml:1: eval.questions: asked.yaml"
    assert refusal("recipe", "eval: {questions: asked.yaml}").splitlines() == [
        f"{start}:3: questions.0: 3: must be text; put it in quotes",
        f'{start}:4: questions.1: "": must be text that is not empty',
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2.0e-4", 2e-4), ("1E5", 1e5), (".5", 0.5), ("1_000", 1000), ("010", 10),
        ("0o10", 8), ("0x10", 16), ("0b11", 3), ("+1", 1), ("-3", -3), ("~", None), ("", None),
        ("True", True),
        ("1__0", "1__0"), ("1_", "1_"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000),
        ("2024-99-99", "2024-99-99"),
        ("!!str 5", "5"), ("<<", "<<"), ("[&a 1, *a]", [1, 1]), ("{1: a, ~: b}", {"1": "a", "~": "b"}),
    ],
)  # fmt: skip
def test_a_value_is_read_alike_in_a_file_and_behind_set(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert isinstance(parse_value(text), type(value))
    assert parse_setting(f"a={text}") == ("a", value)
    assert parse_yaml(f"a: {text}", "x", "a: 1").values == {"a": value}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats().filter(math.isfinite)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<=~1 :é", max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("ab<=~1 :é", max_size=4), VALUES, min_size=1, max_size=3))
def test_what_is_written_reads_back_equal(values: dict[str, object]) -> None:
    assert parse_yaml(write_yaml(values), "x", "a: 1").values == values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*" \n\t-:,?!&*%@<'\"[]{}|>#~", "  ", "a", "1", "_", ".", "\n  ", "- ", ": "]))
)
def test_whatever_is_given_is_read_or_refused_with_a_sentence(pieces: list[str]) -> None:
    text = "".join(pieces)
    with contextlib.suppress(RecipeError):
        parse_value(text)
