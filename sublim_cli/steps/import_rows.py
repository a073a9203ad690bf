"""import: rows of a file that others wrote, in the place of rows that a teacher generates."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.row_files import read_row_file, row_texts
from sublim_cli.artifacts.rows import Row, completion_ids, write_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.errors import RowsError
from sublim_cli.events import Listener
from sublim_cli.numbers.rules import apply_rules
from sublim_cli.recipe.schema import Rule, Section
from sublim_cli.steps.files import ROWS


class ImportSpec(Section):
    """The content of the file; its name and place decide nothing."""

    sha256: str
    rows: int
    """How many there are."""


@dataclass(frozen=True)
class ImportStep(Step):
    """The rows of the file `source`, in their order. Those that sublim wrote keep their token ids."""

    kind: ClassVar[str] = "import"
    version: ClassVar[int] = 1
    spec: ImportSpec
    source: Path = Path()
    """Where the file lies."""

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `rows.jsonl`.

        Raises:
            RowsError: the file is gone, or has changed since the recipe was read.
        """
        content = read_import(self.source)
        if content.sha256 != self.spec.sha256:
            raise RowsError(f"{self.source}: has changed since the recipe was read; run the command again")
        write_rows(out / ROWS, content.rows)
        return {"file": self.source.name}


@dataclass(frozen=True)
class ImportedRows:
    """The rows of a file, and the SHA-256 of its bytes in hexadecimal digits."""

    sha256: str
    rows: tuple[Row, ...]


def read_import(path: Path) -> ImportedRows:
    """Read a file of rows; see `row_files`.

    Raises:
        RowsError: it cannot be read, or a row has another form.
    """
    return _read(path, *_stamp(path))


def kept_rows(path: Path, rules: tuple[Rule, ...]) -> tuple[Row, ...]:
    """The rows of a file that pass the filter, in their order and as they were judged; see `read_import`."""
    return _kept(path, *_stamp(path), rules)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise RowsError(f"{path}: cannot be read: {error.strerror}") from error
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=8)  # every cell of a study reads its file
def _read(path: Path, _modified: int, _size: int) -> ImportedRows:
    rows = []
    for index, row in enumerate(read_row_file(path)):
        texts = row_texts(row)
        rows.append(Row(index, texts.prompt, texts.completion, completion_ids=completion_ids(row)))
    return ImportedRows(hashlib.sha256(path.read_bytes()).hexdigest(), tuple(rows))


@lru_cache(maxsize=8)
def _kept(path: Path, modified: int, size: int, rules: tuple[Rule, ...]) -> tuple[Row, ...]:
    rows = []
    for row in _read(path, modified, size).rows:
        result = apply_rules(row.completion, rules)
        if result.reason is None:
            ids = row.completion_ids if result.text == row.completion else None
            rows.append(replace(row, completion=result.text, completion_ids=ids))
    return tuple(rows)
