"""Why a store lacks a step: the recorded artifact of its kind that is nearest to it, and what differs.

differences(steps, recorded(store), known=digests_of_the_study)
"""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.artifacts.record import Recorded
from sublim_cli.artifacts.step import Step, digest, identity
from sublim_cli.wording import rate

NEAR = 3
"""More fields than this and the two are different undertakings, not a change of one."""

Flat = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A field of an identity by the name a recipe gives it, its recorded value and the new one."""

    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        was, now = _names(self.was), _names(self.now)
        if was and now:
            apart = [f"+{one}" for one in now if one not in was] + [
                f"−{one}" for one in was if one not in now
            ]
            return f"{self.field} {' '.join(apart) or 'in another order'}"
        show = rate if self.field.endswith("learning_rate") else _shown
        return f"{self.field} {show(self.was)} → {show(self.now)}"


@dataclass(frozen=True)
class Difference:
    """What tells a step from the nearest artifact.

    `changes` are those of its own fields; empty, the step is new only because an input is. `kept` says
    whether the artifact belongs to the study too: then the step stands beside it, else in its place.
    """

    nearest: str
    changes: tuple[Change, ...]
    inputs: bool
    kept: bool


def differences(
    steps: Iterable[Step], records: Sequence[Recorded], known: Collection[str]
) -> dict[str, Difference]:
    """For every step that has a near artifact of its kind, by digest, how it differs from it.

    Nearest is the record with the fewest fields changed; of several, one with the same inputs, then one
    that is no longer part of the study.

    Args:
        known: digests of the study's own steps.
    """
    new: dict[str, list[Step]] = {}
    for step in steps:
        new.setdefault(step.kind, []).append(step)
    found: dict[str, Difference] = {}
    for kind, own in new.items():
        there = [one for one in records if one.kind == kind]
        if there:
            found |= _of_kind(own, there, known)
    return found


def _of_kind(
    steps: Sequence[Step], records: Sequence[Recorded], known: Collection[str]
) -> dict[str, Difference]:
    mine, theirs = [identity(one) for one in steps], [one.identity for one in records]
    flat_mine, flat_theirs = list(map(_flat, mine)), list(map(_flat, theirs))
    fields = _codes([*flat_mine, *flat_theirs], lambda one: one)
    inputs = _codes([*mine, *theirs], lambda one: {"inputs": one["inputs"]})
    kept = np.array([one.digest in known for one in records])
    found = {}
    for place, step in enumerate(steps):
        own = (fields[len(steps) :] != fields[place]).sum(axis=1)
        other_inputs = (inputs[len(steps) :] != inputs[place]).any(axis=1)
        at = int(np.argmin(4 * own + 2 * other_inputs + kept))
        if own[at] <= NEAR:
            changes = tuple(_changes(step.kind, flat_theirs[at], flat_mine[place]))
            found[digest(step)] = Difference(
                records[at].digest, changes, bool(other_inputs[at]), bool(kept[at])
            )
    return found


def _codes(values: Sequence[Any], of: Callable[[Any], Mapping[str, Any]]) -> NDArray[np.int64]:
    """A column for every field that varies, a number for every value: [values, fields]."""
    rows = [of(one) for one in values]
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        numbers: dict[Hashable, int] = {}
        column = [numbers.setdefault(_key(row.get(name, ...)), len(numbers)) for row in rows]
        if len(numbers) > 1:
            columns.append(column)
    return np.array(columns, dtype=np.int64).reshape(len(columns), len(rows)).T


def _key(value: Any) -> Hashable:
    nested = isinstance(value, dict | list)
    return json.dumps(value, sort_keys=True) if nested else (type(value), value)  # 1 and true differ


def _changes(kind: str, was: Flat, now: Flat) -> Iterable[Change]:
    for name in dict.fromkeys([*was, *now]):
        if was.get(name) != now.get(name):
            field = name if name.startswith(f"{kind}.") else f"{kind}.{name}"
            yield Change(field, was.get(name), now.get(name))


def _flat(identity: Mapping[str, Any]) -> Flat:
    """The fields of an identity by dotted name, without its inputs. A context is one field."""
    return {"version": identity["version"], **_below(identity["section"])}


def _below(values: Mapping[str, Any], above: str = "") -> Flat:
    found: Flat = {}
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value and not {"name", "kind"} <= value.keys():
            found |= _below(value, f"{key}.")
        else:
            found[key] = value
    return found


def _names(value: Any) -> list[str]:
    """What the entries of a list are called; none where it is no list of named things."""
    named = isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)
    return [one["name"] for one in value] if named else []


def _shown(value: Any, longest: int = 32) -> str:
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
