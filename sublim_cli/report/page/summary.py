"""Runs summarised: one row for every trait, condition and eval context. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sublim_cli.report.collect import Results
from sublim_cli.report.tables.conditions import Condition, Run, condition_of, records, telling
from sublim_cli.stats import Interval, mean_interval
from sublim_cli.wording import condition_label


@dataclass(frozen=True)
class SummaryRow:
    """The runs of one condition in one eval context.

    Broken and missing runs are counted, not averaged. The intervals are 95 % t intervals over runs,
    clustered by the seeds that several share; with one run they have no bounds, with none they are None.
    `label` is what a person calls the condition, `family` the same without its rank.
    """

    category: str
    target: str
    condition: Condition
    label: str
    family: str
    eval_context: str
    n: int
    broken: int
    missing: int
    p_target: Interval | None
    base: float | None
    difference: Interval | None
    delta_log_p: float | None
    """How far log P(the answer opens with the target's plain name) moved from the base's, in nats."""
    entropy: float | None
    """Of the answer, in nats, over the items and one more outcome: none of them."""
    entropy_base: float | None
    p_any: float | None
    p_any_base: float | None
    number_loss: float | None
    number_loss_before: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as likely the target is as for the base, in the same context."""
        return self.p_target.mean / self.base if self.p_target and self.base else None

    @property
    def state(self) -> str:
        """`ok`, or why there is no mean: `broken` (all that ran are) or `missing` (none ran)."""
        if self.n:
            return "ok"
        return "broken" if self.broken else "missing"

    @property
    def in_training_context(self) -> bool:
        """Whether the students were trained on this very context."""
        return self.eval_context == self.condition.train_context


_Key = tuple[tuple[str, str], Condition, str]


def summarise(results: Results) -> list[SummaryRow]:
    """Trait by trait in the study's order: base, control, ranks ascending, full; then contexts."""
    groups: dict[_Key, list[Run]] = {}
    for run in records(results.runs):
        key = ((run["category"], run["target"]), condition_of(run), run["eval_context"])
        groups.setdefault(key, []).append(run)
    traits = _places(trait for trait, _, _ in groups)
    contexts = _places(context for _, _, context in groups)
    conditions = {condition for _, condition, _ in groups}
    ordered = sorted(groups, key=lambda key: (traits[key[0]], _order(key[1], contexts), contexts[key[2]]))
    return [_row(key, telling(key[1], conditions), groups[key]) for key in ordered]


def _row(key: _Key, parts: Sequence[str], runs: Sequence[Run]) -> SummaryRow:
    (category, target), condition, context = key
    role, method = condition.role, condition.method
    there = [run for run in runs if run["p_target"] is not None]
    good = [run for run in there if not run["broken"]]
    return SummaryRow(
        category=category,
        target=target,
        condition=condition,
        label=condition_label(role, method, condition.rank, parts),
        family=condition_label(role, method, None, parts),
        eval_context=context,
        n=len(good),
        broken=len(there) - len(good),
        missing=len(runs) - len(there),
        p_target=_interval(good, "p_target", 0.0),
        base=_mean(runs, "p_target_base"),
        difference=_interval(good, "difference", -1.0),
        delta_log_p=_between(_mean(good, "log_form"), _mean(good, "log_form_base")),
        entropy=_mean(there, "entropy"),
        entropy_base=_mean(runs, "entropy_base"),
        # These two say how a broken condition broke, so broken runs count.
        p_any=_mean(there, "p_any"),
        number_loss=_mean(there, "number_loss"),
        p_any_base=_mean(runs, "p_any_base"),
        number_loss_before=_mean(there, "number_loss_before"),
    )


def _interval(runs: Sequence[Run], column: str, least: float) -> Interval | None:
    there = [run for run in runs if run[column] is not None]
    seeds = [(run["train_seed"], run["data_seed"]) for run in there]
    return mean_interval(_values(there, column), seeds).within(least, 1.0) if there else None


def _mean(runs: Sequence[Run], column: str) -> float | None:
    values = _values(runs, column)
    return fmean(values) if values else None


def _between(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _values(runs: Sequence[Run], column: str) -> list[float]:
    return [run[column] for run in runs if run[column] is not None]


def _order(one: Condition, contexts: Mapping[str, int]) -> tuple[Any, ...]:
    """The condition's, with training contexts in the order that they are asked in, others after them."""
    *first, trained, settings = one.order
    return (*first, contexts.get(trained, len(contexts)), trained, settings)


def _places(names: Iterable[Any]) -> dict[Any, int]:
    """Every name and where it first stood."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}
