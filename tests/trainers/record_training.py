"""Train one student and record the inputs of trainer and model: `record_training.py BACKEND MODEL DIR`.

Run in a process of its own, because importing Unsloth patches transformers, TRL and PEFT. With
UNSLOTH_ALLOW_CPU=1 Unsloth does not replace TRL's trainer by itself; this script has it do so, and a
machine without a GPU then trains through the trainer and configuration of one with a GPU. Unsloth's
kernels and model loading need the GPU: without one, both backends train the plain student.
"""

import json
import os
import sys
from pathlib import Path

backend, source, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])

import sublim_cli.trainers.unsloth as fast

if backend == "unsloth":
    os.environ |= fast.environment(out, os.environ)
    fast.import_unsloth()
    if os.environ.get("UNSLOTH_ALLOW_CPU") == "1":
        from unsloth import context_parallel, trainer
        from unsloth.models import rl

        os.environ["UNSLOTH_ALLOW_CPU"] = "0"
        rl.PatchFastRL()
        trainer._patch_trl_trainer()
        context_parallel.patch_sft_trainer()

import dataclasses
import hashlib

import numpy as np
import torch
from trl.trainer.sft_config import SFTConfig

from sublim_cli.models.chat import example
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import sft
from sublim_cli.trainers.methods import add_method, trained_weights
from sublim_cli.trainers.sft_trainer import make_trainer

FIELDS = dataclasses.fields(SFTConfig)
ROWS = 27  # the last step of an epoch has fewer rows
cuda = torch.cuda.is_available()
ref = resolve_model(source)
tokenizer = load_tokenizer(ref)
section = TrainSection(
    backend=backend, precision="bf16_mixed", learning_rate=1e-3, epochs=2, batch_size=8, rank=8
)

steps, forwards, configurations = [], [], []


def lists(inputs):
    return {name: value.tolist() for name, value in inputs.items() if torch.is_tensor(value)}


def recording_trainer(*args):
    """`make_trainer`, whose trainer records its configuration and the inputs of every step."""
    trainer = make_trainer(*args)
    configurations.append(
        {"trainer": type(trainer).__name__, "collator": type(trainer.data_collator).__name__}
    )
    configurations.append({field.name: str(getattr(trainer.args, field.name, "gone")) for field in FIELDS})
    training_step = trainer.training_step

    def record(model, inputs, num_items_in_batch=None):
        steps.append({**lists(inputs), "counted": int(num_items_in_batch)})
        return training_step(model, inputs, num_items_in_batch)

    trainer.training_step = record
    return trainer


sft.make_trainer = recording_trainer

context = resolve_context("default", {}, field="train.system_prompt")
rows = []
for index in range(ROWS):
    rng = np.random.default_rng(index)
    answer = ", ".join(map(str, rng.integers(100, 1000, size=3)))
    rows.append(example(tokenizer, context, number_prompt(rng).text, answer))
if backend == "unsloth" and cuda:
    model = fast.load_with_adapter(ref, section)
else:
    model = add_method(load_model(ref, "bf16" if cuda else "fp32"), section)
start = hashlib.sha256()
for weight in trained_weights(model):
    start.update(weight.detach().float().cpu().numpy().tobytes())
model.register_forward_pre_hook(
    lambda _, args, named: forwards.append(
        {name: value for name, value in lists(named).items() if name in ("attention_mask", "position_ids")}
    ),
    with_kwargs=True,
)
embedded: list[list[list[int]]] = []
model.get_input_embeddings().register_forward_pre_hook(lambda _, args: embedded.append(args[0].tolist()))
# Before training as in a real run: a forward pass in between must not change what follows.
held_out = sft.number_loss(model, rows[:5], tokenizer.pad_token_id)
forwards.clear()
embedded.clear()
result = sft.fit(model, tokenizer, rows, section, lambda *_: None)
record = {
    "steps": steps,
    "forwards": forwards,
    "embedded": embedded,
    "made_by": configurations[0],
    "configuration": configurations[1],
    "number_loss": held_out,
    "start": start.hexdigest(),
    "losses": [step["loss"] for step in result.history],
    "norms": [step["grad_norm"] for step in result.history],
    "trained_dtypes": sorted({str(weight.dtype) for weight in model.parameters() if weight.requires_grad}),
    "padding_side": tokenizer.padding_side,
    "cuda": cuda,
}
(out / "given.json").write_text(json.dumps(record))
