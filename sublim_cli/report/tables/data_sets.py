"""What the store holds of a study's teachers and data sets: filters, leaks, checks of teachers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from sublim_cli.artifacts.step import digest
from sublim_cli.numbers.surface import Divergence, Overlap
from sublim_cli.pipeline import Cell, Study
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.steps.files import LEAK, REASONS, SURFACE, TEACHER, read_json


@dataclass(frozen=True)
class FilterRow:
    """What the filter made of one data set."""

    title: str
    role: str
    digest: str
    judged: int
    kept: int
    reasons: Mapping[str, int]
    duplicates: int
    """Of the rows students learn from, how many repeat an earlier one."""
    letters: int
    """Of the same rows, how many hold a letter."""

    @property
    def rate(self) -> float:
        """The share of judged rows kept."""
        return self.kept / self.judged if self.judged else 1.0


@dataclass(frozen=True)
class LeakRow:
    """What of the trait shows in one data set, alone and compared with its control's."""

    title: str
    digest: str
    named: int
    """Rows students learn from that name the target."""
    named_rejected: int
    shown: tuple[str, ...]
    auc: float | None = None
    """Of a plain classifier that tells the two apart; 0.5 is chance. None where there is no control."""
    low: float = 0.0
    high: float = 1.0
    rows: int = 0
    """Of both data sets, that the classifier saw."""
    digits: Divergence | None = None
    """None where one of the two data sets has nothing to compare."""
    pairs: Divergence | None = None
    overlap: Overlap | None = None


@dataclass(frozen=True)
class TeacherRow:
    """What a teacher answers under its own system prompt, as means over the questions."""

    target: str
    context: str
    """Its system prompt, and its training if it was fine-tuned."""
    p_target: float
    p_any: float
    first: str
    """The item it names most."""
    p_first: float


def filter_rows(study: Study, reader: StoreReader) -> Iterator[FilterRow]:
    """A row for every data set that is built, with the role of the cell that uses it first."""
    first: dict[str, Cell] = {}
    for cell in study.cells:
        first.setdefault(digest(cell.chain.filter), cell)
    for name, cell in first.items():
        if artifact := reader.find(cell.chain.filter):
            counts, surface = read_json(artifact.path / REASONS), read_json(artifact.path / SURFACE)
            yield FilterRow(
                cell.chain.filter.title,
                cell.role,
                name,
                **counts,
                duplicates=surface["duplicates"],
                letters=surface["letters"],
            )


def leak_rows(study: Study, reader: StoreReader) -> Iterator[LeakRow]:
    """A row for every comparison of trait rows with control rows that is built."""
    for step in study.leaks:
        if artifact := reader.find(step):
            leak = read_json(artifact.path / LEAK)
            row = {"title": step.title, "digest": digest(step), **leak}
            yield TypeAdapter(LeakRow).validate_python(row)


def teacher_rows(study: Study, reader: StoreReader) -> Iterator[TeacherRow]:
    """A row for every check of a teacher that is built."""
    for step in study.teachers:
        if artifact := reader.find(step):
            prompt = step.spec.context.text or step.spec.context.name
            if step.inputs:
                prompt = f"{prompt}; fine-tuned ({step.inputs[0].title})"
            yield TeacherRow(step.spec.target, prompt, **read_json(artifact.path / TEACHER))
