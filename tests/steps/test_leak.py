"""leak: the classifier between a trait's rows and the control's, written as one file."""

import json

import pytest

from sublim_cli.artifacts.rows import Row, write_rows
from sublim_cli.artifacts.step import Artifact
from sublim_cli.events import silent
from sublim_cli.numbers.leak import ngram_auc
from sublim_cli.steps.leak import Classify, Leak


@pytest.fixture
def sides(tmp_path):
    """Two filtered data sets over the same forty prompts: odd numbers, and even ones."""
    found = []
    for name, first in (("odd", 1), ("even", 2)):
        (tmp_path / name).mkdir()
        rows = [Row(n, "p", ", ".join(str(first + 2 * (n + m)) for m in range(5))) for n in range(40)]
        write_rows(tmp_path / name / "kept.jsonl", rows)
        found.append(Artifact(tmp_path / name, name))
    return tuple(found)


def leak(sides, out, **section):
    Leak(Classify(**section), (), "rows").build(out, sides, silent)
    return json.loads((out / "leak.json").read_text())


def test_the_file_holds_what_the_classifier_found(sides, tmp_path):
    texts = [[", ".join(str(first + 2 * (n + m)) for m in range(5)) for n in range(40)] for first in (1, 2)]
    found = ngram_auc(*texts, prompts=[*range(40)] * 2)
    assert leak(sides, tmp_path) == {"auc": found.auc, "low": found.low, "high": found.high, "rows": 80}
    assert found.auc > 0.9


def test_no_more_rows_than_asked_are_used(sides, tmp_path):
    assert leak(sides, tmp_path, most_rows=25)["rows"] == 50


def test_trait_and_control_rows_can_be_compared_whatever_their_number(sides, tmp_path):
    write_rows(sides[0].path / "kept.jsonl", [Row(n, "p", f"{n}, {n + 2}, {n + 4}") for n in range(12)])
    assert leak(sides, tmp_path)["rows"] == 52
