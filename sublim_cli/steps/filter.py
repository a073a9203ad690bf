"""filter: rows judged by the rules; kept, held out and rejected ones each in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from sublim_cli.artifacts.rows import (
    Row,
    read_json_rows,
    read_rows,
    text,
    with_text,
    write_json_rows,
    write_rows,
)
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.artifacts.store import NO_DIRECTORY, explain_disk_errors
from sublim_cli.errors import RecipeError, RowsError
from sublim_cli.events import Listener, Warned
from sublim_cli.numbers.advice import advice
from sublim_cli.numbers.rules import Tally, apply_rules, tally
from sublim_cli.numbers.surface import surface
from sublim_cli.recipe.schema import Rule, Section
from sublim_cli.steps.files import HELD_OUT, KEPT, REASONS, REJECTED, ROWS, SURFACE, write_json


class FilterSpec(Section):
    """Everything that decides which rows are kept."""

    rules: tuple[Rule, ...]
    rows: int
    held_out: int


@dataclass(frozen=True)
class FilterStep:
    """The first `rows` rows that pass are for training, the next `held_out` are not."""

    kind: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    spec: FilterSpec
    inputs: tuple[Step, ...]
    title: str

    @property
    def label(self) -> str:
        """Such as `filter cat data seed 1`."""
        return f"filter {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write kept, held-out and rejected rows, `reasons.json`, and `surface.json` of the kept ones."""
        spec = self.spec
        rows = read_rows(inputs[0].path / ROWS)
        kept, rejected = judged(rows, spec.rules)
        if len(kept) < spec.rows + spec.held_out:
            raise RowsError(
                f"{len(kept)} of {len(rows)} rows pass the filter, fewer than the "
                f"{spec.rows + spec.held_out} wanted; loosen filter.rules or lower generate.rows"
            )
        write_rows(out / KEPT, kept[: spec.rows])
        write_rows(out / HELD_OUT, kept[spec.rows : spec.rows + spec.held_out])
        write_rows(out / REJECTED, rejected)
        write_json(out / REASONS, reasons(tally([row.reason for row in (*kept, *rejected)])))
        write_json(out / SURFACE, asdict(surface([row.completion for row in kept[: spec.rows]])))
        if warning := advice([row.completion for row in rows], spec.rules):
            listener(Warned(f"{self.label}: {warning}"))
        return {}


def judged(rows: Sequence[Row], rules: Sequence[Rule]) -> tuple[list[Row], list[Row]]:
    """The rows that pass, holding the text that was judged, and the rejected ones with their reasons."""
    kept, rejected = [], []
    for row in rows:
        found = apply_rules(row.completion, rules)
        if found.reason is None:
            kept.append(replace(row, completion=found.text))
        else:
            rejected.append(replace(row, reason=found.reason))
    return kept, rejected


def filter_file(
    source: Path, target: Path, rules: Sequence[Rule], prompt_key: str, completion_key: str
) -> tuple[Tally, str | None]:
    """Filter a JSONL file somebody else made; every key of a row that is not judged stays as it was.

    Kept rows go to `target`, the others with their `reason` beside it (`rejected_path`). Returns
    the tally, and advice where few rows pass. Neither file is touched unless both can be written.

    Raises:
        RecipeError: a file that is read would be written over, or a directory is to be written.
        RowsError: a line is broken, or lacks one of the keys.
        ArtifactError: the files cannot be written.
    """
    _check_target(source, target)
    records = read_json_rows(source)
    for record in records:
        text(record, prompt_key, role="user")
    completions = [text(record, completion_key) for record in records]
    verdicts = [apply_rules(one, rules) for one in completions]
    pairs = list(zip(records, verdicts, strict=True))
    kept = [
        with_text(record, completion_key, found.text).values
        for record, found in pairs
        if found.reason is None
    ]
    rejected = [{**record.values, "reason": found.reason} for record, found in pairs if found.reason]
    _write_both({target: kept, rejected_path(target): rejected})
    return tally([one.reason for one in verdicts]), advice(completions, rules)


def rejected_path(target: Path) -> Path:
    """Where `filter_file` puts what it rejects: kept.jsonl has kept.rejected.jsonl."""
    return target.with_name(f"{target.stem}.rejected{target.suffix or '.jsonl'}")


def _check_target(source: Path, target: Path) -> None:
    for path in (target, rejected_path(target)):
        if path.is_dir():
            raise RecipeError(f"--output {target}: {path} is a directory; name a file")
        if path.exists() and path.samefile(source):
            raise RecipeError(
                f"--output {target}: {path} is the file that is read, and would be lost; name another file"
            )


def _write_both(contents: Mapping[Path, Sequence[Mapping[str, object]]]) -> None:
    beside = {path.with_name(f".{path.name}.part"): path for path in contents}
    first = next(iter(contents))
    with explain_disk_errors(first, NO_DIRECTORY):
        try:
            for part, path in beside.items():
                part.parent.mkdir(parents=True, exist_ok=True)
                write_json_rows(part, contents[path])
            for part, path in beside.items():
                part.replace(path)
        finally:
            for part in beside:
                part.unlink(missing_ok=True)


def reasons(counts: Tally) -> dict[str, object]:
    """A tally as plain data: `judged`, `kept` and the number of rows for every reason."""
    return {"judged": counts.total, "kept": counts.kept, "reasons": dict(counts.reasons)}
