"""Whether the claims of a study were stated before its evaluations, and what has changed since. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from sublim_cli.artifacts.claims_lock import ClaimsLock, ClaimsStatement, changes, moment, shortened
from sublim_cli.wording import count


@dataclass(frozen=True)
class Amendment:
    """Changes of what was locked first, in words, and how many evaluations there were before them."""

    locked: datetime | None
    """When the lock was written that states them; None: no lock does."""
    changes: tuple[str, ...]
    evaluated: int


@dataclass(frozen=True)
class LockStatus:
    """When a study's claims were locked, and how many evaluations of trained models there were by then."""

    locks: tuple[ClaimsLock, ...]
    """The oldest first; empty if the claims were never locked."""
    planned: int
    """Evaluations that the study asks for."""
    built: int
    evaluated: int
    """Evaluations before the first lock; all that are built where there is none."""
    amendments: tuple[Amendment, ...]
    fault: str = ""
    """Why a lock that is there does not count; empty if none is damaged."""

    @property
    def before_all(self) -> bool:
        """Whether the claims as they are now were locked before the first evaluation."""
        return bool(self.locks) and not any([self.evaluated, *(each.evaluated for each in self.amendments)])


def lock_status(
    locks: Sequence[ClaimsLock],
    now: ClaimsStatement,
    finished: Sequence[str | None],
    planned: int,
    fault: str = "",
) -> LockStatus:
    """Compare the locks of a study, the oldest first, with its evaluations and with what it states now.

    An evaluation without a time was made by a version of sublim that had no locks, and counts as earlier than
    any. Times are those of the clocks of the machines that wrote the lock and built the evaluation.

    Args:
        finished: for each evaluation that is built, when it was, in ISO 8601.
        planned: how many evaluations the study asks for.
        fault: why a lock could not be read; there are no `locks` then.
    """
    times = [datetime.fromisoformat(text) if text else None for text in finished]

    def before(lock: ClaimsLock) -> int:
        return sum(time is None or time <= lock.locked for time in times)

    amendments = [
        Amendment(new.locked, tuple(changes(old, new)), before(new)) for old, new in pairwise(locks)
    ]
    if locks and (open_changes := changes(locks[-1], now)):
        amendments.append(Amendment(None, tuple(open_changes), len(times)))
    evaluated = before(locks[0]) if locks else len(times)
    return LockStatus(tuple(locks), planned, len(times), evaluated, tuple(amendments), fault)


def lock_sentences(status: LockStatus) -> list[str]:
    """The lock in a sentence, and one more for each time that what it states was changed."""
    if status.fault:
        return [f"The claims count as not locked: {status.fault}."]
    if not status.locks:
        if status.built:
            return ["The claims were not locked before the runs."]
        return ["The claims are not locked yet: `sublim sweep` does it before the first run."]
    first = f"The claims were locked on {moment(status.locks[0].locked)}"
    texts = [f"{first}, {_position(status.evaluated, status)} of trained models."]
    for amendment in status.amendments:
        when = _position(amendment.evaluated, status)
        if amendment.locked:
            stated = f"Changed on {moment(amendment.locked)}, {when}"
        else:
            stated = f"Changed since without a new lock, which counts as stated {when}"
        texts.append(f"{stated}: {shortened(amendment.changes)}.")
    return texts


def lock_document(status: LockStatus) -> dict[str, Any]:
    """The status as plain data, for `claims.json`; `locks` holds them whole, the oldest first."""
    return {
        "before_every_evaluation": status.before_all,
        "evaluations": {"planned": status.planned, "built": status.built, "before_lock": status.evaluated},
        "changes": [
            {
                "locked": amendment.locked.isoformat() if amendment.locked else None,
                "after_evaluations": amendment.evaluated,
                "changes": list(amendment.changes),
            }
            for amendment in status.amendments
        ],
        "sentences": lock_sentences(status),
        "locks": [lock.model_dump(mode="json") for lock in status.locks],
    }


def _position(evaluated: int, status: LockStatus) -> str:
    if not evaluated:
        return f"before {_all(status.planned)}"
    return f"after {evaluated} of {count(status.planned, 'evaluation')}"


def _all(number: int) -> str:
    return "the one evaluation" if number == 1 else f"all {number} evaluations"
