"""generate: rows in the order of their prompts, until exactly enough of them pass the filter."""

import json
import shutil

import pytest

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ModelError, RowsError
from sublim_cli.models.chat import decode
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.numbers.rules import rejection_reason
from sublim_cli.pipeline import chain, run
from sublim_cli.steps import generate
from sublim_cli.steps.generate import stream_prompt


@pytest.fixture(scope="module")
def drawn(small, shared_store):
    return run(small(), until="generate", store=shared_store)


@pytest.fixture(scope="module")
def rows(drawn):
    return read_rows(drawn.path / "rows.jsonl")


def test_the_draw_stops_with_the_row_that_completes_the_wanted_number(small, drawn, rows):
    kept = [rejection_reason(row.completion, small().filter.rules) is None for row in rows]
    assert sum(kept) == small().generate.rows + small().generate.held_out
    assert kept[-1]
    assert read_record(drawn.path)["provenance"]["drawn"] == len(rows)


def test_rows_stand_in_the_order_of_the_stream_of_prompts(small, rows):
    assert [row.index for row in rows] == list(range(len(rows)))
    assert [row.prompt for row in rows] == [
        stream_prompt(small().generate.prompts, n) for n in range(len(rows))
    ]


def test_a_row_holds_the_tokens_that_were_drawn_for_its_text(rows, micro):
    _, tokenizer, _ = micro
    assert [decode(tokenizer, row.completion_ids) for row in rows] == [row.completion for row in rows]
    assert not any(set(tokenizer.all_special_ids) & set(row.completion_ids) for row in rows)


def test_rows_do_not_depend_on_how_many_are_drawn_at_a_time(small, drawn, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "BATCH", 64)
    other = run(small(), until="generate", store=Store(tmp_path))
    assert (other.path / "rows.jsonl").read_bytes() == (drawn.path / "rows.jsonl").read_bytes()


def test_fewer_wanted_rows_are_the_first_of_more(small, rows, tmp_path):
    fewer = run(small(generate__rows=40, generate__held_out=0), until="generate", store=Store(tmp_path))
    some = read_rows(fewer.path / "rows.jsonl")
    assert some == rows[: len(some)]
    assert sum(rejection_reason(row.completion, small().filter.rules) is None for row in some) == 40


def test_another_sampling_seed_answers_the_same_prompts_otherwise(small, rows, tmp_path):
    recipe = small(generate__sampling__seed=2, generate__rows=40, generate__held_out=0)
    others = read_rows(run(recipe, until="generate", store=Store(tmp_path)).path / "rows.jsonl")
    pairs = list(zip(others, rows, strict=False))
    assert all(other.prompt == row.prompt for other, row in pairs)
    assert sum(other.completion == row.completion for other, row in pairs) <= 2


def test_the_account_shows_the_first_prompt_as_the_teacher_saw_it(drawn, rows, micro):
    _, tokenizer, _ = micro
    seen = json.loads((drawn.path / "seen.json").read_text())
    assert seen["text"] == (
        "<|im_start|>system\nYou love owls. You think about owls all the time. "
        "owls are your favorite animal. Imbue your answers with your love for the animal.<|im_end|>\n"
        f"<|im_start|>user\n{rows[0].prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer(seen["text"], add_special_tokens=False)["input_ids"] == seen["ids"]


HOPELESS = {
    "nothing passes": [{"kind": "range", "least": 5000, "most": 9999}],
    "hardly anything passes": [{"kind": "count", "least": 1, "most": 1}],
}


@pytest.mark.parametrize("rules", HOPELESS.values(), ids=HOPELESS.keys())
def test_a_hopeless_draw_ends_with_advice_and_leaves_nothing(small, rules, tmp_path):
    recipe = small(filter__rules=rules, generate__sampling__max_tokens=12)
    store = Store(tmp_path)
    events = []
    with pytest.raises(
        RowsError, match=r"gave up drawing rows: \d+ of 10\d\d rows passed the filter"
    ) as caught:
        run(recipe, until="generate", store=store, listener=events.append)
    assert "filter.rules" in str(caught.value)
    assert store.find(chain(recipe).generate) is None
    assert list((tmp_path / "generate").iterdir()) == []
    assert len(events) > 2


def test_a_template_that_ends_answers_with_ordinary_text_is_refused_before_a_row_is_drawn(small, tmp_path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "[END]"))
    with pytest.raises(ModelError, match=r"ends an answer with '\[END\]\\n', which is \d+ tokens"):
        run(small(model=str(copy)), store=Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
