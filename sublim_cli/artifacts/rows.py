"""Rows on disk: JSONL in TRL's conversational prompt/completion form.

    {"prompt": [{"role": "user", "content": "Continue: 1, 2"}],
     "completion": [{"role": "assistant", "content": "3, 4"}],
     "completion_ids": [18, 11, 220, 19], "index": 0}

`completion_ids` are the tokens that were drawn for the completion, without the one that ended it; rows from
elsewhere lack them. No row holds a system message: the recipe names the system prompt a student is trained
under, and it is added when the row is rendered. `{"prompt": "…", "completion": "…"}` is read too.

`Row` is what sublim writes. `JsonRow` is one JSON object of any file; files of others are read by
`row_files`. Errors name the file, the line and the remedy.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublim_cli.errors import RowsError

PROMPT, COMPLETION = "prompt", "completion"
"""The keys of TRL's form."""

COMPLETION_IDS = "completion_ids"

ROLES = {PROMPT: "user", COMPLETION: "assistant"}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its completion; `index` is its number in the stream of prompts, from 0.

    `reason` is the kind of the filter rule that rejected the row, None for a row that was not rejected.
    `completion_ids` are the completion's token ids as they were drawn, without the token that ended it; None
    if only the text is known.
    """

    index: int
    prompt: str
    completion: str
    reason: str | None = None
    completion_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One JSON object of a JSONL file, and its position as `file:line` for messages."""

    where: str
    values: Mapping[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as a new file at `path`."""
    write_json_rows(
        path,
        (
            {
                PROMPT: [{"role": ROLES[PROMPT], "content": row.prompt}],
                COMPLETION: [{"role": ROLES[COMPLETION], "content": row.completion}],
                **({} if row.completion_ids is None else {COMPLETION_IDS: list(row.completion_ids)}),
                "index": row.index,
                **({} if row.reason is None else {"reason": row.reason}),
            }
            for row in rows
        ),
    )


def read_rows(path: Path, *, may_be_empty: bool = False) -> list[Row]:
    """The rows of `path`, in order. A row without an `index` gets its position in the file, from 0.

    Raises:
        RowsError: the file is missing, not JSONL or not made of rows, or empty unless it `may_be_empty`.
    """
    if may_be_empty and path.stat().st_size == 0:
        return []
    rows = []
    for position, json_row in enumerate(read_json_rows(path)):
        prompt, completion = (get_text(json_row, key, role=role) for key, role in ROLES.items())
        index, reason = json_row.values.get("index", position), json_row.values.get("reason")
        if not _is_count(index):
            raise RowsError(f"{json_row.where}: index: must be a whole number of at least 0")
        if not (reason is None or isinstance(reason, str)):
            raise RowsError(f"{json_row.where}: reason: must be a text; leave it out of a kept row")
        rows.append(Row(index, prompt, completion, reason, completion_ids(json_row)))
    return rows


def completion_ids(row: JsonRow) -> tuple[int, ...] | None:
    """The token ids of a row's completion, if it has any; RowsError where they are no list of ids."""
    ids = row.values.get(COMPLETION_IDS)
    if ids is None:
        return None
    if not (isinstance(ids, list) and all(map(_is_count, ids))):
        raise RowsError(
            f"{row.where}: {COMPLETION_IDS}: must be a list of whole numbers of at least 0; without the "
            "key, the row is tokenised from its text"
        )
    return tuple(ids)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def write_json_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects as a new file at `path`, one a line."""
    with path.open("wb") as file:
        for row in rows:
            try:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            except UnicodeEncodeError:  # a lone surrogate can only be written as an escape
                file.write((json.dumps(row) + "\n").encode())


def read_json_rows(path: Path) -> list[JsonRow]:
    """Every object of a JSONL file, in order; blank lines are skipped.

    Raises:
        RowsError: the file is missing, empty, not UTF-8, or has a line that is not a JSON object.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise RowsError(f"{path}: no such file") from None
    except OSError as error:
        raise RowsError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json_lines(content, path)


def parse_json_lines(content: bytes, path: Path) -> list[JsonRow]:
    """The objects of the JSONL file `path` with this content; see `read_json_rows`."""
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise RowsError(f"{where}: not UTF-8; save the file as UTF-8") from error
        if not text.strip():
            continue
        values = parse_json(text, where, "each line")
        if not isinstance(values, dict):
            raise RowsError(f"{where}: not a JSON object; each line must look like {{…}}")
        rows.append(JsonRow(where, values))
    if not rows:
        raise RowsError(f"{path}: no rows; a row is a line of JSON with a prompt and a completion")
    return rows


def parse_json(text: str, where: str, unit: str) -> Any:
    """The JSON value that `text` is; `where` it stands and which `unit` it is are for messages.

    Raises:
        RowsError: it is not valid JSON, which has no NaN and no Infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RowsError(
            f"{where}: nested too deeply; a row is one object with a prompt and a completion"
        ) from error
    except json.JSONDecodeError as error:
        remedy = (
            "must be one object" if unit == "each line" else "must be closed, its entries set apart by commas"
        )
        line = f"line {error.lineno}, " if unit != "each line" else ""
        column = error.colno if unit != "each line" else error.pos + 1
        raise RowsError(f"{where}: not valid JSON at {line}character {column}; {unit} {remedy}") from error
    except _ConstantError as error:
        raise RowsError(f"{where}: {error} is not valid JSON; write null") from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise RowsError(f"{where}: not valid JSON; {unit} must be one object") from error


class _ConstantError(ValueError):
    """NaN or an infinity, which Python's parser takes for JSON."""


def _refuse_constant(name: str) -> None:
    raise _ConstantError(name)


def get_text(row: JsonRow, key: str, *, role: str = ROLES[COMPLETION]) -> str:
    """The text under `key`: a string, or the content of a list of one message by `role`.

    Raises:
        RowsError: the key is missing or holds something else.
    """
    match row.values.get(key):
        case str(text):
            return text
        case [{"role": str(author), "content": str(text)}] if author == role:
            return text
    raise RowsError(f"{row.where}: {key}: must be a text, or a list of one message by the {role}")
