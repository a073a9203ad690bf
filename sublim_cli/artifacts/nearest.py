"""For each step that a store lacks: the stored artifact with the fewest changed fields, and those fields.

nearest_artifacts(missing_steps, artifact_records(store.root), study_digests)
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sublim_cli.artifacts.record import ArtifactRecord
from sublim_cli.artifacts.step import Step, digest, identity
from sublim_cli.wording import rate

MOST_CHANGES = 3
"""An artifact with more changed fields than this is not shown: it is a different experiment."""

LONGEST_VALUE = 32
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class FieldChange:
    """A field of an identity under its dotted recipe name, with the recorded and the new value."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if _is_list_of_named(self.was) and _is_list_of_named(self.now):
            was, now = ([entry["name"] for entry in entries] for entries in (self.was, self.now))
            added = [f"+{name}" for name in now if name not in was]
            removed = [f"−{name}" for name in was if name not in now]
            return f"{self.field} {' '.join(added + removed) or 'in another order'}"
        return f"{self.field} {self._shown(self.was)} → {self._shown(self.now)}"

    def _shown(self, value: Any) -> str:
        is_rate = self.field.endswith("learning_rate") and isinstance(value, float)
        return rate(value) if is_rate else _short(value)


@dataclass(frozen=True)
class NearestArtifact:
    """The stored artifact that a missing step differs least from.

    `changes` are changes of the step's own fields; if there are none, the step is missing only because one
    of its inputs is. `in_study` says whether the study still needs the artifact.
    """

    digest: str
    changes: tuple[FieldChange, ...]
    inputs_differ: bool
    in_study: bool


def nearest_artifacts(
    steps: Sequence[Step], records: Sequence[ArtifactRecord], study_digests: Collection[str]
) -> dict[str, NearestArtifact]:
    """The nearest artifact of the same kind for every step that has one, by the step's digest.

    The nearest has the fewest changed fields; among equals, one with the same inputs comes first, then one
    that the study no longer needs.

    Args:
        study_digests: digests of all steps of the study.
    """
    nearest = {}
    for kind in dict.fromkeys(step.kind for step in steps):
        new = [step for step in steps if step.kind == kind]
        old = [record for record in records if record.kind == kind]
        if not old:
            continue
        fields = [_fields(identity(step)) for step in new] + [_fields(record.identity) for record in old]
        names = dict.fromkeys(name for row in fields for name in row)  # the inputs first
        # Numbers, since they are compared many times; [new and old, fields].
        values = np.array(
            [[hash(json.dumps(row.get(name), sort_keys=True)) for name in names] for row in fields]
        )
        in_study = np.array([record.digest in study_digests for record in old])
        for i, step in enumerate(new):
            differs = values[len(new) :] != values[i]
            best = int(np.argmin(4 * differs[:, 1:].sum(axis=1) + 2 * differs[:, 0] + in_study))
            was, now = fields[len(new) + best], fields[i]
            changes = tuple(
                FieldChange(name, was.get(name), now.get(name))
                for name in dict.fromkeys([*was, *now])
                if name != "inputs" and was.get(name) != now.get(name)
            )
            if len(changes) <= MOST_CHANGES:
                nearest[digest(step)] = NearestArtifact(
                    old[best].digest, changes, bool(differs[best, 0]), bool(in_study[best])
                )
    return nearest


def _fields(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, the version and the fields of the spec, by dotted recipe name. A context is one field."""
    kind = identity["kind"]
    fields = {"inputs": identity["inputs"], f"{kind}.version": identity["version"]}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value and not {"name", "kind"} <= value.keys():
                add(value, f"{prefix}{name}.")
            else:
                field = f"{prefix}{name}"
                fields[field if field.startswith(f"{kind}.") else f"{kind}.{field}"] = value

    add(identity["section"], "")
    return fields


def _is_list_of_named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "name" in v for v in value)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
