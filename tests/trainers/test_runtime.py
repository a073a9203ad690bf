"""The knobs of a run: how they are read, and that a mistake is one sentence."""

import os

import pytest

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.trainers import runtime as knobs
from sublim_cli.trainers.runtime import (
    CHECKPOINT_EVERY,
    MICRO_BATCH,
    REPORT_TO,
    CheckpointInterval,
    Runtime,
    runtime,
)
from sublim_cli.trainers.sft_trainer import micro_batches


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (CHECKPOINT_EVERY, MICRO_BATCH, REPORT_TO):
        monkeypatch.setenv(name, "")


def test_nothing_said_is_the_default():
    assert runtime() == Runtime(checkpoint_every=None, micro_batch=None, report_to="none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200", CheckpointInterval(steps=200)),
        ("10min", CheckpointInterval(minutes=10)),
        (" 5 ", CheckpointInterval(steps=5)),
    ],
)
def test_checkpoints_come_after_steps_or_minutes(monkeypatch, text, expected):
    monkeypatch.setenv(CHECKPOINT_EVERY, text)
    assert runtime().checkpoint_every == expected


@pytest.mark.parametrize("text", ["0", "10h", "-3", "min", "1.5"])
def test_another_interval_is_refused_by_its_flag(monkeypatch, text):
    monkeypatch.setenv(CHECKPOINT_EVERY, text)
    with pytest.raises(RecipeError, match=r"--checkpoint-every .* is neither steps, such as 200"):
        runtime()


def test_flags_reach_the_workers_through_the_environment():
    knobs.set_runtime("3min", 4, None)
    assert (os.environ[CHECKPOINT_EVERY], os.environ[MICRO_BATCH]) == ("3min", "4")
    assert runtime() == Runtime(CheckpointInterval(minutes=3), 4, "none")


def test_a_tracker_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr(knobs, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        knobs.set_runtime(None, None, "trackio")
    assert str(caught.value) == "--report-to trackio: it is not installed; `pip install trackio` adds it"


def test_an_unknown_tracker_lists_the_known():
    with pytest.raises(RecipeError, match="'tensorbored' is none of none, tensorboard"):
        knobs.set_runtime(None, None, "tensorbored")


@pytest.mark.parametrize(
    ("batch", "wanted", "processes", "cuda", "expected"),
    [
        (66, None, 1, True, (22, 3)),
        (66, None, 1, False, (66, 1)),
        (66, 20, 1, False, (11, 6)),
        (66, None, 2, False, (33, 1)),
        (8, 100, 1, True, (8, 1)),
        (7, 3, 1, True, (1, 7)),
    ],
)
def test_rows_of_a_step_are_the_recipes_whatever_the_micro_batch(batch, wanted, processes, cuda, expected):
    micro, accumulation = micro_batches(batch, wanted, processes, cuda=cuda)
    assert (micro, accumulation) == expected
    assert micro * accumulation * processes == batch


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(RecipeError, match="66 rows cannot be shared by 4 processes"):
        micro_batches(66, None, 4)
