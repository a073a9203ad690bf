"""A step and its identity: what it computes, not how or where it runs."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sublim_cli.events import Listener
from sublim_cli.recipe.schema import Section

Measurements = Mapping[str, Any]
"""What a build measured (seconds, tokens/s, devices): provenance, never identity."""


@dataclass(frozen=True)
class Artifact:
    """A finished step's directory and the digest that names it."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Step(ABC):
    """One unit of work. Steps of equal identity have the same artifact, so it is built once."""

    kind: ClassVar[str]
    version: ClassVar[int]
    """Raise it when a code change alters the result; older artifacts then no longer match."""

    spec: Section
    """The part of the resolved recipe that decides the result."""
    title: str
    """What is shown of the recipe in addition to the kind, such as `cat lora r8 seed 1`. Not identity."""
    inputs: "tuple[Step, ...]" = ()
    """The steps whose artifacts this one reads."""

    @property
    def label(self) -> str:
        """Kind and title, such as `train cat lora r8 seed 1`."""
        return f"{self.kind} {self.title}"

    @abstractmethod
    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write the result under `out` and return what was measured. After an exception nothing is kept."""


def identity(step: Step) -> dict[str, Any]:
    """Everything that may change a step's result, as plain JSON."""
    return {
        "kind": step.kind,
        "version": step.version,
        "section": step.spec.model_dump(mode="json"),
        "inputs": [digest(needed) for needed in step.inputs],
    }


def digest(step: Step) -> str:
    """The name of a step's artifact: the first twelve hex digits of the sha256 of its identity as JSON.

    It is computed once for each step object and cached in it, since the cells of a study share steps.

    Raises:
        TypeError, ValueError: the spec holds a value that JSON lacks.
    """
    cache = vars(step)
    if "_digest" not in cache:
        text = json.dumps(identity(step), sort_keys=True, separators=(",", ":"), allow_nan=False)
        cache["_digest"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    name: str = cache["_digest"]
    return name


def in_order(steps: Sequence[Step]) -> list[Step]:
    """All steps and their inputs, inputs first, each identity once."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if digest(step) not in ordered:
            for needed in step.inputs:
                visit(needed)
            ordered[digest(step)] = step

    for step in steps:
        visit(step)
    return list(ordered.values())
