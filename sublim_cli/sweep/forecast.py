"""What a sweep would do: which steps are built, which are new and why, in which order, and what they take.

    forecast(study(recipe), missing_steps(…), artifact_records(store.root), [Costs(…)], workers=2)

Reads the store and writes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sublim_cli.artifacts.nearest import NearestArtifact, nearest_artifacts
from sublim_cli.artifacts.record import ArtifactRecord
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.pipeline import Cell, Study
from sublim_cli.sweep.estimate import Cost, Costs, makespan


@dataclass(frozen=True)
class PlannedStep:
    """A step of a study. `difference` compares a new one with the nearest artifact of the store."""

    step: Step
    built: bool
    cells: int
    """The number of cells that need it; 0 for a comparison of rows."""
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
    steps: tuple[PlannedStep, ...]

    @property
    def new(self) -> list[PlannedStep]:
        """Its steps that are not built, shared ones included."""
        return [step for step in self.steps if not step.built]

    @property
    def student_costs(self) -> list[Cost]:
        """The costs of its training and its scores, as far as they are known and not built."""
        names = {digest(self.cell.chain.train), digest(self.cell.chain.eval)}
        return [step.cost for step in self.new if step.digest in names and step.cost]


@dataclass(frozen=True)
class Forecast:
    """A whole study: `steps` in the order of building, each once."""

    name: str
    steps: tuple[PlannedStep, ...]
    cells: tuple[PlannedCell, ...]
    workers: int

    @property
    def new(self) -> list[PlannedStep]:
        """The steps that are not built."""
        return [step for step in self.steps if not step.built]

    @property
    def unknown(self) -> list[PlannedStep]:
        """The new steps without an estimate of their cost."""
        return [step for step in self.new if step.cost is None]

    @property
    def costs(self) -> list[Cost]:
        """The estimates there are for new steps."""
        return [step.cost for step in self.new if step.cost]

    @property
    def seconds(self) -> float:
        """The time of the new steps in sequence, those of unknown cost left out."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def elapsed(self) -> float:
        """The same with all workers in parallel, in seconds."""
        seconds = {step.digest: step.cost.seconds if step.cost else 0.0 for step in self.new}
        return makespan([step.step for step in self.new], seconds, self.workers)

    @property
    def memory(self) -> int:
        """MiB of the largest step; workers that build such steps in parallel need it as many times."""
        return max((cost.memory for cost in self.costs), default=0)

    @property
    def disk(self) -> int:
        """Bytes that the new steps add."""
        return sum(cost.disk for cost in self.costs)


def forecast(
    study: Study,
    missing: Sequence[Step],
    records: Sequence[ArtifactRecord],
    costs: Sequence[Costs],
    workers: int,
) -> Forecast:
    """Put together what is known of a study.

    Args:
        missing: the steps to build, see `launch.missing_steps`.
        records: the artifacts of the store, with which new steps are compared.
        costs: where costs are looked up, the best source first.
    """
    ordered = {digest(step): step for step in in_order(study.steps)}
    differing = nearest_artifacts(missing, records, ordered.keys())
    cell_steps = [in_order(cell.chain.evaluations) for cell in study.cells]
    users = Counter(digest(step) for steps in cell_steps for step in steps)
    estimates = {
        digest(step): next(filter(None, (source.estimate(step) for source in costs)), None)
        for step in missing
    }
    planned = {
        name: PlannedStep(step, name not in estimates, users[name], estimates.get(name), differing.get(name))
        for name, step in ordered.items()
    }
    cells = tuple(
        PlannedCell(cell, tuple(planned[digest(step)] for step in steps))
        for cell, steps in zip(study.cells, cell_steps, strict=True)
    )
    return Forecast(study.name, tuple(planned.values()), cells, workers)
