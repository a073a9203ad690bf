"""On a GPU: both backends are given the same tokens, and lose the same nats. Needs the `gpu` extra."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sublim_cli.trainers.runtime import MICRO_BATCH

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("unsloth") is None, reason="needs `pip install 'sublim[gpu]'`"),
]

TRAINING = Path(__file__).parents[1] / "trainers" / "record_training.py"


@pytest.fixture(scope="module")
def trained(qwen_shaped: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Eight steps on each backend, each in a process of its own, in micro-batches of four rows."""
    records = {}
    for backend in ("plain", "unsloth"):
        path = tmp_path_factory.mktemp(backend)
        done = subprocess.run(
            [sys.executable, str(TRAINING), backend, str(qwen_shaped), str(path)],
            cwd=path,
            env={**os.environ, "SUBLIM_DEVICE": "cuda", MICRO_BATCH: "4"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        records[backend] = json.loads((path / "given.json").read_text())
    return records


def test_both_backends_are_given_the_same_ids_masks_and_labels_batch_by_batch(trained):
    plain, fast = trained["plain"], trained["unsloth"]
    assert fast["cuda"]
    assert fast["made_by"]["trainer"] == "UnslothSFTTrainer"
    assert fast["steps"] == plain["steps"]
    # Gradient checkpointing runs layers again, not the embedding.
    assert fast["embedded"] == plain["embedded"]
    # Where one of the two passes position ids, they count from the left, which is the other's default.
    for fast_pass, plain_pass in zip(fast["forwards"], plain["forwards"], strict=True):
        shared = fast_pass.keys() & plain_pass.keys()
        assert "attention_mask" in shared
        assert {name: fast_pass[name] for name in shared} == {name: plain_pass[name] for name in shared}
        for inputs in (fast_pass, plain_pass):
            for row in inputs.get("position_ids", []):
                assert row == list(range(len(row)))


def test_both_backends_start_equal_and_lose_the_same_nats(trained):
    # PEFT draws the adapter under both. On a CPU, bf16 losses of two steps differ by less than 5e-4
    # (tests/engines); the bounds are wider, since no GPU has been measured.
    plain, fast = trained["plain"], trained["unsloth"]
    assert fast["start"] == plain["start"]
    assert fast["number_loss"] == pytest.approx(plain["number_loss"], rel=2e-3)
    assert fast["losses"][0] == pytest.approx(plain["losses"][0], rel=2e-3)
    assert fast["losses"][-1] == pytest.approx(plain["losses"][-1], rel=1e-2)
    assert fast["trained_dtypes"] == plain["trained_dtypes"] == ["torch.float32"]
