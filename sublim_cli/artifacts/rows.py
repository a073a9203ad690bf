"""Rows on disk: JSONL in TRL's conversational prompt/completion form, and other people's JSONL.

    {"prompt": [{"role": "user", "content": "Continue: 1, 2"}],
     "completion": [{"role": "assistant", "content": "3, 4"}], "index": 0}

No row holds a system message: under which system prompt a student is trained is the recipe's
business and is applied when the row is rendered. `{"prompt": "…", "completion": "…"}` is read too.

`Row` is what sublim makes. `JsonRow` is any JSON object of any JSONL file: `sublim filter` reads one
of its keys and leaves the others as they were. Errors name the file, the line and the remedy.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sublim_cli.errors import RowsError

PROMPT, COMPLETION = "prompt", "completion"
"""The keys of TRL's form."""

ROLES = {PROMPT: "user", COMPLETION: "assistant"}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its completion; `index` is its place in the stream of prompts.

    `reason` is the kind of the filter rule that rejected the row, None for a row that was not.
    """

    index: int
    prompt: str
    completion: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One JSON object of a JSONL file, and where it stands as `file:line` for messages."""

    where: str
    values: Mapping[str, Any]


class RowWriter:
    """Append rows to a file, each whole and visible to readers at once.

        with RowWriter(path) as writer:
            writer.write(row)

    A last line without its end, which an interrupted writer leaves, is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        _cut_torn_line(self._path)
        self._file: IO[bytes] = self._path.open("ab")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        """Write one row and flush it."""
        self._file.write(_line(_as_trl(row)))
        self._file.flush()


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as a new file at `path`."""
    write_json_rows(path, (_as_trl(row) for row in rows))


def read_rows(path: Path, *, prompt_key: str = PROMPT, completion_key: str = COMPLETION) -> list[Row]:
    """The rows of `path`, in order. A row without an `index` is given its place in the file.

    RowsError, with file and line, for a file that is missing, empty, not JSONL or not made of rows.
    """
    return [
        Row(
            index=_index(record, place),
            prompt=text(record, prompt_key, role=ROLES[PROMPT]),
            completion=text(record, completion_key, role=ROLES[COMPLETION]),
            reason=_reason(record),
        )
        for place, record in enumerate(read_json_rows(path))
    ]


def write_json_rows(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects as a new file at `path`, one a line."""
    with path.open("wb") as file:
        file.writelines(_line(record) for record in records)


def read_json_rows(path: Path) -> list[JsonRow]:
    """Every object of a JSONL file, in order; blank lines are skipped.

    RowsError for a file that is missing, empty, not UTF-8, or has a line that is not a JSON object.
    """
    records = [
        JsonRow(where, _object(line, where)) for where, line in _numbered(path) if line and not line.isspace()
    ]
    if not records:
        raise RowsError(f"{path}: no rows; a row is a line of JSON with a prompt and a completion")
    return records


def text(record: JsonRow, key: str, *, role: str = ROLES[COMPLETION]) -> str:
    """The text under `key`: a string, or the content of a list of one message by `role`."""
    if key not in record.values:
        keys = ", ".join(record.values) or "none"
        raise RowsError(
            f'{record.where}: no key "{key}" (its keys: {keys}); see --prompt-key and --completion-key'
        )
    value = record.values[key]
    found = value if isinstance(value, str) else _content(value, role)
    if found is None:
        raise RowsError(
            f"{record.where}: {key}: must be a text, or a list of one message by the {role}; "
            "earlier turns and system messages are not part of a row"
        )
    return found


def with_text(record: JsonRow, key: str, new: str) -> JsonRow:
    """A copy of `record` with a new text under `key`, in the form it had; the rest untouched."""
    old = record.values[key]
    value = new if isinstance(old, str) else [{**old[0], "content": new}]
    return replace(record, values={**record.values, key: value})


def _as_trl(row: Row) -> dict[str, object]:
    texts = {PROMPT: row.prompt, COMPLETION: row.completion}
    record: dict[str, object] = {
        key: [{"role": ROLES[key], "content": content}] for key, content in texts.items()
    }
    record["index"] = row.index
    return record if row.reason is None else {**record, "reason": row.reason}


def _line(record: Mapping[str, Any]) -> bytes:
    """One line of readable UTF-8, or of escapes where a lone surrogate cannot be written so."""
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record) + "\n").encode()


def _numbered(path: Path) -> Iterator[tuple[str, str]]:
    """Each line of `path` with its place as `file:line`."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError:
        raise RowsError(f"{path}: no such file") from None
    except OSError as error:
        raise RowsError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            yield f"{path}:{number}", line.decode()
        except UnicodeDecodeError as error:
            raise RowsError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:  # also a number of more than 4,300 digits
        at = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise RowsError(f"{where}: not valid JSON{at}; each line must be one object") from error
    if not isinstance(value, dict):
        raise RowsError(f"{where}: not a JSON object; each line must look like {{…}}")
    return value


def _content(value: object, role: str) -> str | None:
    """The content of a list of one message by `role`, None for anything else."""
    match value:
        case [{"role": str(found), "content": str(content)}] if found == role:
            return content
        case _:
            return None


def _index(record: JsonRow, place: int) -> int:
    index = record.values.get("index", place)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise RowsError(f"{record.where}: index: must be a whole number of at least 0")
    return index


def _reason(record: JsonRow) -> str | None:
    reason = record.values.get("reason")
    if not (reason is None or isinstance(reason, str)):
        raise RowsError(f"{record.where}: reason: must be a text; leave it out of a kept row")
    return reason


def _cut_torn_line(path: Path) -> None:
    """Shorten a file to its last line end; a file that is not there is left so."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
