"""Files of others: every format with every form gives the same rows, all else is named for what it is."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from sublim_cli.artifacts.row_files import read_row_file, row_texts, with_completion
from sublim_cli.artifacts.rows import JsonRow
from sublim_cli.errors import RowsError

PAIRS = [("Continue: 1, 2\nas long as you like", "3, 4, 5"), ("Weiter mit „7“?", '8; "9"')]


def message(role, content):
    return {"role": role, "content": content}


FORMS = {
    "texts": lambda p, c: {"prompt": p, "completion": c},
    "trl": lambda p, c: {"prompt": [message("user", p)], "completion": [message("assistant", c)]},
    "messages": lambda p, c: {"id": 7, "messages": [message("user", p), message("assistant", c)]},
    "parts": lambda p, c: {
        "messages": [message("user", [{"type": "text", "text": p}]), message("assistant", c)]
    },
    "sharegpt": lambda p, c: {
        "conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": c}],
    },
    "alpaca": lambda p, c: {"instruction": p, "input": "", "output": c},
}


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def comma_separated(rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FORMATS = {
    "jsonl": jsonl,
    "list": lambda rows: json.dumps(rows, indent=1).encode(),
    "parquet": table,
    "marked": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "gzip": lambda rows: gzip.compress(jsonl(rows)),
    "list.gzip": lambda rows: gzip.compress(json.dumps(rows).encode()),
}
FLAT = {
    "csv": comma_separated,
    "tsv": lambda rows: comma_separated(rows, "\t"),
    "semicolon": lambda rows: comma_separated(rows, ";"),
    "csv.gzip": lambda rows: gzip.compress(comma_separated(rows)),
}
CASES = [(name, form) for name in FORMATS for form in FORMS if (name, form) != ("parquet", "parts")]
CASES += [(name, form) for name in FLAT for form in ("texts", "alpaca")]


@pytest.mark.parametrize(("file_format", "form"), CASES)
def test_every_format_and_form_gives_the_same_rows_whatever_the_file_is_called(tmp_path, file_format, form):
    path = tmp_path / "rows.txt"
    records = [FORMS[form](*pair) for pair in PAIRS]
    path.write_bytes({**FORMATS, **FLAT}[file_format](records))
    rows = read_row_file(path)
    assert [row.values for row in rows] == records
    texts = [row_texts(row) for row in rows]
    assert [(each.prompt, each.completion) for each in texts] == PAIRS
    changed = [with_completion(*each, "new") for each in zip(rows, texts, strict=True)]
    assert [row_texts(JsonRow("", values)).completion for values in changed] == ["new", "new"]
    assert [row.values for row in rows] == records


def test_alpacas_input_follows_its_instruction_and_keys_of_ones_own_name_any_form(tmp_path):
    row = JsonRow("x:1", {"instruction": "Go on", "input": "1, 2", "output": "3", "prompt": "other"})
    assert row_texts(row).prompt == "Go on\n\n1, 2"
    row = JsonRow("x:1", {"q": [message("user", "1, 2")], "a": "3", "messages": []})
    assert (row_texts(row, "q", "a").prompt, row_texts(row, "q", "a").completion) == ("1, 2", "3")
    row = JsonRow("x:1", {"dialog": [{"from": "human", "value": "1, 2"}, message("assistant", "3")]})
    assert row_texts(row, "dialog", "dialog").completion_path == ("dialog", 1, "content")


def test_values_of_parquet_that_json_lacks_become_text_or_null(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(table([{**FORMS["texts"]("p", "c"), "when": date(2026, 1, 2), "score": float("nan")}]))
    (row,) = read_row_file(path)
    assert row.values == {"prompt": "p", "completion": "c", "when": "2026-01-02", "score": None}
    path.write_bytes(table([{"prompt": "p", "image": b"\x89"}]))
    with pytest.raises(RowsError, match="column 'image' holds bytes"):
        read_row_file(path)


ROW = jsonl([FORMS["texts"]("p", "c")])


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("rows.jsonl", ROW)
    else:
        with tarfile.open(fileobj=buffer, mode=kind) as file:
            entry = tarfile.TarInfo("rows.jsonl")
            entry.size = len(ROW)
            file.addfile(entry, io.BytesIO(ROW))
    return buffer.getvalue()


def arrow():
    buffer = io.BytesIO()
    feather.write_feather(pa.Table.from_pylist([{"prompt": "p"}]), buffer)
    return buffer.getvalue()


def numpy_array():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


REFUSED = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", "a Git LFS pointer"),
    "utf-16": (ROW.decode().encode("utf-16"), "this is UTF-16"),
    "utf-16-be": (ROW.decode().encode("utf-16-be"), "this is UTF-16 without its mark"),
    "utf-32": (ROW.decode().encode("utf-32"), "this is UTF-32"),
    "zip": (archive("zip"), "this is a ZIP archive"),
    "tar": (archive("w"), "this is a tar archive"),
    "tar.gz": (archive("w:gz"), "this is a tar archive"),
    "gzip twice": (gzip.compress(gzip.compress(ROW)), "compressed with gzip twice"),
    "gzip cut off": (gzip.compress(ROW)[:-12], "compressed with gzip, and cut off or damaged"),
    "bzip2": (bz2.compress(ROW), "compressed with bzip2"),
    "xz": (lzma.compress(ROW), "compressed with xz"),
    "zstd": (pa.compress(ROW, codec="zstd", asbytes=True), "compressed with zstd"),
    "arrow": (arrow(), "this is an Arrow file"),
    "pickle": (pickle.dumps([1]), "this is a pickle"),
    "numpy": (numpy_array(), "this is a NumPy array"),
    "html": (b"\n<!DOCTYPE html>\n<html>", "this is a web page"),
    "binary": (b"\x01\x00\x07abc", "no text but binary data"),
    "parquet cut off": (table([{"prompt": "p"}])[:-9], "is a Parquet file, but cut off or damaged"),
    "parquet empty": (table([{"prompt": "p"}])[:4] + b"PAR1", "is a Parquet file, but cut off or damaged"),
    "latin-1": (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', ":2: not UTF-8"),
    "empty": (b"", "no rows"),
    "empty list": (b"[]", "no rows; the list is empty"),
    "list of texts": (b'["a"]', "entry 1: not a JSON object"),
    "lists in lines": (b"[1]\n[2]\n", ":1: not a JSON object"),
    "open list": (b'[\n{"prompt": "p"}\n{"prompt": "q"}]', "not valid JSON at line 3, character 1"),
    "object of a list": (json.dumps({"data": [1]}).encode(), "its list 'data' alone is one: `jq '.data'`"),
    "object over lines": (json.dumps({"v": 1, "data": [1]}, indent=1).encode(), "`jq '.data'`"),
    "row over lines": (json.dumps({"prompt": "p"}, indent=1).encode(), "each row as one line: `jq -c .`"),
    "nested": (b'{"a": ' + b"[" * 200_000, ":1: nested too deeply"),
    "nested list": (b"[" * 200_000, "nested too deeply"),
    "nan": (b'{"prompt": "p"}\n{"score": NaN}\n', ":2: NaN is not valid JSON"),
    "infinity in a list": (b'[{"score": -Infinity}]', "-Infinity is not valid JSON"),
    "prose": (b"Once upon a time\nthere were rows.\n", "neither JSONL, a JSON list, CSV nor Parquet"),
    "unquoted csv": (b"prompt,completion\np,3, 4, 5\n", ":2: 4 fields, but 2 columns"),
    "open quote": (b'prompt,completion\n"p,3\n', ":2: not valid CSV"),
    "column twice": (b"prompt,prompt\np,3\n", ":1: read as CSV, whose first line must name each column once"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_another_kind_of_file_is_named_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RowsError) as caught:
        read_row_file(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device here")
def test_what_has_no_end_and_what_is_no_file_is_refused(tmp_path, monkeypatch):
    for path, message in (
        ("/dev/zero", "is a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none.jsonl", "no such file"),
        ("hf://datasets/somebody/rows", "is an address, not a file; download it"),
    ):
        with pytest.raises(RowsError, match=message):
            read_row_file(tmp_path.__class__(path))
    monkeypatch.setattr("sublim_cli.artifacts.row_files.MOST_BYTES", 1000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(RowsError, match="holds more than"):
        read_row_file(tmp_path / "bomb.gz")


SYSTEM = "has a system message, which is not part of a row; .* as train.system_prompt"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": [message("system", "s"), *FORMS["messages"]("p", "c")["messages"]]}, SYSTEM),
        (
            {"prompt": [message("system", "s"), message("user", "p")], "completion": "c"},
            f"prompt and completion: {SYSTEM}",
        ),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "p"}]}, SYSTEM),
        ({**FORMS["alpaca"]("p", "c"), "system": "s"}, SYSTEM),
        ({"messages": [message("user", "p")]}, "messages: has the turns user; a row is one turn"),
        ({"messages": FORMS["messages"]("p", "c")["messages"] * 2}, "turns user, assistant, user, assistant"),
        ({"messages": [message("assistant", "c"), message("user", "p")]}, "turns assistant, user; a row"),
        ({**FORMS["alpaca"]("p", "c"), "history": [["a", "b"]]}, "has the turns earlier turns, user"),
        ({"messages": []}, "messages: must be a text or a list of messages"),
        ({"prompt": 3, "completion": "c"}, "prompt: must be a text or a list of messages"),
        ({"messages": [message("user", "p"), message("assistant", None)]}, "message 2 must have a text"),
        ({"messages": ["p", "c"]}, "message 1 must have a text under 'role' and one under 'content'"),
        ({"instruction": "p", "output": 3}, "output: must be a text"),
        (
            {"question": "p", "answer": "c"},
            r'no key "prompt" \(its keys: question, answer\); the forms are .*see --prompt-key',
        ),
    ],
)  # fmt: skip
def test_a_row_of_another_form_is_refused_with_its_place_and_the_remedy(values, message):
    with pytest.raises(RowsError, match=f"^f:3: .*{message}"):
        row_texts(JsonRow("f:3", values))
