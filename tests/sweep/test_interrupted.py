"""Sweeps that are killed or interrupted, or of which a cell fails: finished work is kept."""

import json
import os
import signal
from pathlib import Path

import pytest


def table(shown: str) -> list[dict[str, object]]:
    return json.loads(shown)["preferences"]


def test_a_sweep_killed_in_mid_training_finishes_with_the_same_table(
    sublim, sublim_here, tiny, alone_store, wait_for, tmp_path
):
    words = [*tiny(3), "--workers", "1", "--json", "--out"]
    running = sublim(*words, "killed")
    wait_for(tmp_path / "killed", "train/.*", running)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    code, shown, err = sublim_here(*words, "killed")
    assert code == 0, err
    undisturbed = sublim_here(*words, str(alone_store(3)))
    assert "nothing to do" in undisturbed[2]
    assert table(shown) == table(undisturbed[1]) != []
    assert not list((tmp_path / "killed").glob("*/.*-*"))


def test_an_interrupt_exits_130_and_keeps_finished_work(sublim, tiny, wait_for, tmp_path):
    running = sublim(*tiny(3), "--workers", "2", "--out", "store")
    wait_for(tmp_path / "store", "filter/*/artifact.json", running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130
    assert "interrupted: finished steps are kept" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("store/generate/[0-9a-f]*/artifact.json"))
    assert not list(tmp_path.glob("store/*/.*-*"))


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_cell_that_fails_is_reported_and_the_rest_is_there(sublim_here, tiny, workers):
    # Prompts fit, some rows do not: every training step refuses, every base score is built.
    words = tiny(3, train__max_length=100, generate__sampling__max_tokens=64)
    code, shown, _ = sublim_here(*words, "--workers", workers, "--json")
    assert code == 1
    assert {row["label"] for row in table(shown) if row["missing"]} == {
        "LoRA rank 1",
        "LoRA rank 2",
        "control, LoRA rank 8",
    }
    assert [row["n"] for row in table(shown) if row["label"] == "untouched base"] == [1]


def built(err: str) -> set[str]:
    return {line[2:].rsplit(" ", 2)[0] for line in err.splitlines() if line.startswith("✓")}


def test_a_cell_that_always_fails_is_marked_and_tried_again(sublim_here, tiny):
    grid = "{train.learning_rate: [2.0e-3, 1.0e+30], train.seed: [1]}"  # the second one diverges
    words = [*tiny(3, sweep__grid=grid, train__epochs=2), "--workers", "1", "--json"]
    outcomes = []
    for _ in range(2):
        code, shown, err = sublim_here(*words)
        assert code == 1, err
        assert "training diverged" in err
        assert "nothing to do" not in err
        missing = {row["label"] for row in table(shown) if row["missing"]}
        page = Path("runs", "reports", "demo", "report.html").read_text(encoding="utf-8")
        assert "training diverged" in page
        outcomes.append((missing, len(built(err))))
    assert outcomes[0][0] == outcomes[1][0] == {"LoRA rank 8, lr 1e30"}
    assert outcomes[1][1] == 0
    assert outcomes[0][1] > 8


@pytest.mark.slow
def test_two_sweeps_at_once_build_each_step_once(sublim, tiny, alone, checksums, tmp_path):
    both = [sublim(*tiny(3), "--out", "store", "--workers", "1") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not built(said[0]) & built(said[1])
    assert len(built(said[0]) | built(said[1])) == 13
    assert checksums(tmp_path / "store") == alone(3)
