"""One run as a row: who is trained on what and asked where, and what came of it beside the base."""

import math
from collections.abc import Mapping
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study
from sublim_cli.preference.score import broken_reason
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.report.tables.conditions import Run
from sublim_cli.report.tables.reader import ContextScores, Losses, StoreReader
from sublim_cli.report.tables.varied_keys import varied_keys
from sublim_cli.trainers.methods import alpha

READ = 200
"""Students whose scores are read to see how far runs stray; more would not change a digit that counts."""


def planned_runs(study: Study, shelf: StoreReader) -> list[Run]:
    """Every cell in every context it is asked in; of the first `READ` built ones with what came of it."""
    found: list[Run] = []
    bases: dict[tuple[str, str], Mapping[str, ContextScores]] = {}
    read = 0
    for cell, settings in zip(study.cells, varied_keys(study.cells), strict=True):
        own: Mapping[str, ContextScores] = {}
        target, base = cell.recipe.trait.target, cell.chain.base
        if read < READ and (own := shelf.scores(cell.chain.eval, target)):
            read += 1
            if (target, digest(base)) not in bases:
                bases[target, digest(base)] = shelf.scores(base, target)
        lost = shelf.losses(cell.chain.train) if own else Losses()
        same = {**who(cell), "settings": settings.text}
        for context in cell.chain.eval.spec.contexts:
            row = {**same, **compared(context, own, bases.get((target, digest(base)), {}), lost)}
            found.append({**row, "p_target": row["p_target"] if context.name in own else None})
    return found


def who(cell: Cell) -> dict[str, Any]:
    """What was trained: the choices as they were resolved, not as they were written."""
    step = cell.chain.train
    train = step.spec.train
    ranked = train.method in RANKED
    return {
        "name": step.title,
        "role": cell.role,
        "category": cell.recipe.trait.category,
        "target": cell.recipe.trait.target,
        "method": train.method,
        "rank": train.rank if ranked else None,
        "alpha": alpha(train) if ranked else None,
        "learning_rate": train.learning_rate,
        "precision": train.precision,
        "train_context": step.spec.context.name,
        "train_seed": train.seed,
        "data_seed": cell.chain.generate.spec.sampling.seed,
        "train_digest": digest(step),
        "eval_digest": digest(cell.chain.eval),
    }


def compared(
    context: Context, own: Mapping[str, ContextScores], base: Mapping[str, ContextScores], lost: Losses
) -> dict[str, Any]:
    """A model's values in one context beside the base's in the same one."""
    mine, theirs = own.get(context.name, ContextScores()), base.get(context.name, ContextScores())
    return {
        "eval_context": context.name,
        "p_target": mine.p_target,
        "p_target_base": theirs.p_target,
        "difference": mine.p_target - theirs.p_target,
        "log_form": mine.log_form,
        "log_form_base": theirs.log_form,
        "p_any": mine.p_any,
        "p_any_base": theirs.p_any,
        "entropy": mine.entropy,
        "entropy_base": theirs.entropy,
        "number_loss": lost.after,
        "number_loss_before": lost.before,
        "unresolved": mine.unresolved,
        "broken": "" if math.isnan(mine.p_any) else _broken(mine, theirs, lost),
    }


def _broken(mine: ContextScores, theirs: ContextScores, lost: Losses) -> str:
    # What was not measured is NaN, and a comparison with NaN accuses nobody.
    return broken_reason(mine.p_any, theirs.p_any, lost.after, lost.before)
