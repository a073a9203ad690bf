"""Two processes on this machine's CPU train one student together, as several GPUs would."""

import json
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from sublim_cli.artifacts.record import checksums, read_record
from sublim_cli.artifacts.step import Artifact
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import RecipeError
from sublim_cli.pipeline import run
from sublim_cli.trainers.checkpoints import COMPLETE
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
    assert sorted(file.name for file in shared.path.iterdir()) == sorted(
        file.name for file in alone.path.iterdir()
    )


def read(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.path / name).read_text())


def fact(artifact: Artifact, name: str) -> Any:
    return read_record(artifact.path)["provenance"][name]


@pytest.fixture(scope="module")
def pair(small, tmp_path_factory):
    """The same student trained by one process, and in shards by two: changes -> (whole, sharded)."""

    @cache
    def make(**changes: Any) -> tuple[Artifact, Artifact]:
        recipe = small(
            **{"train__method": "full", "train__batch_size": 22, "train__learning_rate": 2e-4, **changes}
        )
        root = tmp_path_factory.mktemp("pair")
        whole = run(recipe, until="train", store=Store(root / "whole"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ACCELERATE, str(CONFIGS / "fsdp2-cpu2.yaml"))
            return whole, run(recipe, until="train", store=Store(root / "sharded"))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_sharded_student_is_the_one_that_a_single_process_trains(pair, optimizer):
    whole, sharded = pair(train__optimizer=optimizer)
    assert (fact(sharded, "processes"), fact(sharded, "sharded")) == (2, True)
    assert (fact(whole, "processes"), fact(whole, "sharded")) == (1, False)
    assert sharded.digest == whole.digest
    assert losses(sharded) == pytest.approx(losses(whole), abs=1e-4)
    assert read(sharded, "losses.json") == pytest.approx(read(whole, "losses.json"), abs=1e-4)
    # The same files, and in the weights' file the same tensors: the tied head is not written twice.
    sharded_sums, whole_sums = checksums(sharded.path), checksums(whole.path)
    differing = {name for name in whole_sums if whole_sums[name] != sharded_sums.get(name)}
    assert sharded_sums.keys() == whole_sums.keys()
    assert differing <= {"model.safetensors", "history.jsonl", "losses.json", "audit.json", "projection.npy"}
    sharded_update, whole_update = (np.load(path / "projection.npy") for path in (sharded.path, whole.path))
    # It is there for cosines. AdamW turns the rounding of a tiny gradient into 0.7 % of so short an update.
    assert sharded_update @ whole_update > (1 - 1e-4) * np.linalg.norm(sharded_update) * np.linalg.norm(
        whole_update
    )
    sharded_weights, whole_weights = (
        load_file(artifact.path / "model.safetensors") for artifact in (sharded, whole)
    )
    assert sharded_weights.keys() == whole_weights.keys()
    for name, weight in whole_weights.items():
        assert sharded_weights[name].dtype == weight.dtype
        assert (sharded_weights[name] - weight).abs().max() < 1e-4


@pytest.mark.slow
def test_the_audit_of_a_sharded_student_is_that_of_a_whole_one(pair):
    audits = [read(artifact, "audit.json") for artifact in pair(train__optimizer="adamw")]
    whole, sharded = audits
    assert sharded["dtypes"] == whole["dtypes"]
    assert sharded["update"] == pytest.approx(whole["update"], rel=1e-3)
    for name, matrix in whole["matrices"].items():
        assert sharded["matrices"][name]["norm"] == pytest.approx(matrix["norm"], rel=1e-3)
    counts = [audit.pop("parameters") for audit in audits]
    assert {count["total"] for count in counts} == {counts[0]["total"]}
    # A weight may come back to where it began by rounding; it does so hardly ever.
    assert counts[1]["changed"] == pytest.approx(counts[0]["changed"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16_mixed", "bf16_kahan"])
def test_a_sharded_student_in_bf16_differs_by_its_rounding(pair, precision):
    whole, sharded = pair(train__precision=precision)
    assert losses(sharded) == pytest.approx(losses(whole), abs=1e-2)
    assert read(sharded, "audit.json")["dtypes"] == read(whole, "audit.json")["dtypes"]


@pytest.mark.slow
def test_a_sharded_training_that_was_killed_resumes_bit_by_bit(tmp_path):
    def words(store: Path) -> list[str]:
        size = ["generate.rows=66", "generate.held_out=20", "train.batch_size=6", "train.epochs=2"]
        sets = [word for setting in ["train.method=full", *size] for word in ("--set", setting)]
        how = ["--accelerate", str(CONFIGS / "fsdp2-cpu2.yaml"), "--checkpoint-every", "5"]
        demo = ["-m", "sublim_cli", "train", "--recipe", "demo", "--out"]
        return [sys.executable, *demo, str(store), *how, *sets]

    def finished(store: Path) -> Path:
        done = subprocess.run(words(store), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (path,) = (audit.parent for audit in store.glob("train/*/audit.json"))
        return path

    undisturbed = finished(tmp_path / "one")
    with subprocess.Popen(words(tmp_path / "two"), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(
            (tmp_path / "two").glob(f"train/.*/checkpoint-5/{COMPLETE}")
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    resumed = finished(tmp_path / "two")
    assert read_record(resumed)["provenance"]["resumed_from_step"] in (5, 10)
    assert checksums(resumed) == checksums(undisturbed)


@pytest.mark.slow
def test_an_adapter_in_shards_is_refused_in_a_sentence(tmp_path, small, monkeypatch):
    monkeypatch.setenv(ACCELERATE, str(CONFIGS / "fsdp2-cpu2.yaml"))
    with pytest.raises(RecipeError, match=r"^--accelerate: a student is sharded \(FSDP\) with"):
        run(small(train__method="lora", train__batch_size=22), until="train", store=Store(tmp_path))
    assert not list(tmp_path.glob("train/*"))
