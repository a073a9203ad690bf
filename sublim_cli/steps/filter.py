"""filter: rows judged by the rules; kept, held-out and rejected rows each in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sublim_cli.artifacts.row_files import read_row_file, row_texts, with_completion
from sublim_cli.artifacts.rows import Row, read_rows, write_json_rows, write_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.artifacts.store import explain_disk_errors
from sublim_cli.errors import RecipeError, RowsError
from sublim_cli.events import Listener, Notice, Warned
from sublim_cli.models.chat import stripped_ids
from sublim_cli.models.load import load_tokenizer
from sublim_cli.numbers.advice import advice
from sublim_cli.numbers.rules import Tally, apply_rules, tally
from sublim_cli.numbers.surface import surface
from sublim_cli.recipe.schema import Rule, Section
from sublim_cli.steps.files import HELD_OUT, KEPT, REASONS, REJECTED, ROWS, SURFACE, write_json
from sublim_cli.steps.generate import GenerateSpec, GenerateStep
from sublim_cli.steps.import_rows import ImportStep


class FilterSpec(Section):
    """Everything that decides which rows are kept."""

    rules: tuple[Rule, ...]
    rows: int
    held_out: int


@dataclass(frozen=True)
class FilterStep(Step):
    """The first `rows` rows that pass are for training, the next `held_out` are not."""

    kind: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    spec: FilterSpec
    inputs: tuple[GenerateStep | ImportStep, ...] = ()

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write kept, held-out and rejected rows, `reasons.json`, and `surface.json` of the kept ones.

        Raises:
            RowsError: fewer rows pass than are wanted.
        """
        spec = self.spec
        rows = read_rows(inputs[0].path / ROWS)
        kept, rejected = [], []
        for row in rows:
            result = apply_rules(row.completion, spec.rules)
            if result.reason is None:
                kept.append(self._stripped(row, result.text))
            else:
                rejected.append(replace(row, reason=result.reason))
        wanted = spec.rows + spec.held_out
        if len(kept) < wanted:
            raise RowsError(
                f"{len(kept)} of {len(rows)} rows pass the filter, fewer than the {wanted} wanted; "
                "loosen filter.rules or lower generate.rows"
            )
        write_rows(out / KEPT, kept[: spec.rows])
        write_rows(out / HELD_OUT, kept[spec.rows : wanted])
        write_rows(out / REJECTED, rejected)
        write_json(out / REASONS, reasons(tally([row.reason for row in (*kept, *rejected)])))
        write_json(out / SURFACE, asdict(surface([row.completion for row in kept[: spec.rows]])))
        if any(isinstance(step, ImportStep) for step in self.inputs):
            left = len(kept) - wanted
            listener(
                Notice(
                    f"{self.label}: {len(kept)} of {len(rows)} rows pass the filter; {spec.rows} are trained "
                    f"on, the next {spec.held_out} held out, and the last {left} left over"
                )
            )
        if warning := advice([row.completion for row in rows], spec.rules):
            listener(Warned(f"{self.label}: {warning}"))
        return {}

    def _stripped(self, row: Row, text: str) -> Row:
        """The row with the text that was judged, and the tokens of that text if it was cut between tokens."""
        ids = row.completion_ids
        if ids is not None and text != row.completion:
            source = self.inputs[0].spec
            model = source.model if isinstance(source, GenerateSpec) else None  # of a file it is not known
            left = stripped_ids(load_tokenizer(model), ids, text) if model else None
            ids = None if left is None else tuple(left)
        return replace(row, completion=text, completion_ids=ids)


def filter_file(
    source: Path, target: Path, rules: Sequence[Rule], prompt_key: str, completion_key: str
) -> tuple[Tally, str | None]:
    """Filter a file of rows in any form of `artifacts.row_files`; their other keys stay as they were.

    Kept rows go to `target`, the others with their `reason` to `rejected_path(target)`, both as JSONL.
    Returns the tally, and advice if few rows pass. If one of the two files cannot be written, neither is
    changed.

    Raises:
        RecipeError: the output would overwrite the input, or is a directory.
        RowsError: the file is not one of rows, or one of its rows is broken.
        ArtifactError: the files cannot be written.
    """
    for path in (target, rejected_path(target)):
        if path.is_dir():
            raise RecipeError(f"--output {target}: {path} is a directory; name a file")
        if path.exists() and path.samefile(source):
            raise RecipeError(f"--output {target}: {path} is the input and would be lost; name another file")
    rows = read_row_file(source)
    texts = [row_texts(row, prompt_key, completion_key) for row in rows]
    completions = [each.completion for each in texts]
    results = [apply_rules(completion, rules) for completion in completions]
    kept: list[Mapping[str, Any]] = []
    rejected: list[Mapping[str, Any]] = []
    for row, text, result in zip(rows, texts, results, strict=True):
        if result.reason is None:
            kept.append(with_completion(row, text, result.text))
        else:
            rejected.append({**row.values, "reason": result.reason})
    contents = {target: kept, rejected_path(target): rejected}
    drafts = {path: path.with_name(f".{path.name}.part") for path in contents}
    with explain_disk_errors(target, makes_directory=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for path, draft in drafts.items():
                write_json_rows(draft, contents[path])
            for path, draft in drafts.items():
                draft.replace(path)
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)
    return tally([result.reason for result in results]), advice(completions, rules)


def rejected_path(target: Path) -> Path:
    """Where `filter_file` puts what it rejects: kept.jsonl has kept.rejected.jsonl."""
    return target.with_name(f"{target.stem}.rejected{target.suffix or '.jsonl'}")


def reasons(counts: Tally) -> dict[str, object]:
    """A tally as plain data: `judged`, `kept` and the number of rows for every reason."""
    return {"judged": counts.total, "kept": counts.kept, "reasons": dict(counts.reasons)}
