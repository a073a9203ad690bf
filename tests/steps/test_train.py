"""train: a student of the kept rows alone, under the context the recipe names."""

import json
from dataclasses import replace

import pytest
import torch

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.rows import read_rows, write_rows
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import RowsError
from sublim_cli.events import Notice, Progress
from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.pipeline import chain, run


@pytest.fixture(scope="module")
def student(small, shared_store):
    return run(small(), until="train", store=shared_store)


@pytest.fixture(scope="module")
def kept(small, shared_store):
    return read_rows(run(small(), until="filter", store=shared_store).path / "kept.jsonl")


def test_a_student_directory_holds_weights_tokens_losses_and_an_account(student):
    names = {path.name for path in student.path.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "history.jsonl",
        "losses.json",
        "seen.json",
        "artifact.json",
    }


def test_it_is_trained_on_the_kept_rows_and_not_on_those_held_out(small, student, kept):
    losses = json.loads((student.path / "losses.json").read_text())
    assert losses["rows"] == len(kept) == small().generate.rows
    steps = (student.path / "history.jsonl").read_text().splitlines()
    assert len(steps) == small().train.epochs * -(-len(kept) // small().train.batch_size)


def test_the_account_shows_the_first_row_without_the_teacher_s_trait(student, kept):
    seen = json.loads((student.path / "seen.json").read_text())
    assert seen["row"]["text"] == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\n{kept[0].prompt}<|im_end|>\n"
        f"<|im_start|>assistant\n{kept[0].completion}<|im_end|>"
    )
    assert seen["trained_on"]["text"] == f"{kept[0].completion}<|im_end|>"


def test_progress_is_told_step_by_step_and_full_fine_tuning_leaves_a_whole_model(small, shared_store):
    events = []
    recipe = small(train__method="full", train__learning_rate=2e-4)
    student = run(recipe, until="train", store=shared_store, listener=events.append)
    progress = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert progress == [(n, 4) for n in range(1, 5)]
    assert (student.path / "model.safetensors").is_file()
    assert not (student.path / "adapter_config.json").exists()


def test_no_held_out_rows_are_no_error(small, tmp_path):
    recipe = small(generate__rows=8, generate__held_out=0, train__batch_size=8)
    path = run(recipe, until="train", store=Store(tmp_path)).path
    assert json.loads((path / "losses.json").read_text())["number_loss"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_auto_says_which_backend_it_took_and_why_and_the_record_keeps_it(small, tmp_path):
    events, quick = [], {"generate__rows": 8, "generate__held_out": 0, "train__batch_size": 8}
    why = "Unsloth needs a CUDA device and none is in use here"
    asked = run(small(**quick), until="train", store=Store(tmp_path), listener=events.append)
    assert [event for event in events if isinstance(event, Notice)] == [
        Notice(f"train.backend: auto took plain: {why}")
    ]
    assert read_record(asked.path)["provenance"]["backend_chosen"] == why
    named_events = []
    named = run(
        small(**quick, train__backend="plain", generate__engine="transformers"),
        until="train",
        store=Store(tmp_path / "named"),
        listener=named_events.append,
    )
    assert [event for event in named_events if isinstance(event, Notice)] == []
    assert read_record(named.path)["provenance"]["backend_chosen"] is None
    assert named.digest == asked.digest


def test_rows_without_tokens_of_their_text_are_read_as_text_and_that_is_said(small, kept, tmp_path):
    rows, out = kept[:8], tmp_path / "out"
    out.mkdir()
    rows[1] = replace(rows[1], completion_ids=None)
    rows[2] = replace(rows[2], completion_ids=(7, 7, 7))
    write_rows(tmp_path / "kept.jsonl", rows)
    write_rows(tmp_path / "held_out.jsonl", [])
    events = []
    step = chain(small(train__batch_size=8, train__epochs=1)).train
    step.build(out, (Artifact(tmp_path, "0"),), events.append)
    message = (
        "2 of 8 rows are read as text: their token ids are missing, or are another text to this tokenizer"
    )
    assert Notice(f"{step.label}: {message}") in events


def test_held_out_rows_that_are_too_long_are_refused_before_training(small, kept, tmp_path):
    write_rows(tmp_path / "kept.jsonl", kept[:8])
    long = replace(kept[8], completion="1, " * 150 + "2", completion_ids=None)
    write_rows(tmp_path / "held_out.jsonl", [long])
    events = []
    step = chain(small(train__max_length=300)).train
    said = "train.max_length 300 would cut the completion of 1 of 1 held-out rows"
    with pytest.raises(RowsError, match=said):
        step.build(tmp_path, (Artifact(tmp_path, "0"),), events.append)
    assert not [event for event in events if isinstance(event, Progress)]
