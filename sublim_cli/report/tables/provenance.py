"""Where results came from: the recipe, versions, machines, time spent, and how to do it again."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.pipeline import Study
from sublim_cli.recipe.schema import Recipe
from sublim_cli.recipe.yaml_file import write_yaml
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.steps.files import SEEN, read_json

RECIPE = "recipe.yaml"
"""The recipe lies beside the report, every default written out, so that the command redoes it."""


@dataclass(frozen=True)
class StepTime:
    """The artifacts of one kind of step and the seconds their builds took in total."""

    kind: str
    artifacts: int
    seconds: float


@dataclass(frozen=True)
class RenderedContext:
    """A context and the first question as the model saw it in there, special tokens included."""

    name: str
    text: str


@dataclass(frozen=True)
class Provenance:
    """How the results came about. `versions` holds every distinct value met in the records."""

    recipe: str
    command: str
    versions: Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]]
    work: tuple[StepTime, ...]
    contexts: tuple[RenderedContext, ...]

    @property
    def artifacts(self) -> int:
        """How many artifacts the study rests on."""
        return sum(one.artifacts for one in self.work)


def read_provenance(study: Study, shelf: StoreReader, recipe: Recipe) -> Provenance:
    """Read the records of everything the store holds of `study`.

    Raises:
        ArtifactError: a record cannot be read.
    """
    found = [one for step in in_order(study.steps) if (one := shelf.find(step))]
    records = [shelf.facts(one) for one in found]
    return Provenance(
        recipe=write_yaml(recipe.model_dump(mode="json")),
        command=shlex.join(["sublim", "sweep", "--recipe", RECIPE]),
        versions=_versions(study, records),
        seeds=_seeds(study),
        work=_work(records),
        contexts=_contexts(study, shelf),
    )


def _versions(study: Study, records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    models = [cell.chain.eval.spec.model for cell in study.cells]
    found: dict[str, list[str]] = {
        "model": [f"{one.name} ({one.fingerprint})" for one in models],
    }
    for facts in records:
        named = {
            "sublim": facts["sublim"],
            "git": _git(facts["git"]),
            "python": facts["python"],
            "machine": facts["machine"],
            "device": facts.get("device"),
            "threads": facts.get("threads"),
            **facts["packages"],
        }
        for name, value in named.items():
            if value is not None:
                found.setdefault(name, []).append(str(value))
    return {name: tuple(sorted(set(values))) for name, values in found.items()}


def _git(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "not a checkout"
    return f"{facts['commit']}{', with local changes' if facts['dirty'] else ''}"


def _seeds(study: Study) -> dict[str, tuple[int, ...]]:
    """Every source of randomness and the values it took."""
    recipes = [cell.recipe for cell in study.cells]
    found = {
        "train.seed": {one.train.seed for one in recipes},
        "generate.sampling.seed": {one.generate.sampling.seed for one in recipes},
        "generate.prompts.seed": {one.generate.prompts.seed for one in recipes},
    }
    return {name: tuple(sorted(values)) for name, values in found.items()}


def _work(records: Iterable[Mapping[str, Any]]) -> tuple[StepTime, ...]:
    spent: dict[str, list[float]] = {}
    for facts in records:
        spent.setdefault(facts["kind"], []).append(facts["seconds"])
    return tuple(StepTime(kind, len(each), sum(each)) for kind, each in spent.items())


def _contexts(study: Study, shelf: StoreReader) -> tuple[RenderedContext, ...]:
    bases = {digest(one.chain.base): one.chain.base for one in study.cells}
    found: dict[str, str] = {}
    for step in bases.values():
        if artifact := shelf.find(step):
            for name, account in read_json(artifact.path / SEEN).items():
                found.setdefault(name, account["text"])
    return tuple(RenderedContext(name, text) for name, text in found.items())
