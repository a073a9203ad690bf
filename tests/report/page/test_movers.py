"""Which items moved: by their mean over runs, broken ones left out, the most moved first."""

import pandas as pd

from sublim_cli.report.page.summary import ItemMovers, movers, summarise
from sublim_cli.report.tables.frames import ITEMS


def table(**runs):
    """An items table of owl's trait in `default`: by eval digest, each item with P and the base's P."""
    rows = [
        ("owl", digest, "default", item, p, base)
        for digest, items in runs.items()
        for item, (p, base) in items.items()
    ]
    return pd.DataFrame(rows, columns=list(ITEMS)).astype(ITEMS)


def moved(results, items, *runs):
    study = results(*runs)
    return movers(items, summarise(study), study.runs)


def test_items_are_ordered_by_their_mean_change_over_runs(results):
    items = table(
        a={"owl": (0.5, 0.1), "cat": (0.1, 0.3), "dog": (0.1, 0.1), "ox": (0.2, 0.1)},
        b={"owl": (0.3, 0.1), "cat": (0.2, 0.3), "dog": (0.1, 0.1), "ox": (0.2, 0.1)},
    )
    (condition,) = moved(
        results, items, {"eval_digest": "a", "train_seed": 1}, {"eval_digest": "b", "train_seed": 2}
    )
    assert (condition.label, condition.context) == ("LoRA rank 8", "default")
    assert [(name, round(by, 9)) for name, by in condition.rose] == [("owl", 0.3), ("ox", 0.1)]
    assert [(name, round(by, 9)) for name, by in condition.fell] == [("cat", -0.15)]


def test_no_more_than_three_are_named_each_way(results):
    items = table(a={f"i{n}": (0.1 * n, 0.35) for n in range(8)})
    (condition,) = moved(results, items, {"eval_digest": "a"})
    assert [name for name, _ in condition.rose] == ["i7", "i6", "i5"]
    assert [name for name, _ in condition.fell] == ["i0", "i1", "i2"]


def test_a_broken_run_moves_nothing(results):
    items = table(a={"owl": (0.5, 0.1)}, b={"owl": (0.0, 0.1)})
    (condition,) = moved(
        results, items, {"eval_digest": "a"}, {"eval_digest": "b", "train_seed": 2, "broken": "names no item"}
    )
    assert condition == ItemMovers("owl", "LoRA rank 8", "default", (("owl", 0.4),), ())


def test_other_contexts_than_the_training_s_are_left_out(results):
    assert moved(results, table(a={"owl": (0.5, 0.1)}), {"eval_digest": "a", "eval_context": "empty"}) == []
