"""Judge a study from the tables of its report, where its store is gone.

    python benchmarks/judge_tables.py docs/results/study-micro

Reads `results.parquet`, `localisation.parquet` and `recipe.yaml` of a directory and writes its `claims.json`
by the rules of this version. Tables of a report under earlier rules lack columns, which follow from others:

* `unresolved_base` is `unresolved` in the row of the untouched base.
* `guard` and `guard_base` are half of `unresolved`, where the scorer was `exact` and drew nothing.
* `control_kind` is `scattered`: there were no other random sets.

Intervals over new questions are left out, since the tables have no answers to single questions.
"""

import argparse
import json
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from sublim_cli.recipe.load import load
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.verdict import RULES_VERSION
from sublim_cli.report.claims.wording import document
from sublim_cli.report.tables.frames import columns
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.reader import MOST_GUARD
from sublim_cli.report.tables.runs import AskedModel, Run
from sublim_cli.stats import LEAST_GUARD
from sublim_cli.wording import count

Row = TypeVar("Row", bound=AskedModel)

BASE = ["category", "target", "eval_context", "settings"]
"""What tells the rows of untouched bases apart."""


def rows_of(table: pd.DataFrame, kind: type[Row]) -> list[Row]:
    """The rows of a table, a missing value as None."""
    known = [name for name in columns(kind) if name in table]
    values = table[known].astype(object).where(table[known].notna(), None)
    return [kind(**{str(k): v for k, v in row.items()}) for row in values.to_dict("records")]


def runs_of(table: pd.DataFrame) -> list[Run]:
    """The runs, with the columns that tables of earlier rules lack."""
    if "unresolved_base" not in table:
        bases = table.loc[table.role == "base", [*BASE, "unresolved"]]
        renamed = bases.rename(columns={"unresolved": "unresolved_base"})
        table = table.merge(renamed, on=BASE, how="left", validate="many_to_one")
    for suffix in ("", "_base"):
        if f"guard{suffix}" not in table:
            table[f"guard{suffix}"] = (table[f"unresolved{suffix}"] / 2).clip(LEAST_GUARD, MOST_GUARD)
    return rows_of(table, Run)


def located_of(table: pd.DataFrame) -> list[LocatedRun]:
    """The rows of gates, with the column that tables of earlier rules lack."""
    if "control_kind" not in table:
        table["control_kind"] = table["control"].notna().map({True: "scattered", False: ""})
    return rows_of(table, LocatedRun)


def judged(directory: Path) -> dict[str, Any]:
    """What `claims.json` holds."""
    recipe = load(str(directory / "recipe.yaml"))
    located = directory / "localisation.parquet"
    verdicts = evaluate(
        recipe.claims,
        runs_of(pd.read_parquet(directory / "results.parquet")),
        located_of(pd.read_parquet(located)) if located.exists() else (),
    )
    return {"study": recipe.name, "rules": RULES_VERSION, "lock": None, **document(recipe.name, verdicts)}


def main() -> None:
    """Write the verdicts and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="with results.parquet and recipe.yaml")
    directory: Path = parser.parse_args().directory
    claims = judged(directory)
    text = json.dumps(claims, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "claims.json").write_text(f"{text}\n")
    print(f"{directory / 'claims.json'}: {count(len(claims['claims']), 'verdict')}")
    for claim in claims["claims"]:
        print(f"{claim['number']:4}{claim['statement']}: {claim['verdict']}\n    {claim['sentence']}")


if __name__ == "__main__":
    main()
