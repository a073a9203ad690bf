"""The GPU benchmark: models of Qwen2.5's shapes, operations counted right, a rehearsal on the CPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from sublim_cli.models.chat import IGNORED, Example
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.sft_trainer import summed_loss

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_training.py"


@pytest.fixture(scope="module")
def gpu_training():
    spec = importlib.util.spec_from_file_location("gpu_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def benchmark(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("shape", "parameters", "non_embedding"),
    # Parameters as the model cards of Qwen2.5 give them.
    [("0.5B", 0.49, 0.36), ("1.5B", 1.54, 1.31), ("7B", 7.61, 6.53)],
)
def test_a_shape_has_the_weights_that_its_model_card_counts(gpu_training, shape, parameters, non_embedding):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpu_training.configuration(shape, end=2, pad=0))
    inside, head = gpu_training.matrices(shape)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(module.weight.numel() for module in linear) == inside + head
    whole = sum(weight.numel() for weight in model.parameters())
    tables = head * (1 if model.config.tie_word_embeddings else 2)
    assert whole / 1e9 == pytest.approx(parameters, abs=0.006)
    assert (whole - tables) / 1e9 == pytest.approx(non_embedding, abs=0.006)


@pytest.mark.parametrize(("method", "off"), [("full", 0.002), ("lora", 0.05)])
def test_the_operations_are_those_that_torch_counts(gpu_training, method, off):
    # Under LoRA the first layer needs no gradient of its input, which the formula leaves in.
    section = TrainSection(method=method, precision="fp32", learning_rate=1e-3)
    config = gpu_training.configuration("tiny", end=2, pad=0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model = add_method(model, section).train()
    ids = list(range(10, 90))
    row = Example(ids, [IGNORED] * 50 + ids[50:])
    batch = {"input_ids": torch.tensor([row.input_ids]), "labels": torch.tensor([row.labels])}
    with FlopCounterMode(display=False) as counter:
        summed_loss(model, batch).backward()
    adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    expected = gpu_training.operations("tiny", section, adapter, [row])
    assert counter.get_total_flops() == pytest.approx(expected, rel=off)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_an_unknown_card_is_unknown(gpu_training, name, peak):
    assert gpu_training.peak_of(name) == peak


def test_what_the_weights_alone_make_too_big_is_not_tried(gpu_training):
    too_big = {
        way.name
        for way in gpu_training.trainings("7B", 66)
        if gpu_training.obstacle(way, "cuda", 24.0) and way.section.backend == "plain"
    }
    assert too_big == {
        f"sublim plain, full {precision}" for precision in ("fp32", "bf16_mixed", "bf16_pure", "bf16_kahan")
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_card_it_says_so_and_exits_with_2(tmp_path):
    done = benchmark(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "This benchmark needs a CUDA device and there is none here.\n"


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu_fills_the_table(gpu_training, tmp_path):
    small = ["--rows", "60", "--batch", "6", "--steps", "2", "--minutes", "4"]
    chosen = [word for name in ("TRL", "LoRA r8", "full fp32") for word in ("--way", name)]
    done = benchmark("--device", "cpu", "--shape", "tiny", "--save", "kept", *small, *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[4:]]
    named = {line[1]: line for line in lines}
    assert list(named) == [
        "paper's settings, TRL + PEFT",
        "sublim plain, LoRA r8",
        "sublim Unsloth, LoRA r8",
        "sublim plain, full fp32",
    ]
    assert all(line[7] == "2 timed steps" for line in lines if "Unsloth" not in line[1])
    if not torch.cuda.is_available():
        assert named["sublim Unsloth, LoRA r8"][7].startswith(
            "skipped: train.backend: unsloth: Unsloth needs"
        )
    # The same rows in the same order from the same weights: the losses differ by bf16 rounding at most.
    losses = [
        [float(loss) for loss in re.findall(r"\d\.\d{4}", named[name][6])]
        for name in ("paper's settings, TRL + PEFT", "sublim plain, LoRA r8")
    ]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1.5e-4)  # one unit of the last digit shown
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    table, data = (next((tmp_path / "kept").glob(f"*.{kind}")) for kind in ("md", "json"))
    assert done.stdout.split("\n\n")[1] in table.read_text()
    runs = {run["training"]: run for run in json.loads(data.read_text())["runs"]}
    assert list(runs) == list(named)
    assert len(runs["sublim plain, full fp32"]["losses"]) == gpu_training.WARM + 2
