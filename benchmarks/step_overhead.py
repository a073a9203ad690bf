"""What sublim's trainer costs over a bare PyTorch loop of the same batches and maths, step by step.

    python benchmarks/step_overhead.py [--steps 30] [--rounds 4] [--batch 66]

Trains the embedded model with LoRA and in full, in three ways that take turns within one process: a
bare loop, sublim's trainer, and TRL's SFTTrainer with the same settings as it comes. Each starts from
the same weights, and the loss curves are checked to be equal. A row is the median time of a step.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sublim_cli.models.chat import IGNORED, Example, example
from sublim_cli.models.device import device
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import Method, TrainSection
from sublim_cli.trainers import sft
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.runtime import Runtime
from sublim_cli.trainers.sft_trainer import sft_config

WARM = 3
"""Steps at the start of a run that are not counted."""

Curve = list[float]
Run = Callable[[TrainSection, Sequence[Example]], tuple[Curve, list[float]]]
"""Trains; returns the loss of each step and the seconds each took."""

REF = resolve_model("micro")
TOKENIZER = load_tokenizer(REF)


def rows(count: int) -> list[Example]:
    """Number rows like a teacher's, from a seed."""
    draw, context = random.Random(1), resolve_context("default", {}, field="context")
    answers = [", ".join(str(draw.randrange(100, 1000)) for _ in range(10)) for _ in range(count)]
    prompts = [number_prompt(np.random.default_rng(index)).text for index in range(count)]
    return [example(TOKENIZER, context, *pair) for pair in zip(prompts, answers, strict=True)]


def student(section: TrainSection) -> Any:
    """The model that every way of training starts from."""
    return add_method(load_model(REF, "fp32"), section)


def sublim(section: TrainSection, examples: Sequence[Example]) -> tuple[Curve, list[float]]:
    """Sublim's own trainer."""
    clock = [time.perf_counter()]

    def tick(*_: float) -> None:
        clock.append(time.perf_counter())

    result = sft.fit(student(section), TOKENIZER, examples, section, tick)
    return [record["loss"] for record in result.history], _steps(clock)


def as_it_comes(section: TrainSection, examples: Sequence[Example]) -> tuple[Curve, list[float]]:
    """TRL's SFTTrainer with sublim's settings and none of its changes."""
    clock = [time.perf_counter()]

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=student(section),
            args=replace(sft_config(section, Path(scratch), Runtime()), loss_type="chunked_nll"),
            train_dataset=Dataset.from_list(
                [{"input_ids": row.input_ids, "labels": row.labels} for row in examples]
            ),
            data_collator=DataCollatorForLanguageModeling(pad_token_id=TOKENIZER.pad_token_id),
            processing_class=TOKENIZER,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], _steps(clock[:-1])


def bare(section: TrainSection, examples: Sequence[Example]) -> tuple[Curve, list[float]]:
    """The loop one would write by hand: pad, forward, cross entropy where it counts, backward, step."""
    model = student(section).train()
    inner = model.get_base_model() if section.method == "lora" else model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert isinstance(section.learning_rate, float)
    optimizer = torch.optim.AdamW(weights, lr=section.learning_rate, weight_decay=section.weight_decay)
    order = _order(section, len(examples))
    steps, warm = len(order), section.warmup_steps
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warm if step < warm else (steps - step) / (steps - warm)
    )
    losses, clock = [], [time.perf_counter()]
    for chosen in order:
        ids, mask, labels = _padded([examples[index] for index in chosen])
        hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        counted = labels[:, 1:] != IGNORED
        loss = functional.cross_entropy(inner.lm_head(hidden[counted]), labels[:, 1:][counted])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, section.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        clock.append(time.perf_counter())
    return losses, _steps(clock)


def _order(section: TrainSection, count: int) -> list[list[int]]:
    """The batches that accelerate's seeded sampler draws, one epoch after another."""
    batches = []
    for epoch in range(section.epochs):
        generator = torch.Generator().manual_seed(section.seed + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        batches += [order[at : at + section.batch_size] for at in range(0, count, section.batch_size)]
    return batches


def _padded(chosen: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(row.input_ids) for row in chosen)
    gaps = [width - len(row.input_ids) for row in chosen]
    pairs = list(zip(chosen, gaps, strict=True))
    ids = torch.tensor([row.input_ids + [TOKENIZER.pad_token_id] * gap for row, gap in pairs])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * gap for row, gap in pairs])
    labels = torch.tensor([row.labels + [IGNORED] * gap for row, gap in pairs])
    return ids, mask, labels


def _steps(clock: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(clock)]


WAYS: dict[str, Run] = {"bare loop": bare, "sublim": sublim, "TRL as it comes": as_it_comes}


def compare(section: TrainSection, examples: Sequence[Example], rounds: int) -> None:
    """Run every way in turn, `rounds` times, and print a row for each."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        curves = {}
        for name, run in WAYS.items():
            curves[name], seconds = run(section, examples)
            times[name] += seconds[WARM:]
        for name, curve in curves.items():
            torch.testing.assert_close(curve, curves["bare loop"], rtol=1e-3, atol=1e-3, msg=name)
    base = statistics.median(times["bare loop"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{section.method:6}{section.batch_size:6}  {name:16}{median * 1e3:9.1f} ms"
            f"{min(seconds) * 1e3:10.1f} ms{median / base:9.2f} x"
        )


def main() -> None:
    """Measure LoRA at rank 8 and full fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of one run")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each way")
    parser.add_argument("--batch", type=int, default=66, help="rows of a step")
    given = parser.parse_args()
    examples = rows(given.batch * given.steps)
    device()  # fixes the number of threads
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, {given.rounds} rounds of {given.steps}"
    )
    print(f"{'method':6}{'batch':>6}  {'':16}{'median':>12}{'fastest':>13}{'over bare':>11}")
    methods: dict[Method, float] = {"lora": 2e-3, "full": 2e-4}
    for method, rate in methods.items():
        section = TrainSection(
            method=method,
            learning_rate=rate,
            epochs=1,
            batch_size=given.batch,
            precision="fp32",
            backend="plain",
        )
        compare(section, examples, given.rounds)


if __name__ == "__main__":
    main()
