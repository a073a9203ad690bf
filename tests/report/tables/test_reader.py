"""What a store says of one student: means of scores and loss curves, read right."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from sublim_cli.report.tables.reader import ContextScores, read_scores, read_training
from sublim_cli.steps.files import AUDIT, HISTORY, SCORES, SPREADS, write_json


def scores(path, contexts=("empty", "default"), items=("owl", "cat", "wolf"), questions=4):
    draw = np.random.default_rng(3)
    rows = [
        {
            "context": context,
            "question": question,
            "item": item,
            "p": draw.random(),
            "standard_error": draw.random(),
            "uncovered": draw.random(),
            "log_form": -draw.random(),
            "samples": 64 * (question % 2),
        }
        for context in contexts
        for question in range(questions)
        for item in items
    ]
    table = pd.DataFrame(rows)
    table.to_parquet(path / SCORES)
    spreads = table.groupby(["context", "question"], sort=False).p.max().rename("entropy").reset_index()
    spreads.to_parquet(path / SPREADS)
    return table, spreads


def test_readings_are_the_means_of_the_table_context_by_context(tmp_path):
    table, spreads = scores(tmp_path)
    expected = {}
    for context in ("empty", "default"):
        here = table[table["context"] == context]
        cat = here[here["item"] == "cat"]
        expected[context] = ContextScores(
            cat["p"].mean(),
            here["p"].sum() / 4,
            cat["uncovered"].where(cat["samples"] == 0, 0).mean(),
            cat["log_form"].mean(),
            spreads[spreads["context"] == context]["entropy"].mean(),
            here.groupby("item").p.mean().to_dict(),
            tuple(cat["p"]),
            math.sqrt((cat["standard_error"] ** 2).sum()) / 4,
            0.05,  # half of the certificate's width would be more
        )
    by_context = read_scores(tmp_path, "cat")
    assert list(by_context) == list(expected)
    for context, context_scores in expected.items():
        for name, value in vars(context_scores).items():
            assert getattr(by_context[context], name) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("columns", "guard"),
    [
        ({"uncovered": 0.004, "samples": 0}, 0.002),
        ({"uncovered": 0.0, "samples": 100}, 1 / (2 * 4 * 100)),
        ({"uncovered": 0.5, "samples": 64}, 0.5 / (2 * 4 * 64)),
        ({"uncovered": 0.0, "samples": 0}, 0.0),
    ],
)
def test_the_guard_is_half_of_the_certificate_or_of_what_one_answer_weighs(tmp_path, columns, guard):
    table, _ = scores(tmp_path)
    table.assign(**columns).to_parquet(tmp_path / SCORES)
    guards = [value.guard for value in read_scores(tmp_path, "cat").values()]
    assert guards == pytest.approx([guard] * 2)


def test_where_answers_were_drawn_no_log_form_is_known(tmp_path):
    table, _ = scores(tmp_path)
    table.assign(log_form=np.nan).astype({"log_form": object}).where(
        lambda values: values.notna(), None
    ).to_parquet(tmp_path / SCORES)
    assert all(math.isnan(value.log_form) for value in read_scores(tmp_path, "cat").values())


def test_a_target_that_was_not_scored_has_no_reading(tmp_path):
    scores(tmp_path)
    assert read_scores(tmp_path, "dolphin") == {}


def test_a_curve_is_read_as_it_was_written(tmp_path):
    losses = [3.25, 1e-7, 2.0, 12345678.125]
    lines = [{"step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate(losses)]
    lines.append({"step": 4, "grad_norm": 1.0, "loss": 7})
    (tmp_path / HISTORY).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_json(tmp_path / AUDIT, {})
    assert read_training(tmp_path) == {"audit": {}, "loss": [*losses, 7]}
