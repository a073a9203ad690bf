"""Files of rows that others wrote: JSONL, a JSON list, CSV or Parquet, the text ones also under gzip.

A row is one user turn and the answer to it, in one of these forms:

    {"prompt": "…", "completion": "…"}                      texts, or lists of one message
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", …}]}
    {"instruction": "…", "input": "…", "output": "…"}       `input` follows after a blank line

What a file is, its first bytes say, not its name. A file of another kind is refused and named for what it is.
"""

import copy
import csv
import gzip
import io
import json
import math
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sublim_cli.artifacts.rows import COMPLETION, PROMPT, ROLES, JsonRow, parse_json, parse_json_lines
from sublim_cli.errors import RowsError

MOST_BYTES = 2**30
"""The longest content that is read, unpacked: 100,000 rows of numbers have about 20 MB."""

_KINDS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull` where it lies"),
    (b"\xff\xfe\x00\x00", "UTF-32; save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8, such as with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8, such as with `iconv -f UTF-16 -t UTF-8`"),
    (b"PK\x03\x04", "a ZIP archive, as .xlsx and .npz files are too; unpack it, or export the rows as CSV"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"BZh", "compressed with bzip2; unpack it with `bunzip2`"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it with `unxz`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with `unzstd`"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; unpack it with `unlz4`"),
    (b"\x1f\x9d", "compressed with compress; unpack it with `uncompress`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"PARE", "an encrypted Parquet file; decrypt it"),
    (b"ARROW1", "an Arrow file; write the rows with `Dataset.to_json` or `to_parquet`"),
    (b"\xff\xff\xff\xff", "an Arrow stream; write the rows with `Dataset.to_json` or `to_parquet`"),
    (b"ORC", "an ORC file; write the rows as Parquet"),
    (b"Obj\x01", "an Avro file; write the rows as Parquet"),
    (b"SQLite format 3\x00", "an SQLite database; export the rows as CSV"),
    (b"\x89HDF\r\n", "an HDF5 file; write the rows as Parquet"),
    (b"\x93NUMPY", "a NumPy array; write the rows as JSONL"),
    (b"\x80\x02", "a pickle; write the rows as JSONL"),
    (b"\x80\x03", "a pickle; write the rows as JSONL"),
    (b"\x80\x04", "a pickle; write the rows as JSONL"),
    (b"\x80\x05", "a pickle; write the rows as JSONL"),
    (b"%PDF", "a PDF; write the rows as JSONL"),
    (b"\x89PNG", "an image; write the rows as JSONL"),
)
"""How files of other kinds begin, and what they are."""

_TAR = slice(257, 262)
_HTML = (b"<!doctype html", b"<html")
_DELIMITERS = ",;\t|"
_CHAT_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""The keys of whole conversations, and in each turn those of its author and its text."""


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The two texts of a row, and the keys and list indices under which the completion stands."""

    prompt: str
    completion: str
    completion_path: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str
    path: tuple[str | int, ...]


def read_row_file(path: Path) -> list[JsonRow]:
    """Every row of a file as a JSON object, in order.

    Dates and decimals of Parquet become text, numbers that are not finite null.

    Raises:
        RowsError: the file cannot be read, has no rows, or is none of the formats.
    """
    content = _read_bytes(path)
    if content.startswith(b"\x1f\x8b"):
        content = _unpacked(content, path)
    if content.startswith(b"PAR1"):
        return _parquet_rows(content, path)
    if kind := _other_kind(content):
        raise RowsError(f"{path}: this is {kind}")
    if not content.strip():
        raise RowsError(f"{path}: no rows; a row is a line of JSON with a prompt and a completion")
    content = content.removeprefix(b"\xef\xbb\xbf")
    first = content.lstrip()[:1]
    if first == b"[":
        return _list_rows(content, path)
    if first == b"{":
        return _object_rows(content, path)
    return _csv_rows(content, path)


def row_texts(row: JsonRow, prompt_key: str = PROMPT, completion_key: str = COMPLETION) -> RowTexts:
    """The prompt and the completion of a row in any of the forms.

    Args:
        row: the row.
        prompt_key: where the prompt is; with the default, a row without it may have another form.
        completion_key: where the completion is. If it is the prompt's key too, a conversation stands there.

    Raises:
        RowsError: the row has another form, a system message, or not one turn of each side.
    """
    values = row.values
    default = (prompt_key, completion_key) == (PROMPT, COMPLETION)
    if default and not {prompt_key, completion_key} <= values.keys():
        for key, (author, text) in _CHATS.items():
            if isinstance(values.get(key), list):
                return _pair(row, key, _turns(row, (key,), author, text))
        if {"instruction", "output"} <= values.keys():
            return _instruction(row)
    for key in (prompt_key, completion_key):
        if key not in values:
            keys = ", ".join(values) or "none"
            raise RowsError(
                f'{row.where}: no key "{key}" (its keys: {keys}); the forms are prompt and completion, '
                "messages, conversations, or instruction and output; see --prompt-key and --completion-key"
            )
    if prompt_key == completion_key:
        return _pair(row, prompt_key, _turns(row, (prompt_key,), "role", "content"))
    turns = [
        turn
        for key, role in ((prompt_key, ROLES[PROMPT]), (completion_key, ROLES[COMPLETION]))
        for turn in (
            [_Turn(role, values[key], (key,))]
            if isinstance(values[key], str)
            else _turns(row, (key,), "role", "content")
        )
    ]
    return _pair(row, f"{prompt_key} and {completion_key}", turns)


def with_completion(row: JsonRow, texts: RowTexts, completion: str) -> Mapping[str, Any]:
    """The row's values with another completion in the place of the old one; the rest unchanged."""
    values = copy.deepcopy(dict(row.values))
    holder: Any = values
    for key in texts.completion_path[:-1]:
        holder = holder[key]
    holder[texts.completion_path[-1]] = completion
    return values


def _turns(row: JsonRow, path: tuple[str | int, ...], author: str, text: str) -> list[_Turn]:
    """The turns of the list at the key `path`; a turn of either form is read."""
    key = path[0]
    turns = row.values[str(key)]
    if not isinstance(turns, list) or not turns:
        raise RowsError(f"{row.where}: {key}: must be a text or a list of messages")
    read = []
    for number, turn in enumerate(turns):
        names = (author, text)
        if isinstance(turn, Mapping) and author not in turn:
            names = next((pair for pair in _CHATS.values() if pair[0] in turn), names)
        role, content = (turn.get(name) if isinstance(turn, Mapping) else None for name in names)
        parts: tuple[str | int, ...] = (names[1],)
        match content:
            case [{"type": "text", "text": str(only)}]:
                content, parts = only, (names[1], 0, "text")
        if not (isinstance(role, str) and isinstance(content, str)):
            raise RowsError(
                f"{row.where}: {key}: message {number + 1} must have a text under {names[0]!r} and one under "
                f"{names[1]!r}; calls of tools and images are not part of a row"
            )
        read.append(_Turn(_CHAT_ROLES.get(role, role), content, (*path, number, *parts)))
    return read


def _pair(row: JsonRow, key: str, turns: Sequence[_Turn]) -> RowTexts:
    """The texts of a user turn and its answer; RowsError for any other conversation."""
    roles = [turn.role for turn in turns]
    if "system" in roles:
        raise RowsError(
            f"{row.where}: {key}: has a system message, which is not part of a row; take it out of the file "
            "and give it to the recipe as train.system_prompt: {text: …}"
        )
    if roles != list(ROLES.values()):
        raise RowsError(
            f"{row.where}: {key}: has the turns {', '.join(roles)}; a row is one turn of the user and "
            "one answer of the assistant"
        )
    prompt, completion = turns
    return RowTexts(prompt.text, completion.text, completion.path)


def _instruction(row: JsonRow) -> RowTexts:
    """Alpaca's form."""
    texts = {key: row.values.get(key) or "" for key in ("instruction", "input", "output", "system")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise RowsError(f"{row.where}: {key}: must be a text")
    turns = [_Turn("system", texts["system"], ("system",))] if texts["system"] else []
    if row.values.get("history"):
        turns.append(_Turn("earlier turns", "", ("history",)))
    prompt = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    turns += [_Turn("user", prompt, ("instruction",)), _Turn("assistant", texts["output"], ("output",))]
    return _pair(row, "instruction and output", turns)


def _read_bytes(path: Path) -> bytes:
    """The content, up to a byte more than is accepted."""
    if str(path).startswith(("hf:/", "http:/", "https:/")):
        raise RowsError(f"{path}: is an address, not a file; download it, and name the file")
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise RowsError(f"{path}: is a device, not a file of rows; name a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise RowsError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RowsError(f"{path}: cannot be read: {reason}") from error
    return _bounded(content, path)


def _unpacked(content: bytes, path: Path) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return _bounded(file.read(MOST_BYTES + 1), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RowsError(f"{path}: is compressed with gzip, and cut off or damaged; fetch it again") from error


def _bounded(content: bytes, path: Path) -> bytes:
    if len(content) > MOST_BYTES:
        raise RowsError(f"{path}: holds more than {MOST_BYTES / 2**30:g} GiB; split it")
    return content


def _other_kind(content: bytes) -> str | None:
    """What a content is that no reader here is for, and the remedy; None for a text."""
    for beginning, kind in _KINDS:
        if content.startswith(beginning):
            return kind
    if content[_TAR] == b"ustar":
        return "a tar archive; unpack it, and name one file"
    if content.startswith(b"\x1f\x8b"):
        return "compressed with gzip twice; unpack it with `gunzip`"
    if content[:200].lstrip().lower().startswith(_HTML):
        return "a web page (HTML), as hubs send in place of a file that needs a log-in; fetch the raw file"
    head = content[:1024]
    nulls = head.count(0)
    if nulls and max(head[::2].count(0), head[1::2].count(0)) == nulls and 3 * nulls > len(head):
        return "UTF-16 without its mark; save it as UTF-8, such as with `iconv -f UTF-16LE -t UTF-8`"
    if nulls:
        return "no text but binary data; the formats are JSONL, a JSON list, CSV and Parquet"
    return None


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RowsError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error


def _list_rows(content: bytes, path: Path) -> list[JsonRow]:
    """The entries of a JSON list."""
    lines = [line for line in content.split(b"\n", 2)[:2] if line.strip()]
    try:
        entries = parse_json(_decoded(content, path), str(path), "the list")
    except RowsError:
        if len(lines) > 1 and all(line.lstrip()[:1] == b"[" for line in lines):
            return parse_json_lines(content, path)  # which says that lines must be objects
        raise
    rows = []
    for number, values in enumerate(entries, start=1):
        if not isinstance(values, dict):
            raise RowsError(f"{path}: entry {number}: not a JSON object; each must look like {{…}}")
        rows.append(JsonRow(f"{path}: entry {number}", values))
    if not rows:
        raise RowsError(f"{path}: no rows; the list is empty")
    return rows


def _object_rows(content: bytes, path: Path) -> list[JsonRow]:
    """The lines of JSONL; a single object over several lines is named as that."""
    first, _, rest = content.lstrip().partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        try:
            whole = json.loads(content) if rest.strip() else None
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, dict):
            _refuse_single_object(whole, path)
    except RecursionError:
        pass
    rows = parse_json_lines(content, path)
    if len(rows) == 1:
        lists = [value for value in rows[0].values.values() if isinstance(value, list)]
        if len(rows[0].values) == 1 and not _CHATS.keys() & rows[0].values.keys() and lists:
            _refuse_single_object(rows[0].values, path)
    return rows


def _refuse_single_object(values: Mapping[str, Any], path: Path) -> None:
    lists = [key for key, value in values.items() if isinstance(value, list)]
    if len(lists) == 1:
        remedy = f"its list {lists[0]!r} alone is one: `jq '.{lists[0]}'`"
    else:
        remedy = "write each row as one line: `jq -c .`"
    raise RowsError(f"{path}: a single JSON object, where a list or one object a line is needed; {remedy}")


def _csv_rows(content: bytes, path: Path) -> list[JsonRow]:
    """The records of a table whose first line names the columns."""
    text = _decoded(content, path)
    header = text.lstrip().partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    records = _csv_records(text, delimiter, path)
    (where, columns), *rest = records
    if len(columns) < 2 or not rest:
        raise RowsError(
            f"{path}: neither JSONL, a JSON list, CSV nor Parquet; it begins with {header[:40]!r}, where a "
            "row of JSONL begins with {"
        )
    if len(set(columns)) < len(columns) or not all(columns):
        raise RowsError(f"{where}: read as CSV, whose first line must name each column once")
    for where, record in rest:
        if len(record) != len(columns):
            raise RowsError(
                f"{where}: {len(record)} fields, but {len(columns)} columns ({', '.join(columns)[:80]}); "
                f"texts that contain {delimiter!r} must stand in double quotes"
            )
    return [JsonRow(where, dict(zip(columns, record, strict=True))) for where, record in rest]


def _csv_records(text: str, delimiter: str, path: Path) -> list[tuple[str, list[str]]]:
    """The records with the line each begins in; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(MOST_BYTES)
    records, line = [], 1
    try:
        for record in reader:
            if record:
                records.append((f"{path}:{line}", record))
            line = reader.line_num + 1
    except csv.Error as error:
        raise RowsError(f"{path}:{line}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return records


def _parquet_rows(content: bytes, path: Path) -> list[JsonRow]:
    try:
        records = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RowsError(f"{path}: is a Parquet file, but cut off or damaged; fetch it again") from error
    if not records:
        raise RowsError(f"{path}: no rows; the Parquet file is empty")
    return [
        JsonRow(f"{path}: row {number}", {key: _plain(value, path, key) for key, value in record.items()})
        for number, record in enumerate(records, start=1)
    ]


def _plain(value: Any, path: Path, column: str) -> Any:
    """A value of a Parquet column as JSON has it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal() | datetime() | date() | time():
            return str(value)
        case dict():
            return {str(key): _plain(each, path, column) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each, path, column) for each in value]
    raise RowsError(
        f"{path}: column {column!r} holds {type(value).__name__}, which JSON cannot; leave it out of the file"
    )
