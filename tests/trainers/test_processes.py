"""Two processes on this machine's CPU train one student together, as several GPUs would."""

import json
from pathlib import Path

import pytest

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import Store
from sublim_cli.pipeline import run
from sublim_cli.trainers.runtime import ACCELERATE

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def losses(artifact: Artifact) -> list[float]:
    lines = (artifact.path / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def processes(artifact: Artifact) -> int:
    return int(read_record(artifact.path)["provenance"]["processes"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_lose_what_one_loses_and_keep_one_student(tmp_path, small, monkeypatch, method):
    rate = 2e-3 if method == "lora" else 2e-4
    recipe = small(train__method=method, train__batch_size=22, train__learning_rate=rate)
    alone = run(recipe, until="train", store=Store(tmp_path / "one"))
    monkeypatch.setenv(ACCELERATE, str(CONFIGS / "cpu2.yaml"))
    shared = run(recipe, until="train", store=Store(tmp_path / "two"))
    assert (processes(alone), processes(shared)) == (1, 2)
    assert shared.digest == alone.digest
    assert losses(shared) == pytest.approx(losses(alone), abs=1e-4)
    assert sorted(one.name for one in shared.path.iterdir()) == sorted(
        one.name for one in alone.path.iterdir()
    )
