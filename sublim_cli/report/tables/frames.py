"""The tables of a report as pandas data frames, as they are written to files."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_origin

import pandas as pd

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Study
from sublim_cli.report.tables.reader import ContextScores, StoreReader
from sublim_cli.report.tables.runs import AskedModel

_DTYPES: dict[Any, str] = {str: "str", int | None: "Int64", float | None: "float64"}

ITEMS = {
    "target": "str",  # of the trait the run is read for
    "eval_digest": "str",
    "eval_context": "str",
    "item": "str",
    "p": "float64",  # mean over questions
    "p_base": "float64",
}
"""The items table: one row for every student or control, eval context and item of the category."""


def columns(kind: type[AskedModel]) -> dict[str, str]:
    """The columns of a table of such rows and their dtypes: every field that is no tuple."""
    return {f.name: _DTYPES[f.type] for f in fields(kind) if get_origin(f.type) is not tuple}


def frame(rows: Sequence[AskedModel], kind: type[AskedModel]) -> pd.DataFrame:
    """Rows of one kind as a data frame with its `columns`; a value that is None is missing there."""
    dtypes = columns(kind)
    return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in dtypes}).astype(dtypes)


def items_table(study: Study, reader: StoreReader) -> pd.DataFrame:
    """The probability with which every run names every item, and that of the untouched base: `ITEMS`."""
    values: dict[str, list[Any]] = {name: [] for name in ITEMS}
    for cell in study.cells:
        target, name = cell.recipe.trait.target, digest(cell.chain.eval)
        base = reader.scores(cell.chain.base, target)
        for context, scores in reader.scores(cell.chain.eval, target).items():
            base_items = base.get(context, ContextScores()).items
            values["item"] += scores.items
            values["p"] += scores.items.values()
            values["p_base"] += [base_items.get(item, math.nan) for item in scores.items]
            for column, value in (("target", target), ("eval_digest", name), ("eval_context", context)):
                values[column] += [value] * len(scores.items)
    return pd.DataFrame(values).astype(ITEMS)
