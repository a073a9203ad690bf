"""A step and its identity: what it is, not how or where it runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sublim_cli.events import Listener
from sublim_cli.recipe.schema import Section

Measurements = Mapping[str, Any]
"""What a build measured (seconds, tokens/s, devices): provenance, never identity."""


@dataclass(frozen=True)
class Artifact:
    """A finished step's directory and the digest that names it."""

    path: Path
    digest: str


class Step(Protocol):
    """One unit of work. Equal identity means the same artifact, so it is built once."""

    kind: ClassVar[str]
    version: ClassVar[int]
    """Raise it when a code change alters the result; older artifacts then no longer match."""

    @property
    def spec(self) -> Section:
        """The part of the resolved recipe that decides the result."""

    @property
    def inputs(self) -> "tuple[Step, ...]":
        """The steps whose artifacts this one reads."""

    @property
    def label(self) -> str:
        """What a person calls this step, such as `train lora r8 seed 1`. Not identity."""

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write the result under `out` and return what was measured. Raise, and nothing is kept."""


def identity(step: Step) -> dict[str, Any]:
    """Everything that may change a step's result, as plain JSON."""
    return {
        "kind": step.kind,
        "version": step.version,
        "section": step.spec.model_dump(mode="json"),
        "inputs": [digest(one) for one in step.inputs],
    }


def digest(step: Step) -> str:
    """The name of a step's artifact: twelve hex digits of its identity as JSON with sorted keys.

    Raises:
        TypeError, ValueError: a section holds something plain JSON cannot say.
    """
    # Kept beside the fields: a study asks for the digest of a shared step once per cell and more.
    known = vars(step)
    if "_digest" not in known:
        inputs = _written([digest(one) for one in step.inputs])
        section = _section(_Same(step.spec))
        text = (
            f'{{"inputs":{inputs},"kind":{_written(step.kind)},'
            f'"section":{section},"version":{_written(step.version)}}}'
        )
        known["_digest"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    name: str = known["_digest"]
    return name


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, eq=False)
class _Same:
    """A section that equals itself alone: cheaper to look up than by what it holds."""

    spec: Section

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec

    def __hash__(self) -> int:
        return id(self.spec)


@lru_cache
def _section(same: _Same) -> str:
    """A section as canonical JSON, once for all steps that share it."""
    return _written(same.spec.model_dump(mode="json"))


def in_order(steps: "Sequence[Step]") -> list[Step]:
    """All steps and their inputs, inputs first, each identity once."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if digest(step) not in found:
            for one in step.inputs:
                visit(one)
            found[digest(step)] = step

    for step in steps:
        visit(step)
    return list(found.values())
