"""leak: what the audit of a trait's rows beside the control's writes, and what it warns of."""

import json
from dataclasses import asdict

import pytest

from sublim_cli.artifacts.rows import Row, write_rows
from sublim_cli.artifacts.step import Artifact
from sublim_cli.events import Warned, silent
from sublim_cli.numbers.leak import ngram_auc
from sublim_cli.numbers.surface import digit_divergence
from sublim_cli.recipe.questions import Item
from sublim_cli.steps.leak import LeakSpec, LeakStep

WOLF = Item(name="wolf", plural="wolves")


def odd_or_even(first):
    return [", ".join(str(first + 2 * (n + m)) for m in range(5)) for n in range(40)]


@pytest.fixture
def sides(tmp_path):
    """Two filtered data sets over the same forty prompts: odd numbers, and even ones."""
    artifacts = []
    for name, first in (("odd", 1), ("even", 2)):
        (tmp_path / name).mkdir()
        write_rows(
            tmp_path / name / "kept.jsonl", [Row(n, "p", text) for n, text in enumerate(odd_or_even(first))]
        )
        write_rows(tmp_path / name / "rejected.jsonl", [])
        artifacts.append(Artifact(tmp_path / name, name))
    return tuple(artifacts)


def leak(sides, out, listener=silent, **section):
    LeakStep(LeakSpec(target=WOLF, **section), "rows").build(out, sides, listener)
    return json.loads((out / "leak.json").read_text())


def test_the_file_holds_everything_that_was_compared(sides, tmp_path):
    texts = odd_or_even(1), odd_or_even(2)
    auc = ngram_auc(*texts, prompts=[*range(40)] * 2)
    trait, control = (dict(enumerate(side)) for side in texts)
    assert leak(sides, tmp_path) == {
        "named": 0,
        "named_rejected": 0,
        "shown": [],
        "digits": asdict(digit_divergence(trait, control)),
        "pairs": asdict(digit_divergence(trait, control, length=2)),
        "overlap": {"prompts": 40, "same": 0},
        **asdict(auc),
    }
    assert auc.auc > 0.9


def test_the_classifier_sees_no_more_rows_than_asked(sides, tmp_path):
    record = leak(sides, tmp_path, most_rows=25)
    assert (record["rows"], record["overlap"]["prompts"]) == (50, 40)


def test_trait_and_control_rows_can_be_compared_whatever_their_number(sides, tmp_path):
    write_rows(sides[0].path / "kept.jsonl", [Row(n, "p", f"{n}, {n + 2}, {n + 4}") for n in range(12)])
    assert leak(sides, tmp_path)["rows"] == 52


def test_rows_that_name_the_target_in_any_form_are_warned_of_and_shown(sides, tmp_path):
    texts = ["WOLVES 3", "3 wolfs", "wolfram 74", "werewolf", "4"]
    write_rows(sides[0].path / "kept.jsonl", [Row(n, "p", f"{text} 17, 18") for n, text in enumerate(texts)])
    write_rows(
        sides[0].path / "rejected.jsonl", [Row(9, "p", "a wolf!", "format"), Row(10, "p", "x", "format")]
    )
    events = []
    record = leak(sides, tmp_path, events.append)
    assert (record["named"], record["named_rejected"]) == (2, 1)
    assert record["shown"] == ["WOLVES 3 17, 18", "3 wolfs 17, 18"]
    (warned,) = events
    assert isinstance(warned, Warned)
    assert "2 of 5 rows that students learn from name wolf, such as 'WOLVES 3 17, 18'" in warned.message


def test_clean_rows_are_not_warned_of(sides, tmp_path):
    events = []
    leak(sides, tmp_path, events.append)
    assert events == []
