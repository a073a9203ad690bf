"""One step or one training with plain PEFT or with Unsloth's kernels, on a CPU, in a process of its own.

    unsloth_training.py step|train plain|unsloth MODEL fp32|bf16 OUT

`step` writes the loss and the gradients of one batch, `train` a student by `train_student`.
Both write `record.json`; `step` also `start.safetensors` and `gradients.safetensors`.
"""

import json
import sys
from pathlib import Path

kind, backend, source, precision, out = *sys.argv[1:5], Path(sys.argv[5])

import unsloth_interpreter as interpreter

if backend == "unsloth":
    interpreter.prepare()
    from sublim_cli.trainers.unsloth import import_unsloth

    import_unsloth()
    interpreter.patch(fp32=precision == "fp32")
    interpreter.patch_trainer()

import numpy as np
import torch
from safetensors.torch import save_file

from sublim_cli.models import load
from sublim_cli.models.chat import example
from sublim_cli.models.reference import resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import student, unsloth
from sublim_cli.trainers.sft_trainer import summed_loss

ref = resolve_model(source)
section = TrainSection(
    backend=backend,
    precision="fp32" if precision == "fp32" else "bf16_mixed",
    learning_rate=2e-3,
    rank=8,
    epochs=1,
    batch_size=4,
    warmup_steps=0,
)
if precision == "fp32" and backend == "unsloth":
    # Unsloth's recipe path is bf16; this loads the same model in fp32, to compare without rounding.
    arguments = unsloth.model_arguments
    unsloth.model_arguments = lambda *args: {**arguments(*args), "dtype": torch.float32}

tokenizer = load.load_tokenizer(ref)
context = resolve_context("default", {}, field="train.system_prompt")
rows = []
for index in range(10):
    rng = np.random.default_rng(index)
    answer = ", ".join(map(str, rng.integers(100, 1000, size=3 + index % 3)))
    rows.append(example(tokenizer, context, number_prompt(rng).text, answer))


def adapter_name(name: str) -> str:
    """The same name under both backends, which wrap the model alike."""
    return name.removeprefix("base_model.model.")


def trained(model):
    return {adapter_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}


def one_step() -> dict:
    model = student.load_trainable(ref, section)
    start = {name: weight.detach().clone() for name, weight in trained(model).items()}
    save_file(start, out / "start.safetensors")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # B starts at zero, and then A has no gradient
        for name in sorted(trained(model)):
            if "lora_B" in name:
                weight = trained(model)[name]
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows[:4]])
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        if backend == "unsloth":
            batch.pop("attention_mask")  # its training path is causal, with padding on the right
            loss = model(**batch, num_items_in_batch=tokens).loss
        else:
            loss = summed_loss(model, batch) / tokens
    loss.backward()
    gradients = {name: weight.grad.float() for name, weight in trained(model).items()}
    save_file(gradients, out / "gradients.safetensors")
    return {"loss": float(loss)}


def one_training() -> dict:
    job = student.TrainingJob(ref, section, rows[:7], rows[7:], out / "student")
    job.out.mkdir()
    facts = student.train_student(job, lambda *_: None)
    history = [json.loads(line) for line in (job.out / "history.jsonl").read_text().splitlines()]
    return {
        "facts": facts,
        "losses": [step["loss"] for step in history],
        **json.loads((job.out / "losses.json").read_text()),
    }


record = one_step() if kind == "step" else one_training()
record["calls"] = dict(interpreter.calls)
(out / "record.json").write_text(json.dumps(record))
