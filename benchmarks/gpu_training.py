"""Training speed and memory on one GPU: the paper's settings in plain TRL + PEFT against sublim's.

    python benchmarks/gpu_training.py [--minutes 8] [--shape 0.5B --shape 7B] [--save]
    python benchmarks/gpu_training.py --device cpu --shape tiny --rows 60 --batch 6 --steps 2    # a rehearsal

Models have the dimensions of Qwen2.5 and random weights, made here from a configuration; nothing is
downloaded. Rows are the paper's in shape: sublim's number prompts, ten random numbers as an answer. Each
training runs in a process of its own, on the same batches in the same order, for some warm-up steps and then
some timed ones; what does not fit, is not installed or finds no time left says so in the table.

Rates are the median timed step's. Tokens are those of the rows, without padding. MFU is the model's
floating-point operations per second over the card's peak in dense bf16 (PaLM, arXiv 2204.02311,
appendix B): a token of a row of T tokens costs
6 N + 12 L H Q T operations in full fine-tuning, N weights of its matrices, L layers, H heads of width Q.
Under a frozen base no gradients of its weights are needed: 4 N, and 6 for each adapter weight. The output
layer counts for tokens that carry loss. What gradient checkpointing computes twice counts once.
"""

import argparse
import json
import math
import os
import pickle
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sublim_cli.errors import SublimError
from sublim_cli.models.chat import IGNORED, Example, example
from sublim_cli.models.reference import ModelRef, resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import LEARNING_RATE, TrainSection
from sublim_cli.trainers import unsloth

RESULTS = Path(__file__).with_name("results")
GIB = 2**30
WARM = 3
"""Optimizer steps of a run that are not timed: kernels are chosen and compiled in them."""

START = 60.0
"""Seconds that any run is given to import its libraries, load its model and compile."""

