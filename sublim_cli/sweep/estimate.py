"""What a step that is not built yet will take: time, memory and disk, from records of like steps.

A step's work is counted in units of its kind (batches of rows drawn, rows trained on, questions asked in a
context). Its seconds are taken to grow with them in a straight line, after a start that is paid once: models
are loaded, libraries warm up. Where the records differ enough in work the start is measured; where they do
not, all of the time is taken to grow.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from sublim_cli.artifacts.record import ArtifactRecord, size
from sublim_cli.artifacts.step import Step, digest
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.steps.generate import BATCH

Source = Literal["like runs", "other settings", "probe"]
"""Builds that differ in seeds and amounts alone; the nearest of the same model; those of a probe."""

LOOKED_AT = 5
"""Artifacts whose files are counted for the disk; more of them would say the same."""

APART = 1.5
"""The largest work has to be this many times the smallest before a line is put through them."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "generate": ("precision", "sampling.max_tokens"),
    "filter": (),
    "train": (
        *("train.method", "train.rank", "train.precision", "train.optimizer", "train.backend"),
        *("train.batch_size", "train.max_length", "train.adapter", "train.qlora", "train.prefix"),
    ),
    "eval": ("precision", "quantize", "scorer"),
    "locate": ("precision", "quantize", "scorer"),
    "teacher": ("precision", "scorer"),
    "leak": (),
}
"""Fields that decide, beside the model, what a unit of work takes."""

METHOD = "train.method"
"""The setting that no other value of it can stand in for: full fine-tuning is not a slow adapter."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one step takes, by `records` builds.

    `memory` is MiB at the peak: of the device where something counts it, else of the process.
    """

    seconds: float
    memory: int
    disk: int
    source: Source
    records: int


@dataclass(frozen=True)
class _Build:
    """A build that is on record, its settings and its units of work."""

    record: ArtifactRecord
    model: str | None
    settings: Settings
    work: float
    wanted: float
    """The work as a plan counts it, before it is known how many rows a teacher has to draw."""

    @property
    def seconds(self) -> float:
        return float(self.record.provenance["seconds"])

    @property
    def memory(self) -> int:
        facts = self.record.provenance
        return int(facts.get("peak_memory_mib") or facts["process_peak_mib"])


class Costs:
    """Builds on record, and what a step like one of them would take on the same kind of machine."""

    def __init__(
        self, records: Sequence[ArtifactRecord], machine: Mapping[str, object], *, probe: bool = False
    ) -> None:
        """Take the builds on such a `machine` (see `models.device`); `probe` says they are a probe's."""
        self._probe = probe
        self._builds: dict[str, list[_Build]] = {}
        sections = {one.digest: one.identity["section"] for one in records}
        for one in records:
            if one.kind in _BY_ROWS and not sections.keys() & set(one.identity["inputs"]):
                continue  # how much it worked is on a record that was removed
            if all(one.provenance.get(name, value) == value for name, value in machine.items()):
                self._builds.setdefault(one.kind, []).append(_build(one, sections))

    def of(self, step: Step) -> Cost | None:
        """What `step` takes; None where nothing like it was built."""
        section = step.spec.model_dump(mode="json")
        settings = _settings(step.kind, section)
        model = _model(section)
        like = _nearest([one for one in self._builds.get(step.kind, []) if one.model == model], settings)
        if not like:
            return None
        rows = step.inputs[0].spec.model_dump(mode="json") if step.inputs else {}
        work = _work(step.kind, section, rows) * fmean(one.work / one.wanted for one in like)
        exact = like[0].settings == settings
        return Cost(
            seconds=_seconds(like, work),
            memory=max(one.memory for one in like),
            disk=_disk(like, work, settings),
            source="probe" if self._probe else "like runs" if exact else "other settings",
            records=len(like),
        )


_BY_ROWS = ("train", "leak")
"""Kinds whose work goes by the rows of their inputs."""


