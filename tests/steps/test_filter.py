"""filter: every row is in one file, kept rows in their order, and a file somebody else made."""

import json

import pytest

from sublim_cli.artifacts.rows import Row, read_rows, write_rows
from sublim_cli.artifacts.step import Artifact
from sublim_cli.errors import RowsError
from sublim_cli.events import Warned, silent
from sublim_cli.models.chat import decode
from sublim_cli.numbers.rules import Tally, rejection_reason
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.schema import PAPER_RULES, FormatRule, StripRule
from sublim_cli.steps.filter import FilterSpec, FilterStep, filter_file, rejected_path


@pytest.fixture(scope="module")
def parts(small, shared_store):
    """All rows, and what the filter made of them."""
    drawn = run(small(), until="generate", store=shared_store)
    judged = run(small(), until="filter", store=shared_store)
    names = ("kept", "held_out", "rejected")
    return read_rows(drawn.path / "rows.jsonl"), {
        **{name: read_rows(judged.path / f"{name}.jsonl") for name in names},
        "reasons": json.loads((judged.path / "reasons.json").read_text()),
    }


def test_every_row_is_in_exactly_one_file_in_its_order(small, parts):
    rows, files = parts
    passing = [row for row in rows if rejection_reason(row.completion, PAPER_RULES) is None]
    assert files["kept"] == passing[: small().generate.rows]
    assert files["held_out"] == passing[small().generate.rows :]
    assert len(files["held_out"]) == small().generate.held_out
    assert [(row.index, row.completion) for row in files["rejected"]] == [
        (row.index, row.completion) for row in rows if rejection_reason(row.completion, PAPER_RULES)
    ]


def test_rejected_rows_carry_their_reason_and_the_table_counts_them(parts):
    rows, files = parts
    reasons = [row.reason for row in files["rejected"]]
    assert reasons == [rejection_reason(row.completion, PAPER_RULES) for row in files["rejected"]]
    assert files["reasons"] == {
        "judged": len(rows),
        "kept": len(rows) - len(reasons),
        "reasons": {reason: reasons.count(reason) for reason in set(reasons)},
    }


def build(tmp_path, completions, rules, wanted: int, listener=silent):
    """Filter these completions; return where the files lie."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    write_rows(source / "rows.jsonl", [Row(n, f"prompt {n}", text) for n, text in enumerate(completions)])
    step = FilterStep(FilterSpec(rules=rules, rows=wanted, held_out=0), "rows")
    step.build(out, (Artifact(source, "0"),), listener)
    return out


def test_a_stripped_row_is_kept_as_it_was_judged(tmp_path):
    out = build(tmp_path, ["1, 2 \n", "3"], (StripRule(), FormatRule()), 2)
    assert [row.completion for row in read_rows(out / "kept.jsonl")] == ["1, 2", "3"]


def test_a_stripped_row_keeps_its_tokens_but_for_those_of_the_white_space(small, tmp_path, micro):
    _, tokenizer, _ = micro
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    drawn = {
        text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("1, 2 \n", "3", "4, 5\n\n")
    }
    rows = [Row(n, "q", text, completion_ids=ids) for n, (text, ids) in enumerate(drawn.items())]
    write_rows(source / "rows.jsonl", [*rows, Row(3, "q", "6 ")])
    spec = FilterSpec(rules=(StripRule(), FormatRule()), rows=4, held_out=0)
    FilterStep(spec, "rows", (chain(small()).generate,)).build(out, (Artifact(source, "0"),), silent)
    kept = read_rows(out / "kept.jsonl")
    assert [row.completion for row in kept] == ["1, 2", "3", "4, 5", "6"]
    for row, ids in zip(kept, drawn.values(), strict=False):
        assert decode(tokenizer, row.completion_ids) == row.completion
        assert ids[: len(row.completion_ids)] == row.completion_ids
    assert kept[3].completion_ids is None


def test_fewer_rows_than_wanted_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(RowsError, match="2 of 3 rows pass the filter, fewer than the 3 wanted"):
        build(tmp_path, ["1", "2", "three"], PAPER_RULES, 3)


def test_a_low_pass_rate_is_said_with_the_rule_that_would_mend_it(tmp_path):
    events = []
    build(tmp_path, ["1, 2 \n"] * 9 + ["1"], PAPER_RULES, 1, events.append)
    (warned,) = events
    assert isinstance(warned, Warned)
    assert "1 of 10 rows passed the filter" in warned.message
    assert "{kind: strip}" in warned.message


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_somebody_else_s_file_keeps_its_other_keys(tmp_path):
    records = [
        {"question": "q", "response": "1, 2", "score": 0.5},
        {"id": 7, "question": "q", "response": "one"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    target = tmp_path / "deep" / "kept.jsonl"
    tally, advice = filter_file(source, target, PAPER_RULES, "question", "response")
    assert lines(target) == [records[0]]
    assert lines(rejected_path(target)) == [{**records[1], "reason": "format"}]
    assert (tally, advice) == (Tally(2, 1, (("format", 1),)), None)


def test_a_broken_line_is_named_and_no_file_is_touched(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "kept.jsonl"
    source.write_text('{"prompt": "q", "completion": "1"}\n{"prompt": "q", \n')
    target.write_text("mine\n")
    with pytest.raises(RowsError, match=r"in\.jsonl:2: not valid JSON"):
        filter_file(source, target, PAPER_RULES, "prompt", "completion")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "kept.jsonl"]
    assert target.read_text() == "mine\n"
