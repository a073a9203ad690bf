"""`claims.lock`: what a study claims, how it is judged and on which seeds, written before it is evaluated.

    said = lock_claims("demo", claims_statement(recipe, study.seeds, RULES_VERSION), store, renew=False)
    locks = read_locks("demo", store)    # oldest first

A lock is written once. A new one is written only on request, and the old one is kept beside it with its time.
It carries a hash of itself, so that a damaged one, or one that was edited by hand, is noticed.
Studies of the same name in one store share their lock, as they share a report.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLease
from pydantic import AwareDatetime

from sublim_cli import __version__
from sublim_cli.artifacts.nearest import FieldChange
from sublim_cli.artifacts.record import checkout
from sublim_cli.artifacts.store import (
    CLAIMS,
    HEARTBEAT,
    LEASE,
    MANIFESTS,
    Store,
    explain_disk_errors,
    write_durably,
)
from sublim_cli.errors import ArtifactError
from sublim_cli.recipe.keys import changed_keys
from sublim_cli.recipe.schema import Recipe, Section
from sublim_cli.wording import NOTHING, count

CHANGES_SHOWN = 3
"""Changes that a sentence names; the others are counted."""


class ClaimsStatement(Section):
    """What is fixed before a study is evaluated."""

    rules: int
    """The version of the decision rules, `report.claims.verdict.RULES_VERSION`."""
    claims: tuple[dict[str, Any], ...]
    """Every key of every claim."""
    seeds: dict[str, tuple[int, ...]]
    """Of all cells, by recipe key."""
    recipe: dict[str, Any]
    """The keys that differ from their defaults, by dotted name; without claims and seeds."""


class ClaimsLock(ClaimsStatement):
    """A `claims.lock` as it is written."""

    study: str
    locked: AwareDatetime
    sublim: str
    git: dict[str, Any] | None
    """Commit and dirty flag of the checkout that sublim runs from; None if it does not run from one."""


def claims_statement(recipe: Recipe, seeds: Mapping[str, tuple[int, ...]], rules: int) -> ClaimsStatement:
    """What a study of `recipe` whose cells have these `seeds` states under version `rules` of the rules."""
    of_seeds = ("sweep.replicates", *seeds)
    return ClaimsStatement(
        rules=rules,
        claims=tuple(claim.model_dump(mode="json") for claim in recipe.claims),
        seeds=dict(seeds),
        recipe={key: value for key, value in changed_keys(recipe).items() if not key.endswith(of_seeds)},
    )


def read_locks(study: str, store: Store) -> list[ClaimsLock]:
    """All locks of the studies called `study`, the oldest first; the last one is in force.

    Raises:
        ArtifactError: a lock cannot be read, or was changed.
    """
    path = _path(study, store)
    locks = [_read(file) for file in (*path.parent.glob(f"{path.name}.*Z"), path) if file.is_file()]
    return sorted(locks, key=lambda lock: lock.locked)


def lock_claims(study: str, statement: ClaimsStatement, store: Store, *, renew: bool) -> str | None:
    """Write the lock of a study that has claims, unless it has one.

    Sweeps at the same time take turns: the first one writes the lock.

    Args:
        renew: write a new lock where the old one states something else.

    Returns:
        A sentence that says what has changed since the lock, and which lock is in force.

    Raises:
        ArtifactError: the lock cannot be read or was changed, or the store cannot be written.
    """
    path, turns = _path(study, store), store.root / CLAIMS / f"lock-{study}.lease"
    with explain_disk_errors(store.root, makes_directory=True):
        turns.parent.mkdir(parents=True, exist_ok=True)
        with SoftFileLease(turns, lease_duration=LEASE, heartbeat_interval=HEARTBEAT):
            old = read_locks(study, store)[-1:]
            differs = changes(old[0], statement) if old else []
            if not (renew and differs if old else statement.claims):
                return _kept(old[0], differs) if differs else None
            new = ClaimsLock(
                study=study,
                locked=datetime.now(UTC),
                sublim=__version__,
                git=checkout(),
                **statement.model_dump(),
            ).model_dump(mode="json")
            if path.is_file():
                path.replace(path.with_name(f"{path.name}.{old[0].locked:%Y-%m-%dT%H%M%S.%fZ}"))
            write_durably(path, json.dumps({**new, "sha256": _hash(new)}, indent=1, allow_nan=False))
    return f"the claims are locked anew: {shortened(differs)}; the older lock is kept" if old else None


def changes(old: ClaimsStatement, new: ClaimsStatement) -> list[str]:
    """What `new` states otherwise than `old`, such as `claim 2 (inverted_u): curve fixed → best`.

    Claims are numbered from 1 in the order of `new`. The claims that only one of the two states are paired by
    their kind; one that remains is new or gone. A key of the recipe that one of them lacks has its default.
    """
    texts = []
    left = [claim for claim in old.claims if claim not in new.claims]
    for number, claim in enumerate(new.claims, start=1):
        if claim in old.claims:
            continue
        name = f"claim {number} ({claim['kind']})"
        was = next((one for one in left if one["kind"] == claim["kind"]), None)
        if was is None:
            texts.append(f"{name} is new")
        else:
            left.remove(was)
            texts.append(f"{name}: {', '.join(_changed(was, claim, NOTHING))}")
    texts += [f"a claim ({claim['kind']}) is gone" for claim in left]
    texts += _changed({"decision rules": old.rules}, {"decision rules": new.rules}, NOTHING)
    texts += _changed(_seed_texts(old), _seed_texts(new), NOTHING)
    return texts + _changed(old.recipe, new.recipe, "default")


def shortened(texts: Sequence[str]) -> str:
    """The first of several changes, and how many others there are."""
    rest = len(texts) - CHANGES_SHOWN
    more = [count(rest, "other change")] if rest > 0 else []
    return "; ".join([*texts[:CHANGES_SHOWN], *more])


def moment(time: datetime) -> str:
    """Such as `2026-11-28 17:58 UTC`."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _path(study: str, store: Store) -> Path:
    return store.root / MANIFESTS / f"{study}.claims.lock"


def _read(file: Path) -> ClaimsLock:
    fault = "was changed after it was written"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.pop("sha256", None) == _hash(document):
            return ClaimsLock(**document)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        fault = f"cannot be read ({str(error).splitlines()[0]})"
    raise ArtifactError(
        f"{file} {fault}; put a copy of it back, or delete it, and the next sweep locks the claims anew"
    )


def _hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _kept(lock: ClaimsLock, differs: Sequence[str]) -> str:
    return (
        f"the claims stay locked as of {moment(lock.locked)}, and the report says what has changed since: "
        f"{shortened(differs)}; --relock-claims locks them anew and keeps the older lock"
    )


def _changed(was: Mapping[str, Any], now: Mapping[str, Any], lacking: str) -> list[str]:
    return [
        str(FieldChange(key, was.get(key, lacking), now.get(key, lacking)))
        for key in dict.fromkeys([*was, *now])
        if was.get(key, lacking) != now.get(key, lacking)
    ]


def _seed_texts(statement: ClaimsStatement) -> dict[str, str]:
    return {key: ", ".join(map(str, values)) for key, values in statement.seeds.items()}
