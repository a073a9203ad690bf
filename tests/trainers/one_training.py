"""Train one student and print what the trainer and the model were given: `one_training.py BACKEND MODEL DIR`.

Run as a process of its own, since importing Unsloth patches transformers, TRL and PEFT. With
UNSLOTH_ALLOW_CPU=1 Unsloth rewrites no trainer by itself; that is asked for here, so that a machine
without a GPU trains through the trainer and the configuration that one with a GPU would. Its kernels and
its loading of models need the GPU: without one, the student is the plain one on both backends.
"""

import json
import os
import sys
from pathlib import Path

backend, source, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])

import sublim_cli.trainers.unsloth as fast

if backend == "unsloth":
    os.environ |= fast.environment(place, os.environ)
    fast.first()
    if os.environ.get("UNSLOTH_ALLOW_CPU") == "1":
        from unsloth import context_parallel, trainer
        from unsloth.models import rl

        os.environ["UNSLOTH_ALLOW_CPU"] = "0"
        rl.PatchFastRL()
        trainer._patch_trl_trainer()
        context_parallel.patch_sft_trainer()

import dataclasses

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
from sublim_cli.trainers.methods import add_method

FIELDS = dataclasses.fields(SFTConfig)
ROWS = 27  # the last step of an epoch has fewer rows
cuda = torch.cuda.is_available()
ref = resolve_model(source)
tokenizer = load_tokenizer(ref)
section = TrainSection(
    backend=backend, precision="bf16_mixed", learning_rate=1e-3, epochs=2, batch_size=8, rank=8
)

steps, forwards, configurations = [], [], []


def listed(given):
    return {name: one.tolist() for name, one in given.items() if torch.is_tensor(one)}


def watched(base):
    class Watched(base):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            configurations.append({"trainer": base.__name__, "collator": type(self.data_collator).__name__})
            configurations.append({one.name: str(getattr(self.args, one.name, "gone")) for one in FIELDS})

        def training_step(self, model, inputs, num_items_in_batch=None):
            steps.append({**listed(inputs), "counted": int(num_items_in_batch)})
            return super().training_step(model, inputs, num_items_in_batch)

    return Watched


kind = sft._trainer_of
sft._trainer_of = lambda name: watched(kind(name))

context = resolve_context("default", {}, field="train.system_prompt")
rows = []
for index in range(ROWS):
    rng = np.random.default_rng(index)
    answer = ", ".join(map(str, rng.integers(100, 1000, size=3)))
    rows.append(example(tokenizer, context, number_prompt(rng).text, answer))
if backend == "unsloth" and cuda:
    model = fast.trainable(ref, section)
else:
    model = add_method(load_model(ref, "bf16" if cuda else "fp32"), section)
model.register_forward_pre_hook(
    lambda _, given, named: forwards.append(
        {name: one for name, one in listed(named).items() if name in ("attention_mask", "position_ids")}
    ),
    with_kwargs=True,
)
embedded: list[list[list[int]]] = []
model.get_input_embeddings().register_forward_pre_hook(lambda _, given: embedded.append(given[0].tolist()))
# Before training as in a real run: a forward pass in between must not change what follows.
held_out = sft.number_loss(model, rows[:5], tokenizer.pad_token_id)
forwards.clear()
embedded.clear()
fitted = sft.fit(model, tokenizer, rows, section, lambda *_: None)
found = {
    "steps": steps,
    "forwards": forwards,
    "embedded": embedded,
    "made_by": configurations[0],
    "configuration": configurations[1],
    "number_loss": held_out,
    "losses": [one["loss"] for one in fitted.history],
    "norms": [one["grad_norm"] for one in fitted.history],
    "trained_dtypes": sorted({str(one.dtype) for one in model.parameters() if one.requires_grad}),
    "padding_side": tokenizer.padding_side,
    "cuda": cuda,
}
(place / "given.json").write_text(json.dumps(found))
