"""Which runs are replicates of each other: the rows of a runs table by condition. Pure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes half a second to import, and a claim does without
    import pandas as pd

from sublim_cli.wording import rate

Run = dict[str, Any]
"""One row of a runs table."""

_ROLES = ("base", "control", "student")
_METHODS = ("", "lora", "full")


@dataclass(frozen=True)
class Condition:
    """What runs have in common that are replicates of each other: all but their seeds."""

    role: str
    method: str = ""
    rank: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None
    precision: str = ""
    train_context: str = ""
    settings: str = ""

    @property
    def order(self) -> tuple[Any, ...]:
        """Base, control, ranks ascending, full."""
        return (
            _ROLES.index(self.role),
            _METHODS.index(self.method) if self.method in _METHODS else len(_METHODS),
            self.rank or 0,
            self.alpha or 0.0,
            self.learning_rate or 0.0,
            self.precision,
            self.train_context,
            self.settings,
        )


def records(runs: "pd.DataFrame") -> list[Run]:
    """The rows of a runs table as plain values, None where there is none."""
    columns = [runs[name].astype(object).where(runs[name].notna(), None).tolist() for name in runs]
    names = list(map(str, runs))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def condition_of(run: Run) -> Condition:
    """The condition a run belongs to."""
    return Condition(
        role=run["role"],
        method=run["method"] or "",
        rank=run["rank"],
        alpha=run["alpha"],
        learning_rate=run["learning_rate"],
        precision=run["precision"] or "",
        train_context=run["train_context"] or "",
        settings=run["settings"] or "",
    )


def telling(one: Condition, conditions: set[Condition]) -> list[str]:
    """What tells a condition from others of its role and method, and no more."""
    alike = [two for two in conditions if (two.role, two.method) == (one.role, one.method)]
    parts = [one.settings] if one.settings else []
    if len({two.learning_rate for two in alike}) > 1:
        parts.append(f"lr {rate(one.learning_rate)}")
    if len({two.precision for two in alike}) > 1:
        parts.append(one.precision)
    if len({two.train_context for two in alike}) > 1:
        parts.append(f"trained in {one.train_context}")
    return parts