SHAPES: dict[str, dict[str, Any]] = {
    # The config.json files of Qwen2.5-{0.5B,1.5B,7B}-Instruct; `tiny` is a rehearsal's.
    "tiny": dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), (256, 512, 2), strict=True))
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096, "tie_word_embeddings": True},
    "0.5B": dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), (896, 4864, 24), strict=True))
    | {
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "1.5B": dict(
        zip(("hidden_size", "intermediate_size", "num_hidden_layers"), (1536, 8960, 28), strict=True)
    )
    | {
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers"), (3584, 18944, 28), strict=True))
    | {
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}

PEAK_TFLOPS = (
    # NVIDIA's data sheets, dense bf16 with fp32 sums; a card that is not here has an unknown MFU.
    (r"H100 PCIe", 756.0),
    (r"H100 80GB HBM3|H200( NVL)?$", 989.0),
    (r"A100-(SXM4|PCIE)-\d+GB", 312.0),
    (r"L40S$", 362.0),
    (r"L4$", 121.0),
    (r"RTX 4090$", 165.2),
    (r"RTX 3090$", 71.0),
)


@dataclass(frozen=True)
class Training:
    """One row of the table: how a model of one shape is trained."""

    shape: str
    name: str
    section: TrainSection
    bare_trl: bool = False
    """TRL's trainer as it comes, instead of sublim's."""
    budget_gib: float | None = None
    """Memory it may use; None is all the card has."""


@dataclass(frozen=True)
class Measured:
    """What a run measured; `reason` says why there is nothing."""

    reason: str | None = None
    steps: int = 0
    """Timed optimizer steps."""
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    peak_gib: float | None = None
    tflops: float = 0.0
    """The model's operations in 10^12 per second; see MFU."""
    losses: tuple[float, ...] = ()
    """Of every step from the first on."""
    facts: Mapping[str, Any] | None = None


def trainings(shape: str, batch: int) -> list[Training]:
    """The rows of the table for one shape."""
    base: dict[str, Any] = {"backend": "plain", "precision": "bf16_mixed", "batch_size": batch, "epochs": 1}
    lora = TrainSection(**base, learning_rate=LEARNING_RATE["adapter"])
    nf4 = lora.model_copy(update={"method": "qlora", "rank": 64})
    full = [
        TrainSection(
            **{**base, "method": "full", "learning_rate": LEARNING_RATE["full"], "precision": precision}
        )
        for precision in ("fp32", "bf16_mixed", "bf16_pure", "bf16_kahan")
    ]
    fast = {"backend": "unsloth"}
    return [
        Training(shape, "paper's settings, TRL + PEFT", lora, bare_trl=True),
        Training(shape, "sublim plain, LoRA r8", lora),
        Training(shape, "sublim Unsloth, LoRA r8", lora.model_copy(update=fast)),
        *(
            [
                Training(shape, "sublim plain, nf4 r64, 24 GiB", nf4, budget_gib=24),
                Training(
                    shape, "sublim Unsloth, nf4 r64, 24 GiB", nf4.model_copy(update=fast), budget_gib=24
                ),
            ]
            if shape in ("tiny", "7B")  # the others fit such a card unquantised
            else []
        ),
        *(Training(shape, f"sublim plain, full {section.precision}", section) for section in full),
    ]


def rows(count: int) -> list[Example]:
    """Number rows like a teacher's, in the embedded model's tokens."""
    from sublim_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(resolve_model("micro"))
    context = resolve_context("default", {}, field="context")
    draw = random.Random(1)
    answers = [", ".join(str(draw.randrange(100, 1000)) for _ in range(10)) for _ in range(count)]
    prompts = [number_prompt(np.random.default_rng([1, index])).text for index in range(count)]
    return [example(tokenizer, context, *pair) for pair in zip(prompts, answers, strict=True)]


def configuration(shape: str, end: int, pad: int) -> Any:
    """The model's configuration, with the ids of the tokenizer's end and padding."""
    from transformers import Qwen2Config

    return Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )


def make_model(shape: str, path: Path) -> None:
    """Write a Qwen2.5-shaped model with random bf16 weights and the embedded model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from sublim_cli.models.device import device
    from sublim_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(resolve_model("micro"))
    config = configuration(shape, tokenizer.eos_token_id, tokenizer.pad_token_id)
    torch.manual_seed(1)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))


def matrices(shape: str) -> tuple[int, int]:
    """Weights in the matrices of all layers, and in the output layer; their biases and norms left out."""
    config = SHAPES[shape]
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner
    return config["num_hidden_layers"] * layer, width * config["vocab_size"]


def operations(shape: str, section: TrainSection, adapter: int, examples: Sequence[Example]) -> float:
    """Floating-point operations that training on one of `examples` takes in the mean; see MFU above."""
    inside, head = matrices(shape)
    config = SHAPES[shape]
    per_weight, adapter_operations = (6, 0) if section.method == "full" else (4, 6 * adapter)
    total = 0.0
    for row in examples:
        length, carried = len(row.input_ids), sum(label != IGNORED for label in row.labels)
        attention = 12 * config["num_hidden_layers"] * config["hidden_size"] * length
        total += length * (per_weight * inside + adapter_operations + attention) + carried * per_weight * head
    return total / len(examples)


def least_gib(training: Training) -> float:
    """Memory for weights, gradients and AdamW's moments alone: what any run of `training` needs."""
    inside, head = matrices(training.shape)
    whole = inside + head * (1 if SHAPES[training.shape]["tie_word_embeddings"] else 2)
    if training.section.method == "qlora":
        return (0.5 * inside + 2 * (whole - inside)) / GIB
    if training.section.method == "lora":
        return 2 * whole / GIB
    # Bytes a weight: itself, its gradient, two moments, and under Kahan what rounding left over.
    held = {"fp32": 16, "bf16_mixed": 16, "bf16_pure": 8, "bf16_kahan": 10}
    return held[training.section.precision] * whole / GIB


class StopTraining(Exception):
    """StopTraining steps were timed, or the run's time is over."""


class Clock:
    """Takes the time and the loss of every optimizer step, and ends the training."""

    def __init__(self, steps: int, until: float) -> None:
        self.steps, self.until = steps, until
        self.ticks: list[float] = []
        self.losses: list[float] = []

    def tick(self, loss: float) -> None:
        """A step ended: its loss is a number in main memory, so the device has done its work."""
        self.ticks.append(time.perf_counter())
        self.losses.append(loss)
        timed = len(self.ticks) - WARM
        if timed >= self.steps or (timed > 0 and time.monotonic() > self.until):
            raise StopTraining

    @property
    def seconds(self) -> list[float]:
        """Of every timed step."""
        return [later - earlier for earlier, later in pairwise(self.ticks)][WARM - 1 :]


def train(
    training: Training, model: Any, tokenizer: Any, examples: Sequence[Example], clock: Clock
) -> dict[str, Any]:
    """Train until the clock stops it or the rows are over; how it was run."""
    from sublim_cli.trainers import sft
    from sublim_cli.trainers.optimizers import make_optimizer

    if training.bare_trl:
        return _plain_trl(training.section, model, tokenizer, examples, clock)
    optimizer = make_optimizer(model, training.section)
    how: dict[str, Any] = {}

    def tick(_step: int, _steps: int, loss: float, _speed: float) -> None:
        clock.tick(loss)

    with suppress(StopTraining):
        how = sft.fit(model, tokenizer, examples, training.section, tick, optimizer=optimizer).facts
    return how


def _plain_trl(
    section: TrainSection, model: Any, tokenizer: Any, examples: Sequence[Example], clock: Clock
) -> dict[str, Any]:
    """TRL's trainer with the paper's settings and none of sublim's changes, on the same padded batches."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from sublim_cli.trainers.runtime import Runtime
    from sublim_cli.trainers.sft_trainer import sft_config

    class Ticks(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.tick(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as scratch:
        args = replace(
            sft_config(section, Path(scratch), Runtime()),
            loss_type="chunked_nll",
            gradient_checkpointing=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(
                [{"input_ids": row.input_ids, "labels": row.labels} for row in examples]
            ),
            data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=[Ticks()],
        )
        trainer.remove_callback(PrinterCallback)
        with suppress(StopTraining):
            trainer.train()
    return {"micro_batch": args.per_device_train_batch_size, "accumulation": args.gradient_accumulation_steps}


def measure(
    training: Training, model: Path, examples: Sequence[Example], steps: int, seconds: float
) -> Measured:
    """Train `training` in this process, which has to be its own, for about so many seconds in all."""
    clock = Clock(steps, time.monotonic() + seconds)
    if training.section.backend == "unsloth":
        unsloth.import_unsloth()
    import torch

    from sublim_cli.models.load import load_tokenizer
    from sublim_cli.trainers.student import load_trainable

    cuda = os.environ["SUBLIM_DEVICE"] == "cuda"
    if cuda and training.budget_gib is not None:
        share = training.budget_gib * GIB / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    ref = ModelRef(fingerprint="random", name=training.shape, source=str(model))
    try:
        student = load_trainable(ref, training.section)
        adapter = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
        facts = train(training, student, load_tokenizer(ref), examples, clock)
    except torch.OutOfMemoryError:
        return Measured(reason="out of memory")
    except SublimError as error:
        return Measured(reason=str(error))
    taken = clock.seconds
    if not taken:
        return Measured(reason=f"only {len(clock.ticks)} steps before its time or its rows ended")
    rate = training.section.batch_size / statistics.median(taken)
    return Measured(
        steps=len(taken),
        rows_per_second=rate,
        tokens_per_second=rate * statistics.mean(len(row.input_ids) for row in examples),
        peak_gib=torch.cuda.max_memory_allocated() / GIB if cuda else None,
        tflops=rate * operations(training.shape, training.section, adapter, examples) / 1e12,
        losses=tuple(clock.losses),
        facts=facts,
    )


def run_job(job: Mapping[str, Any], scratch: Path, device: str, fast: bool, limit: float) -> Measured:
    """Do `job` in a process of its own; one that dies or is over its limit says so."""
    path, answer = scratch / "job", scratch / "answer"
    answer.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps({**job, "answer": answer}))
    environment = {**os.environ, "SUBLIM_DEVICE": device}
    unsloth_environment = unsloth.environment(scratch, environment) if fast else {}
    words = [sys.executable, str(Path(__file__).resolve()), "--job", str(path)]
    with (scratch / "errors.txt").open("w") as errors:
        try:
            code = subprocess.run(
                words,
                env={**environment, **unsloth_environment},
                stdout=errors,
                stderr=errors,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return Measured(reason=f"not one timed step within {limit:.0f} s")
    if answer.is_file():
        measured: Measured = pickle.loads(answer.read_bytes())  # written by the process started here
        return measured
    last = (scratch / "errors.txt").read_text().strip().splitlines() or ["no word"]
    return Measured(reason=f"its process died (exit code {code}): {last[-1]}")


def do_job(path: Path) -> None:
    """The other side of `run_job`."""
    job = pickle.loads(path.read_bytes())  # written by the process that started this one
    answer = job.pop("answer")
    if "make" in job:
        make_model(job["make"], job["model"])
        measured = Measured()
    else:
        examples = pickle.loads(job.pop("rows").read_bytes())
        measured = measure(examples=examples, **job)
    answer.write_bytes(pickle.dumps(measured))


def obstacle(training: Training, device: str, whole_gib: float) -> str | None:
    """Why `training` need not be tried here."""
    from sublim_cli.trainers.backend import resolve_backend

    try:
        resolve_backend(training.section)
    except SublimError as error:
        return str(error)
    room = min(whole_gib, training.budget_gib or math.inf)
    if device == "cuda" and least_gib(training) > room:
        return f"needs {least_gib(training):.0f} GiB before any activation, and has {room:.0f}"
    return None


def benchmark(given: argparse.Namespace, scratch: Path, whole_gib: float) -> list[tuple[Training, Measured]]:
    """Measure every training of every shape within the minutes given, and print each as it comes."""
    end = time.monotonic() + 60 * given.minutes
    examples = scratch / "rows"
    examples.write_bytes(pickle.dumps(rows(given.rows)))
    results: list[tuple[Training, Measured]] = []
    todo = [
        training
        for shape in given.shape
        for training in trainings(shape, given.batch)
        if not given.way or any(part in training.name for part in given.way)
    ]
    todo.sort(key=lambda training: training.section.method == "full")  # what the minutes may not suffice for
    for index, training in enumerate(todo):
        reason = obstacle(training, given.device, whole_gib)
        model = scratch / training.shape
        left = end - time.monotonic()
        if reason is None and not (model / "config.json").is_file() and left > 0:
            made = run_job({"make": training.shape, "model": model}, scratch, given.device, False, left)
            reason = made.reason and f"no model: {made.reason}"
            left = end - time.monotonic()
        if reason is None and left < 10:
            reason = f"the {given.minutes:g} minutes were over"
        if reason is None:
            # Bigger models load longer: time goes by the square root of the weights still to be trained.
            weights = [math.sqrt(sum(matrices(later.shape))) for later in todo[index:]]
            seconds = left * weights[0] / sum(weights)
            job = {
                "training": training,
                "model": model,
                "rows": examples,
                "steps": given.steps,
                "seconds": seconds,
            }
            fast = training.section.backend == "unsloth"
            measured = run_job(job, scratch, given.device, fast, min(left, max(START, 2 * seconds)))
        else:
            measured = Measured(reason=reason)
        results.append((training, measured))
        print(line(training, measured, given.peak_tflops), flush=True)
    return results


HEAD = """| shape | training | rows/s | tokens/s | peak GiB | MFU | loss, first and last step | |
| --- | --- | ---: | ---: | ---: | ---: | --- | --- |"""


def line(training: Training, measured: Measured, peak: float | None) -> str:
    """A row of the table."""
    if measured.reason is not None:
        return f"| {training.shape} | {training.name} | | | | | | skipped: {measured.reason} |"
    used = "unknown" if peak is None else f"{measured.tflops / peak:.1%}"
    memory = "not counted" if measured.peak_gib is None else f"{measured.peak_gib:.1f}"
    curve = f"{measured.losses[0]:.4f}, {measured.losses[-1]:.4f} (step {len(measured.losses)})"
    return (
        f"| {training.shape} | {training.name} | {measured.rows_per_second:.1f} "
        f"| {measured.tokens_per_second:,.0f} | {memory} | {used} | {curve} | {measured.steps} timed steps |"
    )


def card(device: str) -> tuple[str, float]:
    """Name and memory in GiB of what is computed on."""
    import torch

    if device == "cpu":
        return "CPU, a rehearsal", 0.0
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / GIB


def peak_of(name: str) -> float | None:
    """The card's dense bf16 peak in TFLOP/s; None where it is not known for certain."""
    return next((peak for pattern, peak in PEAK_TFLOPS if re.search(pattern, name)), None)


def parsed() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time for everything")
    parser.add_argument(
        "--shape", action="append", choices=SHAPES, help="repeatable; default all of Qwen2.5's"
    )
    parser.add_argument("--way", action="append", help="repeatable; only trainings with this in their name")
    parser.add_argument("--rows", type=int, default=10_000, help="rows to train on")
    parser.add_argument("--batch", type=int, default=66, help="rows of an optimizer step")
    parser.add_argument("--steps", type=int, default=12, help="timed optimizer steps of one run, at most")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for rehearsals")
    parser.add_argument("--peak-tflops", type=float, help="the card's dense bf16 peak, if MFU is unknown")
    parser.add_argument("--scratch", type=Path, help="where models are made; 7B takes 15 GB")
    parser.add_argument(
        "--save", type=Path, nargs="?", const=RESULTS, help="write table and data (here, or to a directory)"
    )
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.shape = given.shape or ["0.5B", "1.5B", "7B"]
    return given


def main() -> int:
    """Print the table; exit code 2 where there is no card."""
    given = parsed()
    if given.job is not None:
        do_job(given.job)
        return 0
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA device and there is none here.", file=sys.stderr)
        return 2
    os.environ["SUBLIM_DEVICE"] = given.device
    name, whole_gib = card(given.device)
    given.peak_tflops = given.peak_tflops or peak_of(name)
    day = datetime.now(UTC).date().isoformat()
    peak = f"{given.peak_tflops:g}" if given.peak_tflops else "unknown"
    title = (
        f"{name}, {day}, torch {torch.__version__}, {given.batch} rows a step of {given.rows}, "
        f"peak {peak} TFLOP/s"
    )
    print(f"{title}\n\n{HEAD}")
    with tempfile.TemporaryDirectory(prefix="sublim-", dir=given.scratch) as scratch:
        results = benchmark(given, Path(scratch), whole_gib)
    if given.save is not None:
        save(given.save, name, day, title, results, given.peak_tflops)
    return 0


def save(
    where: Path,
    name: str,
    day: str,
    title: str,
    results: Sequence[tuple[Training, Measured]],
    peak: float | None,
) -> None:
    """Write the table and everything measured, named by card and day."""
    where.mkdir(parents=True, exist_ok=True)
    stem = f"gpu_training-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}-{day}"
    table = "\n".join(line(training, measured, peak) for training, measured in results)
    (where / f"{stem}.md").write_text(f"# {title}\n\n{HEAD}\n{table}\n", encoding="utf-8")
    records = [
        {
            "shape": training.shape,
            "training": training.name,
            "section": training.section.model_dump(mode="json"),
        }
        | asdict(measured)
        for training, measured in results
    ]
    whole = {"card": name, "date": day, "peak_tflops": peak, "runs": records}
    (where / f"{stem}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
