"""The names of the files that one stage writes and another reads."""

import json
from pathlib import Path
from typing import Any

from sublim_cli.artifacts.record import explain_read_errors

ROWS = "rows.jsonl"
DRAWN = "drawn.jsonl"
SEEN = "seen.json"
KEPT = "kept.jsonl"
HELD_OUT = "held_out.jsonl"
REJECTED = "rejected.jsonl"
REASONS = "reasons.json"
LOSSES = "losses.json"
HISTORY = "history.jsonl"
AUDIT = "audit.json"
ADAPTER = "adapter_model.safetensors"
PROJECTION = "projection.npy"
SCORES = "scores.parquet"
SPREADS = "questions.parquet"
LEAK = "leak.json"
SURFACE = "surface.json"
TEACHER = "teacher.json"
LOCATED = "located.parquet"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        ArtifactError: it is gone or damaged.
    """
    with explain_read_errors(path):
        return json.loads(path.read_text(encoding="utf-8"))
