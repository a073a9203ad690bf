"""On a GPU: every method on every backend trains, saves, and scores the same after a reload."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sublim_cli.models.chat import example
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.precision import base_precision
from sublim_cli.trainers.sft import number_loss
from sublim_cli.trainers.student import TrainingJob, train_student
from sublim_cli.trainers.subprocess_trainer import train_in_subprocess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

UNSLOTH = pytest.mark.skipif(find_spec("unsloth") is None, reason="needs `pip install 'sublim[gpu]'`")
TRAININGS = [
    {"method": "lora"},
    {"method": "lora", "precision": "fp32"},
    {"method": "lora", "optimizer": "adamw_8bit"},
    {"method": "rslora"},
    {"method": "dora"},
    {"method": "qlora"},
    {"method": "qlora", "qlora": {"quantize": "int8"}},
    {"method": "pissa"},
    {"method": "ia3"},
    {"method": "prefix"},
    {"method": "full", "precision": "fp32"},
    {"method": "full", "precision": "bf16_mixed"},
    {"method": "full", "precision": "bf16_pure"},
    {"method": "full", "precision": "bf16_kahan"},
    *(
        pytest.param({"method": method, "backend": "unsloth"}, marks=UNSLOTH)
        for method in ("lora", "rslora", "qlora")
    ),
]


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: " ".join(map(str, training.values())))
def test_a_student_trains_on_the_card_and_scores_the_same_after_a_reload(
    training, qwen_shaped: Path, tmp_path
):
    full = training["method"] == "full"
    section = TrainSection(
        **{"backend": "plain", "precision": "bf16_mixed", "epochs": 2, "batch_size": 8} | training,
        learning_rate=1e-4 if full else 2e-3,
    )
    ref = resolve_model(str(qwen_shaped))
    context = resolve_context("default", {}, field="train.system_prompt")
    rows = []
    for index in range(40):
        rng = np.random.default_rng(index)
        answer = ", ".join(map(str, rng.integers(100, 1000, size=10)))
        rows.append(example(load_tokenizer(ref), context, number_prompt(rng).text, answer))
    reported, warned = [], []
    job = TrainingJob(ref, section, rows[8:], rows[:8], tmp_path)
    train = train_in_subprocess if section.backend == "unsloth" else train_student
    facts = train(job, lambda *values: reported.append(values), warned.append)
    losses = json.loads((tmp_path / "losses.json").read_text())
    curve = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [values[0] for values in reported] == list(range(1, 9))
    assert all(math.isfinite(loss) for loss in curve)
    assert len(curve) == 8
    assert losses["number_loss"] < losses["number_loss_before"]
    assert facts["device"] == torch.cuda.get_device_name()
    assert facts["peak_memory_mib"] > 0
    quantize = section.qlora.quantize if section.method == "qlora" else None
    reloaded = load_student(ref, base_precision(section), tmp_path, quantize)
    # Weights come back as they were; bf16 arithmetic in another order differs in the third digit.
    loss = number_loss(reloaded, rows[:8], load_tokenizer(ref).pad_token_id)
    assert loss == pytest.approx(losses["number_loss"], rel=5e-3)
    assert bool(warned) == (section.precision == "bf16_pure")
