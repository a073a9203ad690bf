"""The training table: what many students' audits say together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.report.page.figures.rendering import SPARK, sparkline
from sublim_cli.report.page.write import write_report
from sublim_cli.report.tables.audits import audit_rows
from sublim_cli.report.tables.reader import TrainingRecord
from sublim_cli.report.tables.runs import Run
from sublim_cli.wording import many, share
from tests.report.conftest import FULL, RUN, runs_of

AUDIT: dict[str, Any] = {
    "dtypes": {
        "frozen": {"uint8": 900},
        "trained": {"float32": 100},
        "compensated": False,
        "optimizer_state": {"exp_avg": ["float32"], "exp_avg_sq": ["float32"]},
    },
    "parameters": {"total": 1_540_000_000, "trained": 100_000, "changed": 90},
    "effective": {"entries": 200, "changed": 62},
    "update": {"norm": 2.0, "stable_rank": 1.5},
    "tokens_with_loss": 1234,
    "random_sources": {"data_order": True, "adapter_init": True, "dropout": False},
}


def record(loss: tuple[float, ...] = (3.5, 3.25), **changes: Any) -> TrainingRecord:
    return TrainingRecord(
        {**AUDIT, **changes},
        {"tokens_per_second": 5000, "peak_memory_mib": None},
        loss,
    )


def table(*changes: dict[str, Any]) -> tuple[Run, ...]:
    return runs_of({**RUN, **change} for change in changes)


SEEDS = [{"train_seed": seed, "train_digest": str(seed)} for seed in (1, 2, 3)]


def test_students_of_a_condition_are_one_row() -> None:
    runs = table(*SEEDS, *({**change, "eval_context": "empty"} for change in SEEDS))
    (row,) = audit_rows(
        runs,
        {
            "1": record((4.0, 3.0)),
            "2": record((3.0, 2.0, 1.0)),
            "3": record((5.0, 4.0), update={"norm": 5.0, "stable_rank": 3.0}),
        },
        lambda digests: {("1", "2", "3"): 0.25}[tuple(digests)],
    )
    assert (row.n, row.pairs, row.norm, row.stable_rank) == (3, 3, 3.0, 2.0)
    assert row.cosine == 0.25
    assert row.loss == (4.0, 3.0, 1.0)
    assert row.random == "row order and adapter start"
    assert row.weights == "base uint8, trained float32, optimizer float32"
    assert (row.changed, row.memory) == (0.31, None)


def test_students_of_other_rows_differ_in_them_too() -> None:
    runs = table(*({**change, "data_seed": seed} for seed, change in enumerate(SEEDS)))
    (row,) = audit_rows(runs, {change["train_digest"]: record() for change in SEEDS}, lambda _: 1.0)
    assert row.random == "row order, adapter start and the teacher's rows"


def test_what_moved_no_weight_has_no_direction() -> None:
    still = record(update=None, effective=None)
    (row,) = audit_rows(table(*SEEDS), dict.fromkeys(["1", "2", "3"], still), lambda _: None)
    assert (row.cosine, row.pairs, row.norm, row.stable_rank, row.changed) == (None, 0, None, None, None)


def test_what_is_not_built_has_no_row_and_conditions_stay_apart() -> None:
    runs = table(*SEEDS[:2], {**FULL, "train_digest": "f"})
    rows = audit_rows(runs, {"2": record(), "f": record()}, lambda _: None)
    assert [(row.condition.method, row.n) for row in rows] == [("lora", 1), ("full", 1)]


def test_the_page_tells_the_audit_in_a_line(results, tmp_path) -> None:
    runs = [{**change, "rank": 8} for change in SEEDS]
    rows = audit_rows(table(*runs), {change["train_digest"]: record() for change in SEEDS}, lambda _: 1.0)
    page = write_report(results(*runs, audits=tuple(rows)), tmp_path).read_text(encoding="utf-8")
    for words in (
        "owl, LoRA rank 8<small",
        "3 students that differ in row order and adapter start",
        "loss on 1.23 k tokens",
        '100 k<small>1.54 B</small></td><td class="num">31 %</td><td class="num">2</td>',
        '<td class="num">1.5</td><td class="num">1.00<small>3</small></td>',
        "from 3.500 to 3.250",
        "5 k<small>not counted</small>",
    ):
        assert words in page


@given(st.lists(st.floats(-9, 9), max_size=300))
def test_a_sparkline_stays_in_its_box(values: list[float]) -> None:
    drawn = sparkline(values)
    if not values:
        assert drawn == ""
        return
    points = [
        tuple(map(float, point.split(","))) for point in drawn.split('points="')[1].split('"')[0].split()
    ]
    assert len(points) == min(SPARK, len(values))
    assert all(0 <= x <= 100 and 2 <= y <= 22 for x, y in points)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0 %"), (0.003, "<1 %"), (0.31, "31 %"), (0.9999, ">99 %"), (1.0, "100 %")],
)
def test_a_share_never_rounds_to_none_or_all(value: float | None, text: str) -> None:
    assert share(value) == text


def test_large_numbers_are_told_in_three_digits() -> None:
    assert [many(number) for number in (None, 7, 640, 284_000, 12_345_678, 7.6e9)] == [
        *("–", "7", "640", "284 k", "12.3 M", "7.6 B"),
    ]
