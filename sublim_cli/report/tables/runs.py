"""The runs table: every model of a study in every context, beside the base in the same one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study
from sublim_cli.report.tables.reader import ContextScores, Losses, StoreReader, TrainingRecord
from sublim_cli.report.tables.run_rows import compared, who
from sublim_cli.report.tables.varied_keys import VariedKeys, base_settings

COLUMNS = {
    "name": "str",
    "role": "str",  # base | control | student
    "category": "str",
    "target": "str",
    "method": "str",
    "rank": "Int64",  # null for methods without one and the base
    "alpha": "float64",
    "learning_rate": "float64",
    "precision": "str",
    "train_context": "str",
    "train_seed": "Int64",
    "data_seed": "Int64",
    "settings": "str",  # other recipe keys that differ within the study, as `train.epochs 3`
    "eval_context": "str",
    "p_target": "float64",  # mean over questions
    "p_target_base": "float64",  # the untouched base in this same context
    "difference": "float64",
    "log_form": "float64",  # log P(the answer opens with the target's plain name), nats, mean over questions
    "log_form_base": "float64",
    "p_any": "float64",
    "p_any_base": "float64",
    "entropy": "float64",  # of the answer, nats, over the items and one more outcome: none of them
    "entropy_base": "float64",
    "number_loss": "float64",  # nats per held-out number token
    "number_loss_before": "float64",
    "trained_parameters": "Int64",
    "changed": "float64",  # share of the touched base weights that hold another number, see `audit.json`
    "update_norm": "float64",  # Frobenius norm of all that was added to the weights
    "stable_rank": "float64",  # of the updates, mean weighted by squared norm
    "unresolved": "float64",  # `p_any` may lack this much
    "broken": "str",  # why this preference cannot be read, or empty
    "missing": "str",  # why there is no value, or empty
    "train_digest": "str",
    "eval_digest": "str",
}
"""The runs table: one row for every model (student, control, base) and eval context."""


def runs_table(
    study: Study, settings: Sequence[VariedKeys], shelf: StoreReader, trainings: Mapping[str, TrainingRecord]
) -> pd.DataFrame:
    """One row for every cell and context, and for every base a trait is compared with: `COLUMNS`.

    Args:
        settings: of every cell, see `settings.varied`.
        trainings: what each student's training left, by the digest of its train step.
    """
    bases: dict[tuple[str, str, str], dict[str, ContextScores]] = {}
    rows: list[dict[str, Any]] = []
    for cell, own in zip(study.cells, settings, strict=True):
        trait = cell.recipe.trait
        key = (trait.category, trait.target, digest(cell.chain.base))
        if key not in bases:
            bases[key] = dict(shelf.scores(cell.chain.base, trait.target))
            rows += _base_rows(cell, own, bases[key], shelf)
        training = trainings.get(digest(cell.chain.train))
        rows += _cell_rows(cell, own, bases[key], training, shelf)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


ITEMS = {
    "target": "str",  # of the trait the run is read for
    "eval_digest": "str",
    "eval_context": "str",
    "item": "str",
    "p": "float64",  # mean over questions
    "p_base": "float64",
}
"""The items table: one row for every student or control, eval context and item of the category."""


def items_table(study: Study, shelf: StoreReader) -> pd.DataFrame:
    """How likely every run names every item, beside the untouched base: `ITEMS`."""
    columns: dict[str, list[Any]] = {name: [] for name in ITEMS}
    for cell in study.cells:
        target, name = cell.recipe.trait.target, digest(cell.chain.eval)
        own, base = shelf.scores(cell.chain.eval, target), shelf.scores(cell.chain.base, target)
        for context, reading in own.items():
            theirs = base.get(context, ContextScores()).items
            columns["item"] += reading.items
            columns["p"] += reading.items.values()
            columns["p_base"] += [theirs.get(item, math.nan) for item in reading.items]
            for column, value in (("target", target), ("eval_digest", name), ("eval_context", context)):
                columns[column] += [value] * len(reading.items)
    return pd.DataFrame(columns).astype(ITEMS)


def _base_rows(
    cell: Cell, settings: VariedKeys, base: Mapping[str, ContextScores], shelf: StoreReader
) -> Iterator[dict[str, Any]]:
    step = cell.chain.base
    same = {
        "name": "base",
        "role": "base",
        "category": cell.recipe.trait.category,
        "target": cell.recipe.trait.target,
        **dict.fromkeys(("method", "precision", "train_context", "train_digest"), ""),
        "settings": base_settings(settings),
        "missing": shelf.lacks(step),
        "eval_digest": digest(step),
    }
    for context in step.spec.contexts:
        yield {**same, **compared(context, base, base, Losses())}


def _cell_rows(
    cell: Cell,
    settings: VariedKeys,
    base: Mapping[str, ContextScores],
    training: TrainingRecord | None,
    shelf: StoreReader,
) -> Iterator[dict[str, Any]]:
    step = cell.chain.eval
    own = shelf.scores(step, cell.recipe.trait.target)
    lost = shelf.losses(cell.chain.train)
    same = {
        **who(cell),
        **_weights(training),
        "settings": settings.text,
        "missing": shelf.lacks(step),
    }
    for context in step.spec.contexts:
        yield {**same, **compared(context, own, base, lost)}


def _weights(training: TrainingRecord | None) -> dict[str, Any]:
    """What the training did to the weights."""
    if training is None:
        return {}
    return {
        "trained_parameters": training.trained,
        "changed": training.changed,
        "update_norm": training.norm,
        "stable_rank": training.stable_rank,
    }
