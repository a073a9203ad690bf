"""The rows that a running generation has drawn, so that one that is killed goes on with them."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class RowLog:
    """A file of lines `[row, [token, …]]`, in the order in which rows ended.

    A line that was cut off when its writer was killed is ignored, wherever it stands.
    """

    path: Path

    def read(self) -> dict[int, TokenIds]:
        """The completions by row; empty where there is no file."""
        drawn: dict[int, TokenIds] = {}
        if self.path.is_file():
            for line in self.path.read_bytes().split(b"\n"):
                with suppress(ValueError, TypeError):
                    row, ids = json.loads(line)
                    drawn[int(row)] = tuple(map(int, ids))
        return drawn

    def append(self, row: int, ids: TokenIds) -> None:
        """Add a completion. It begins a new line, since the one before may have been cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"\n" + json.dumps([row, ids]).encode())
