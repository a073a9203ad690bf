"""Where results came from: the recipe, versions, machines, time spent, and how to do it again."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.pipeline import Study
from sublim_cli.recipe.schema import Recipe
from sublim_cli.recipe.yaml_file import write_yaml
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.steps.files import SEEN, read_json

RECIPE = "recipe.yaml"
"""The recipe is written next to the report, with every default, so that the command repeats it."""


@dataclass(frozen=True)
class Provenance:
    """How the results came about.

    `versions` holds every distinct value in the records, `seconds` by kind of step what each build took,
    `contexts` by name the first question as the model sees it there, special tokens included.
    """

    recipe: str
    command: str
    versions: Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]]
    seconds: Mapping[str, Sequence[float]]
    contexts: Mapping[str, str]

    @property
    def artifacts(self) -> int:
        """How many artifacts the study rests on."""
        return sum(map(len, self.seconds.values()))


def read_provenance(study: Study, reader: StoreReader, recipe: Recipe) -> Provenance:
    """Read the records of everything the store holds of `study`.

    Raises:
        ArtifactError: a record cannot be read.
    """
    artifacts = [artifact for step in in_order(study.steps) if (artifact := reader.find(step))]
    records = [reader.record(artifact) for artifact in artifacts]
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record["kind"], []).append(record["seconds"])
    contexts: dict[str, str] = {}
    bases = {digest(cell.chain.base): cell.chain.base for cell in study.cells}
    for base in filter(None, map(reader.find, bases.values())):
        for name, prompt in read_json(base.path / SEEN).items():
            contexts.setdefault(name, prompt["text"])
    return Provenance(
        recipe=write_yaml(recipe.model_dump(mode="json")),
        command=shlex.join(["sublim", "sweep", "--recipe", RECIPE]),
        versions=_versions(study, records),
        seeds=study.seeds,
        seconds=seconds,
        contexts=contexts,
    )


def _versions(study: Study, records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    models = [cell.chain.eval.spec.model for cell in study.cells]
    values: dict[str, list[str]] = {"model": [f"{model.name} ({model.fingerprint})" for model in models]}
    for record in records:
        git = "not a checkout"
        if commit := record["git"]:
            git = f"{commit['commit']}{', with local changes' if commit['dirty'] else ''}"
        versions = {
            "sublim": record["sublim"],
            "git": git,
            "python": record["python"],
            "machine": record["machine"],
            "device": record.get("device"),
            "threads": record.get("threads"),
            **record["packages"],
        }
        for name, value in versions.items():
            if value is not None:
                values.setdefault(name, []).append(str(value))
    return {name: tuple(sorted(set(distinct))) for name, distinct in values.items()}
