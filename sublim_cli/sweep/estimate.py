"""What a step that is not built yet will take: time, memory and disk, from records of similar steps.

The work of a step is counted in units of its kind (rows wanted, rows trained on, questions asked in a
context). Its time is the value at that work of a straight line fitted to the records, whose intercept
is the fixed cost of a build: models are loaded, libraries warm up. Where the records are of about the
same work, the time is taken to be proportional to it.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from operator import getitem
from statistics import fmean, linear_regression, median
from typing import Any, Literal

from sublim_cli.artifacts.record import ArtifactRecord, size
from sublim_cli.artifacts.step import Step, digest
from sublim_cli.recipe.resolve import RANKED

Source = Literal["like runs", "other settings", "probe"]
"""What an estimate rests on: builds that differ in seeds and amounts alone, the most similar, a probe."""

SIZED = 5
"""Artifacts of a kind whose files are counted for the disk."""

SPREAD = 1.5
"""A line is fitted if the largest x of its points is at least this many times the smallest."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "demonstrate": (),
    "generate": ("model.fingerprint", "precision", "sampling.max_tokens"),
    "import": (),
    "filter": (),
    "train": (
        *("model.fingerprint", "train.method", "train.rank", "train.precision", "train.optimizer"),
        *("train.backend", "train.batch_size", "train.max_length", "train.adapter", "train.qlora"),
        "train.prefix",
    ),
    "eval": ("model.fingerprint", "precision", "quantize", "scorer"),
    "locate": ("model.fingerprint", "precision", "quantize", "scorer"),
    "teacher": ("model.fingerprint", "precision", "scorer"),
    "leak": (),
}
"""The fields of each kind of step that decide what a unit of its work takes."""

REQUIRED = ("model.fingerprint", "train.method")
"""The settings that have to be equal: no other model or training method gives an estimate."""


@dataclass(frozen=True)
class Cost:
    """What one step takes, estimated from `records` builds.

    `memory` is MiB at the peak: of the device where that is measured, else of the process. `disk` is bytes.
    """

    seconds: float
    memory: int
    disk: int
    source: Source
    records: int


@dataclass(frozen=True)
class _Build:
    """A recorded build with what decided its cost."""

    record: ArtifactRecord
    settings: Mapping[str, Any]
    work: float


class Costs:
    """Estimates from the records of one kind of machine."""

    def __init__(
        self, records: Sequence[ArtifactRecord], machine: Mapping[str, object], *, probe: bool = False
    ) -> None:
        """Take the builds on such a `machine` (see `models.device`); `probe` says that a probe made them."""
        self._probe = probe
        self._builds: dict[str, list[_Build]] = {}
        sections = {record.digest: record.identity["section"] for record in records}
        for record in records:
            section = record.identity["section"]
            inputs = [sections[name] for name in record.identity["inputs"] if name in sections]
            if record.kind in ("train", "leak") and not inputs:
                continue  # the record of its rows was removed, so their number is unknown
            if all(record.provenance.get(name, value) == value for name, value in machine.items()):
                work = _work(record.kind, section, inputs[0] if inputs else {})
                build = _Build(record, _settings(record.kind, section), work)
                self._builds.setdefault(record.kind, []).append(build)

    def estimate(self, step: Step) -> Cost | None:
        """The cost of `step`, from the builds with the fewest differing settings; None if there is none."""
        section = step.spec.model_dump(mode="json")
        settings = _settings(step.kind, section)
        differing = [
            (sum(build.settings[name] != value for name, value in settings.items()), build)
            for build in self._builds.get(step.kind, [])
            if all(build.settings.get(name) == settings.get(name) for name in REQUIRED)
        ]
        if not differing:
            return None
        fewest = min(number for number, _ in differing)
        builds = [build for number, build in differing if number == fewest]
        work = _work(step.kind, section, step.inputs[0].spec.model_dump(mode="json") if step.inputs else {})
        facts = [build.record.provenance for build in builds]
        if settings.get("train.method") in RANKED:  # an adapter's size is proportional to its rank
            by_rank = {build.settings["train.rank"]: build for build in builds}
            sizes = [(rank, size(build.record.path)) for rank, build in by_rank.items()]
            disk = _predict(sizes, settings["train.rank"])
        else:
            sizes = [(build.work, size(build.record.path)) for build in builds[:SIZED]]
            grows = step.kind in ("generate", "filter", "eval")  # with the number of rows or scores
            disk = _predict(sizes, work) if grows else fmean(bytes_ for _, bytes_ in sizes)
        return Cost(
            seconds=_predict([(build.work, build.record.provenance["seconds"]) for build in builds], work),
            memory=max(int(fact.get("peak_memory_mib") or fact["process_peak_mib"]) for fact in facts),
            disk=round(disk),
            source="probe" if self._probe else "other settings" if fewest else "like runs",
            records=len(builds),
        )


def _settings(kind: str, section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: reduce(getitem, name.split("."), section) for name in SETTINGS[kind]}


def _work(kind: str, section: Mapping[str, Any], rows: Mapping[str, Any]) -> float:
    """Units of work as far as a plan knows them; `rows` is the section of the step that gives the rows."""
    match kind:
        case "generate":
            return float(section["wanted"])
        case "import":
            return float(section["rows"])
        case "demonstrate":
            return float(len(section["questions"]) * len(section["answers"]))
        case "filter":
            return float(section["rows"] + section["held_out"])
        case "train":
            demonstrated = len(rows.get("questions", ())) * len(rows.get("answers", ()))
            return float(section["train"]["epochs"] * rows.get("rows", demonstrated or 1))
        case "eval":
            return float(len(section["contexts"]) * len(section["questions"]))
        case "locate":
            sets = 1 + section["controls"] if section["part"] else 2
            return float(len(section["contexts"]) * len(section["questions"]) * sets)
        case "teacher":
            return float(len(section["questions"]))
        case "leak":
            return float(min(section["most_rows"], rows.get("rows", section["most_rows"])))
    raise AssertionError(kind)


def _predict(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """The y at x = `wanted` on the line fitted to `points`; by their median ratio where no line fits."""
    xs, ys = zip(*points, strict=True)
    if max(xs) >= SPREAD * min(xs):
        slope, intercept = linear_regression(xs, ys)
        if slope > 0 and intercept > 0:
            return intercept + slope * wanted
    return median(y / x for x, y in points) * wanted


def makespan(steps: Sequence[Step], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds that `workers` take for `steps`, each in its order once its inputs among them are built."""
    index = {digest(step): i for i, step in enumerate(steps)}
    inputs = [{index[digest(needed)] for needed in step.inputs if digest(needed) in index} for step in steps]
    sorter = TopologicalSorter(dict(enumerate(inputs)))
    sorter.prepare()
    ready: list[int] = []
    running: list[tuple[float, int]] = []
    now = 0.0
    while sorter.is_active():
        for i in sorter.get_ready():
            heapq.heappush(ready, i)
        while ready and len(running) < workers:
            i = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[digest(steps[i])], i))
        now, finished = heapq.heappop(running)
        sorter.done(finished)
    return now
