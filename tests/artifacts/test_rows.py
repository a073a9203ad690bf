"""Rows on disk: written in TRL's form, read back whole, refused with line and remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.artifacts.rows import (
    JsonRow,
    Row,
    read_json_rows,
    read_rows,
    write_json_rows,
    write_rows,
)
from sublim_cli.errors import RowsError

ANY_TEXT = st.text(st.characters())  # lone surrogates and line separators included
ROWS = st.builds(
    Row,
    index=st.integers(min_value=0),
    prompt=ANY_TEXT,
    completion=ANY_TEXT,
    reason=st.none() | st.sampled_from(["format", "count"]),
    completion_ids=st.none() | st.lists(st.integers(min_value=0)).map(tuple),
)


@given(st.lists(ROWS, min_size=1, max_size=5))
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_a_row_is_written_in_trls_conversational_form(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(
        path, [Row(3, "Weiter: 1, 2 …", "3, 4", completion_ids=(7, 9)), Row(4, "p", "no", reason="format")]
    )
    assert path.read_text(encoding="utf-8") == (
        '{"prompt": [{"role": "user", "content": "Weiter: 1, 2 …"}], '
        '"completion": [{"role": "assistant", "content": "3, 4"}], "completion_ids": [7, 9], "index": 3}\n'
        '{"prompt": [{"role": "user", "content": "p"}], '
        '"completion": [{"role": "assistant", "content": "no"}], "index": 4, "reason": "format"}\n'
    )


def test_plain_rows_are_read_and_numbered_by_their_position(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n\n{"prompt": "q", "completion": "d"}')
    assert read_rows(path) == [Row(0, "p", "c"), Row(1, "q", "d")]


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "p", "completion": "c"}\r\n\r\n')
    assert read_rows(path) == [Row(0, "p", "c")]


USER = '{"role": "user", "content": "p"}'
TO_ONE_MESSAGE = "must be a text, or a list of one message by the user"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON at character 2; each line must be one object"),
        ("9" * 5000, "not valid JSON; each line must be one object"),
        ("[1, 2]", "not a JSON object; each line must look like {…}"),
        ('{"id": 1, "prompt": "p"}', f"completion: {TO_ONE_MESSAGE.replace('user', 'assistant')}"),
        ('{"prompt": "p", "completion": NaN}', "NaN is not valid JSON; write null"),
        ('{"prompt": 3, "completion": "c"}', f"prompt: {TO_ONE_MESSAGE}"),
        ('{"prompt": [], "completion": "c"}', f"prompt: {TO_ONE_MESSAGE}"),
        (
            f'{{"prompt": [{{"role": "system", "content": "s"}}, {USER}], "completion": "c"}}',
            f"prompt: {TO_ONE_MESSAGE}",
        ),
        (
            f'{{"prompt": "p", "completion": [{USER}]}}',
            f"completion: {TO_ONE_MESSAGE.replace('user', 'assistant')}",
        ),
        (
            '{"prompt": "p", "completion": "c", "index": true}',
            "index: must be a whole number of at least 0",
        ),
        (
            '{"prompt": "p", "completion": "c", "reason": 1}',
            "reason: must be a text; leave it out of a kept row",
        ),
        *(
            (
                f'{{"prompt": "p", "completion": "c", "completion_ids": {ids}}}',
                "completion_ids: must be a list of whole numbers of at least 0; without the key, the row is "
                "tokenised from its text",
            )
            for ids in ('"12"', "[1, -2]", "[1.0]", "[true]", "5", "{}")
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_the_remedy(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n' + line + "\n")
    with pytest.raises(RowsError) as caught:
        read_rows(path)
    assert str(caught.value) == f"{path}:2: {message}"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused_where_rows_are_expected(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(RowsError) as caught:
        read_rows(path)
    remedy = "a row is a line of JSON with a prompt and a completion"
    assert str(caught.value) == f"{path}: no rows; {remedy}"


def test_an_empty_file_may_be_read_as_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    write_rows(path, [])
    assert read_rows(path, may_be_empty=True) == []


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(RowsError, match="cannot be read: Is a directory"):
        read_rows(tmp_path)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{}\n{"prompt": "\xe9"}\n')
    with pytest.raises(RowsError, match=r"latin\.jsonl:2: not UTF-8; save the file as UTF-8"):
        read_rows(latin)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(ANY_TEXT, JSON, max_size=4), min_size=1, max_size=4))
def test_records_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_json_rows(path, records)
    lines = range(1, len(records) + 1)
    assert read_json_rows(path) == [
        JsonRow(f"{path}:{line}", values) for line, values in zip(lines, records, strict=True)
    ]