def _build(record: ArtifactRecord, sections: Mapping[str, Mapping[str, Any]]) -> _Build:
    section, inputs = record.identity["section"], record.identity["inputs"]
    wanted = _work(record.kind, section, sections.get(inputs[0], {}) if inputs else {})
    drawn = record.provenance.get("drawn")
    work = -(-drawn // BATCH) if drawn else wanted  # rows are drawn a batch at a time
    return _Build(record, _model(section), _settings(record.kind, section), work, wanted)


def _work(kind: str, section: Mapping[str, Any], rows: Mapping[str, Any]) -> float:
    """Units of work as far as a plan knows them; `rows` is the section of the step that gives the rows."""
    match kind:
        case "generate":
            return float(section["wanted"]) / BATCH
        case "filter":
            return float(section["rows"] + section["held_out"])
        case "train":
            return float(section["train"]["epochs"] * rows.get("rows", 1))
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


def _model(section: Mapping[str, Any]) -> str | None:
    return section["model"]["fingerprint"] if "model" in section else None


def _settings(kind: str, section: Mapping[str, Any]) -> Settings:
    found: dict[str, Any] = {}
    for name in SETTINGS[kind]:
        value: Any = section
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def _nearest(builds: Sequence[_Build], settings: Settings) -> list[_Build]:
    """The builds with the fewest settings that differ."""
    fit = [one for one in builds if one.settings.get(METHOD) == settings.get(METHOD)]
    apart = [sum(one.settings[name] != value for name, value in settings.items()) for one in fit]
    return [one for one, far in zip(fit, apart, strict=True) if far == min(apart)]


def _seconds(like: Sequence[_Build], work: float) -> float:
    line = _line([(one.work, one.seconds) for one in like], work)
    return median(one.seconds / one.work for one in like) * work if line is None else line


def _disk(like: Sequence[_Build], work: float, settings: Settings) -> int:
    """Bytes: of rows and scores they grow with the work, of an adapter with its rank, else with nothing."""
    ranked = settings.get(METHOD) in RANKED
    some = {one.settings.get("train.rank"): one for one in like}.values() if ranked else like[:LOOKED_AT]
    sizes = [(one, size(one.record.path)) for one in some]
    if ranked:
        rank = settings["train.rank"]
        line = _line([(one.settings["train.rank"], bytes_) for one, bytes_ in sizes], rank)
        growth = max(1.0, rank / max(one.settings["train.rank"] for one in some))
        return round(max(bytes_ for _, bytes_ in sizes) * growth if line is None else line)
    if like[0].record.kind in ("generate", "filter", "eval"):
        return round(fmean(bytes_ / one.work for one, bytes_ in sizes) * work)
    return round(fmean(bytes_ for _, bytes_ in sizes))


def _line(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at `x` of the line through the means at both ends; None where there is no such line."""
    least, most = min(one for one, _ in points), max(one for one, _ in points)
    if most < APART * least:
        return None
    low, high = (fmean(y for one, y in points if one == end) for end in (least, most))
    slope = (high - low) / (most - least)
    start = low - slope * least
    return start + slope * x if slope > 0 and start > 0 else None


def makespan(steps: Sequence[Step], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds that `workers` take for `steps`, each in its order once its inputs among them are built."""
    places = {digest(step): place for place, step in enumerate(steps)}
    users: dict[int, list[int]] = {}
    waits = [0] * len(steps)
    for place, step in enumerate(steps):
        for needed in {digest(one) for one in step.inputs} & places.keys():
            users.setdefault(places[needed], []).append(place)
            waits[place] += 1
    ready = [place for place, open_inputs in enumerate(waits) if not open_inputs]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[digest(steps[place])], place))
        now, done = heapq.heappop(running)
        for place in users.get(done, []):
            waits[place] -= 1
            if not waits[place]:
                heapq.heappush(ready, place)
    return now
