"""What a sweep would do: which steps are built, which are new and why, in which order, and what they take.

    forecast(study(recipe), store, Costs(recorded(store.root), device_record()), workers=2)

Reads the store and writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sublim_cli.artifacts.nearest import NearestArtifact, nearest_artifacts
from sublim_cli.artifacts.record import ArtifactRecord
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import Store
from sublim_cli.pipeline import Cell, Study
from sublim_cli.sweep.estimate import Cost, Costs, makespan


@dataclass(frozen=True)
class Planned:
    """One step of a study. `cells` counts those that need it; `difference` says what a new one is near to."""

    step: Step
    built: bool
    cells: int
    cost: Cost | None = None
    difference: NearestArtifact | None = None

    @property
    def digest(self) -> str:
        """The name of its artifact."""
        return digest(self.step)


@dataclass(frozen=True)
class PlannedCell:
    """A cell and all its steps, those it shares with others included."""

    cell: Cell
    steps: tuple[Planned, ...]

    @property
    def new(self) -> list[Planned]:
        """What is not built of it, shared steps included."""
        return [one for one in self.steps if not one.built]

    @property
    def own(self) -> list[Planned]:
        """Its training and its scores, where they are not built."""
        names = {digest(self.cell.chain.train), digest(self.cell.chain.eval)}
        return [one for one in self.new if one.digest in names]


@dataclass(frozen=True)
class Forecast:
    """All of it: `steps` in the order they are built, each once."""

    name: str
    steps: tuple[Planned, ...]
    cells: tuple[PlannedCell, ...]
    workers: int

    @property
    def new(self) -> list[Planned]:
        """What is not built."""
        return [one for one in self.steps if not one.built]

    @property
    def unknown(self) -> list[Planned]:
        """New steps of which nobody knows what they take."""
        return [one for one in self.new if one.cost is None]

    @property
    def seconds(self) -> float:
        """The time of all new steps one after the other, as far as it is known."""
        return sum(one.cost.seconds for one in self.new if one.cost)

    @property
    def elapsed(self) -> float:
        """The same with all workers."""
        seconds = {one.digest: one.cost.seconds if one.cost else 0.0 for one in self.new}
        return makespan([one.step for one in self.new], seconds, self.workers)

    @property
    def memory(self) -> int:
        """MiB of the largest step; workers that run such steps side by side need it as many times."""
        return max((one.cost.memory for one in self.new if one.cost), default=0)

    @property
    def disk(self) -> int:
        """Bytes that the new steps add."""
        return sum(one.cost.disk for one in self.new if one.cost)


def missing(study: Study, store: Store) -> list[Step]:
    """The steps of `study` that `store` lacks, in the order they are built.

    An input of nothing but built steps is not built again, and so not missing.
    """
    ordered = in_order(study.steps)
    wanted = {digest(one) for one in study.steps}
    found = []
    for step in reversed(ordered):  # whatever needs a step comes before it
        if digest(step) in wanted and not store.find(step):
            found.append(step)
            wanted.update(map(digest, step.inputs))
    return found[::-1]


def forecast(
    study: Study,
    lacking: Sequence[Step],
    records: Sequence[ArtifactRecord],
    costs: Sequence[Costs],
    workers: int,
) -> Forecast:
    """Put together what is known of a study.

    Args:
        lacking: the steps to build, see `missing`.
        records: what the store holds, to say what the new steps are near to.
        costs: where costs are looked up, the best source first.
    """
    ordered = in_order(study.steps)
    new = {digest(one) for one in lacking}
    near = nearest_artifacts(lacking, records, {digest(one) for one in ordered})
    users = _users(study)
    steps = {
        name: Planned(
            step=step,
            built=name not in new,
            cells=users[name],
            cost=_cost(step, costs) if name in new else None,
            difference=near.get(name),
        )
        for step in ordered
        for name in (digest(step),)
    }
    cells = tuple(
        PlannedCell(one, tuple(steps[digest(step)] for step in in_order(one.chain.evaluations)))
        for one in study.cells
    )
    return Forecast(study.name, tuple(steps.values()), cells, workers)


def _users(study: Study) -> Mapping[str, int]:
    """How many cells need each step; a comparison of rows counts for none."""
    found: dict[str, int] = {digest(one): 0 for one in in_order(study.steps)}
    for cell in study.cells:
        for step in in_order(cell.chain.evaluations):
            found[digest(step)] += 1
    return found


def _cost(step: Step, costs: Sequence[Costs]) -> Cost | None:
    return next((found for one in costs if (found := one.of(step))), None)
