"""generate: rows in the order of their prompts, until exactly enough of them pass the filter."""

import json
import os
import re
import shutil

import pytest

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.row_log import RowLog
from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store
from sublim_cli.backends import transformers
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import ModelError, RowsError
from sublim_cli.events import Progress, StepFinished
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
    monkeypatch.setattr(transformers, "BATCH", 17)
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
    assert not [event for event in events if isinstance(event, StepFinished)]


def test_a_template_that_ends_answers_with_ordinary_text_is_refused_before_a_row_is_drawn(small, tmp_path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "[END]"))
    with pytest.raises(ModelError, match=r"ends an answer with '\[END\]\\n', which is \d+ tokens"):
        run(small(model=str(copy)), store=Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_what_a_killed_generation_drew_is_not_drawn_again_and_the_bytes_are_the_same(
    small, drawn, tmp_path, monkeypatch
):
    """Killed three times between two rows, once in the middle of a line; then to the end."""
    draw_all = TransformersSampler.stream
    first_rows: list[int] = []

    def killed_after_forty(self, prompts, sampling, after_step):
        for n, (row, ids) in enumerate(draw_all(self, prompts, sampling, after_step)):
            if n == 40:
                os._exit(9)
            yield row, ids

    for attempt in range(3):
        if (child := os.fork()) == 0:
            monkeypatch.setattr(TransformersSampler, "stream", killed_after_forty)
            run(small(), until="generate", store=Store(tmp_path))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        (log,) = tmp_path.glob("generate/.*.checkpoint/drawn.jsonl")
        if attempt == 1:
            log.write_bytes(log.read_bytes()[:-3])
        first_rows.append(len(RowLog(log).read()))
    assert first_rows == [40, 79, 119]
    resumed = run(small(), until="generate", store=Store(tmp_path))
    assert (resumed.path / "rows.jsonl").read_bytes() == (drawn.path / "rows.jsonl").read_bytes()
    assert read_record(resumed.path)["provenance"]["resumed"] == 119
    assert [path.name for path in (tmp_path / "generate").iterdir()] == [resumed.path.name]


def test_progress_is_told_by_the_clock_while_rows_are_drawn(small, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "PROGRESS_SECONDS", 0.02)
    events = []
    recipe = small(generate__rows=300, generate__held_out=0)
    run(recipe, until="generate", store=Store(tmp_path), listener=events.append)
    told = [event for event in events if isinstance(event, Progress)]
    assert len(told) > 5
    assert told[0].done < told[-1].done <= told[-1].total == 300
    assert "tokens/s" in told[0].note  # before any row is complete
    assert re.search(r"\d+% pass, [\d,]+ tokens/s, [\de.+]+ rows/s, about \d+ s left", told[-1].note)
