import pytest

from sublim_cli.report.page.narrative import paragraphs
from sublim_cli.report.page.summary import summarise
from sublim_cli.stats import Interval

CONTROL = {"role": "control"}


def only(rows):
    (row,) = rows
    return row


def labels(rows):
    return [row.label for row in rows]


def test_rows_go_from_base_over_control_and_ascending_ranks_to_full_fine_tuning(troubled):
    assert labels(summarise(troubled)) == [
        "untouched base",
        "control, LoRA rank 8",
        "LoRA rank 1",
        "LoRA rank 8",
        "LoRA rank 64",
        "full fine-tuning",
    ]


def test_training_contexts_come_in_the_order_that_they_are_asked_in(results):
    asked = ("none", "empty", "claude")
    trained = ("claude", "default", "none")
    study = results(*({"train_context": t, "eval_context": a} for t in trained for a in asked))
    assert labels(summarise(study))[::3] == [
        "LoRA rank 8, trained in none",
        "LoRA rank 8, trained in claude",
        "LoRA rank 8, trained in default",
    ]


def test_runs_that_differ_in_their_seeds_alone_are_averaged(troubled):
    row = summarise(troubled)[2]
    margin = 12.706204736174698 * 0.1  # t with one degree of freedom; the standard error is 0.1
    assert row.p_target == Interval(pytest.approx(0.4), 0.0, 1.0, 2)
    assert row.difference == Interval(pytest.approx(0.3), pytest.approx(0.3 - margin), 1.0, 2)
    assert (row.base, row.n, row.ratio) == (pytest.approx(0.1), 2, pytest.approx(4.0))


def test_a_broken_run_is_counted_and_not_averaged(troubled):
    row = summarise(troubled)[3]
    assert (row.p_target, row.n, row.broken, row.state) == (Interval(0.4, None, None, 1), 1, 1, "ok")


def test_a_condition_whose_runs_are_all_broken_says_so(troubled):
    row = summarise(troubled)[4]
    assert (row.p_target, row.difference, row.ratio, row.n, row.state) == (None, None, None, 0, "broken")


def test_a_condition_that_could_not_be_built_is_still_a_row(troubled):
    row = summarise(troubled)[5]
    assert (row.p_target, row.n, row.missing, row.state) == (None, 0, 1, "missing")


def test_the_difference_is_to_the_base_in_the_same_context(results):
    rows = summarise(
        results(
            {"p_target": 0.4, "p_target_base": 0.1, "difference": 0.3},
            {"eval_context": "empty", "p_target": 0.5, "p_target_base": 0.45, "difference": 0.05},
        )
    )
    assert [(row.eval_context, row.base, row.difference.mean) for row in rows] == [
        ("default", 0.1, 0.3),
        ("empty", 0.45, 0.05),
    ]
    assert [row.in_training_context for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"learning_rate": 0.01}, ["LoRA rank 8, lr 2e-3", "LoRA rank 8, lr 1e-2"]),
        ({"precision": "bf16_mixed"}, ["LoRA rank 8, bf16_mixed", "LoRA rank 8, fp32"]),
        ({"train_context": "claude"}, ["LoRA rank 8, trained in default", "LoRA rank 8, trained in claude"]),
        ({"alpha": 2.828, "settings": "train.alpha sqrt"}, ["LoRA rank 8, train.alpha sqrt", "LoRA rank 8"]),
        ({"settings": "train.epochs 9"}, ["LoRA rank 8", "LoRA rank 8, train.epochs 9"]),
    ],
)
def test_runs_that_differ_in_more_than_a_seed_are_kept_apart_and_told_apart(results, other, names):
    assert labels(summarise(results({}, other))) == names


@pytest.mark.parametrize("seed", [{"train_seed": 7}, {"data_seed": 7}])
def test_seeds_make_replicates(results, seed):
    assert only(summarise(results({}, seed))).n == 2


def test_traits_and_contexts_keep_the_order_of_the_study(results):
    rows = summarise(
        results(
            {"target": "wolf", "eval_context": "none"},
            {"target": "wolf", "eval_context": "empty"},
            {"target": "cat", "eval_context": "none"},
        )
    )
    assert [(row.target, row.eval_context) for row in rows] == [
        ("wolf", "none"),
        ("wolf", "empty"),
        ("cat", "none"),
    ]


def test_the_paragraph_says_what_was_seen_and_what_was_left_out(troubled):
    assert paragraphs(troubled, summarise(troubled)) == [
        "Asked in the training context (default), the untouched base names owl with probability 0.100. "
        "Students of a teacher that loves it name it with probability "
        "0.400 (LoRA rank 1; 2 runs, 4.0× the base), 0.400 (LoRA rank 8; 1 run, 4.0× the base), "
        "no value for LoRA rank 64 (broken) and no value for full fine-tuning (missing). "
        "Students of a teacher without the trait name it with probability "
        "0.100 (control, LoRA rank 8; 1 run, 1.0× the base).",
        "2 values of a run in a context came from a student that broke; "
        "they are marked and left out of the means. "
        "Not in these numbers, and listed below: 1 missing part. "
        "A single run has no interval: how much another seed would differ is not known.",
    ]


def test_many_conditions_are_told_by_the_lowest_and_the_highest(results):
    study = results(*({"rank": 2**power, "p_target": 0.1 + power / 100} for power in range(10)))
    text, _ = paragraphs(study, summarise(study))
    assert "between 0.100 (LoRA rank 1; 1 run" in text
    assert "and 0.190 (LoRA rank 512; 1 run" in text
    assert "over 10 conditions" in text


def test_a_study_of_which_nothing_is_built_claims_nothing(results):
    study = results({"p_target": None, "p_target_base": None, "p_any": None, "difference": None})
    assert paragraphs(study, summarise(study))[-1] == "No trained model has been evaluated yet."
