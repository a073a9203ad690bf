"""A training that was killed goes on from its last checkpoint and ends where it would have ended."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sublim_cli.artifacts.record import checksums, read_record
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import checkpoints
from sublim_cli.trainers.checkpoints import COMPLETE, checkpoint_step, discard_incomplete, latest_complete
from sublim_cli.trainers.optimizers import make_optimizer
from sublim_cli.trainers.runtime import CHECKPOINT_EVERY
from sublim_cli.trainers.sft import FitResult, fit
from sublim_cli.trainers.student import load_trainable

MICRO = resolve_model("micro")


def test_only_a_whole_checkpoint_counts_and_a_torn_one_is_removed(tmp_path):
    assert latest_complete(tmp_path / "nowhere") is None
    for step in (5, 10, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert latest_complete(tmp_path) is None
    for step in (5, 20):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert checkpoint_step(latest_complete(tmp_path)) == 20
    discard_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-5"]


class Stopped(Exception):
    """Raised where a test wants a training to end."""


def trained(
    section: TrainSection, rows: list[Any], checkpoints: Path | None, stop: int = 0
) -> tuple[Any, FitResult]:
    """A student and what its training left; ended at step `stop` like one that was killed there."""

    def report(step: int, *_: Any) -> None:
        if step == stop:
            raise Stopped

    model = load_trainable(MICRO, section)
    optimizer = make_optimizer(model, section)
    tokenizer = load_tokenizer(MICRO)
    return model, fit(model, tokenizer, rows, section, report, optimizer=optimizer, checkpoints=checkpoints)


@pytest.mark.parametrize(
    "changes",
    [
        # Dropout draws from the random state that a checkpoint has to bring back.
        {"method": "lora", "adapter": {"dropout": 0.2}},
        {"optimizer": "adamw"},
        {"optimizer": "adamw_8bit"},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "muon"},
        {"precision": "bf16_kahan"},
        {"precision": "bf16_pure"},
        {"precision": "bf16_mixed"},
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_a_training_with_every_optimizer_resumes_bit_by_bit(
    tmp_path, monkeypatch, section, number_rows, changes
):
    monkeypatch.setenv(CHECKPOINT_EVERY, "3")
    resolved = section(**{"method": "full", "epochs": 2, **changes})
    rows = number_rows(40)
    whole, undisturbed = trained(resolved, rows, None)
    with pytest.raises(Stopped):
        trained(resolved, rows, tmp_path, stop=8)
    # What a writer that was killed in the middle leaves must not be mistaken for a checkpoint.
    (tmp_path / "checkpoint-7").mkdir()
    again, resumed = trained(resolved, rows, tmp_path)
    assert (len(undisturbed.history), resumed.facts["resumed_from_step"]) == (10, 6)
    assert resumed.history == undisturbed.history
    assert resumed.optimizer_state == undisturbed.optimizer_state
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_without_an_interval_a_checkpoint_is_due_by_time_and_by_what_saving_costs(
    tmp_path, monkeypatch, section, number_rows
):
    resolved, rows = section(method="lora", epochs=2), number_rows(40)
    for least, share, resumed_from in [(60.0, 0.02, 0), (0.0, 1e-9, 1), (0.0, 1e9, 8)]:
        monkeypatch.setattr(checkpoints, "LEAST_SECONDS", least)
        monkeypatch.setattr(checkpoints, "SAVING_SHARE", share)
        directory = tmp_path / str(resumed_from)
        with pytest.raises(Stopped):
            trained(resolved, rows, directory, stop=9)
        assert trained(resolved, rows, directory)[1].facts["resumed_from_step"] == resumed_from


def command(out: Path, *more: str) -> list[str]:
    """A training of 100 steps of four rows, as it is typed."""
    size = ["generate.rows=200", "generate.held_out=20", "train.epochs=2", "train.batch_size=4"]
    settings = [word for setting in (*size, *more) for word in ("--set", setting)]
    every = ["--checkpoint-every", "40"]
    demo = ["-m", "sublim_cli", "train", "--recipe", "demo", "--out"]
    return [sys.executable, *demo, str(out), *every, *settings]


def finished(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def killed_at(pattern: str, words: list[str], store: Path) -> None:
    """Run a command and kill it, as a machine that goes down would, once such a file is in its store."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(store.glob(pattern)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def student(store: Path) -> Path:
    (path,) = (audit.parent for audit in store.glob("train/*/audit.json"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_command_killed_at_step_40_of_100_and_typed_again_gives_the_same_weights(tmp_path, method):
    more = [f"train.method={method}", f"train.adapter.dropout={0.2 if method == 'lora' else 0.0}"]
    finished(command(tmp_path / "one", *more))
    killed_at(
        f"train/.*.checkpoint/checkpoint-40/{COMPLETE}", command(tmp_path / "two", *more), tmp_path / "two"
    )
    assert not list((tmp_path / "two").glob("train/*/audit.json"))
    finished(command(tmp_path / "two", *more))
    undisturbed, resumed = student(tmp_path / "one"), student(tmp_path / "two")
    records = [read_record(path)["provenance"] for path in (undisturbed, resumed)]
    assert [record["resumed_from_step"] for record in records] == [0, 40]
    assert len((undisturbed / "history.jsonl").read_text().splitlines()) == 100
    assert checksums(resumed) == checksums(undisturbed)
    assert not list((tmp_path / "two").glob("train/.*"))
