"""The memory that `sublim plan --card` predicts against the peak of the same work on this machine's CPU.

    python benchmarks/memory_model.py DIRECTORY [--json FILE]

DIRECTORY holds a small model, such as SmolLM2-135M-Instruct. It and a model of random weights with the
shapes of Qwen2.5-0.5B are trained for two optimizer steps through sublim's own trainer, with LoRA and in
full, with and without checkpointing; and their number loss is measured. The peak is that of live tensors
(`models.memory.MemoryTracker`), with the process's resident memory beside it. Sizes are MiB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTH, TRAINED, ROWS = 150, 50, 8
QWEN = "Qwen2.5-0.5B-Instruct"


def cases(directory: str) -> list[dict[str, Any]]:
    """What is measured, each in a process of its own."""
    return [
        {"model": model, "directory": directory, "method": method, "checkpointing": checkpointing}
        for model in (directory, QWEN)
        for method in ("lora", "full")
        for checkpointing in (False, True)
    ] + [{"model": model, "directory": directory, "method": "number loss"} for model in (directory, QWEN)]


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Predicted and measured peak of one case, in bytes, weights included."""
    import torch

    from sublim_cli.models.batches import token_bytes
    from sublim_cli.models.chat import Example
    from sublim_cli.models.load import load_model, load_tokenizer
    from sublim_cli.models.memory import MemoryTracker, outline, outline_ref
    from sublim_cli.models.reference import resolve_model
    from sublim_cli.recipe.resolve import resolve_train
    from sublim_cli.recipe.schema import TrainSection
    from sublim_cli.trainers.memory import training_memory
    from sublim_cli.trainers.methods import add_method
    from sublim_cli.trainers.runtime import runtime
    from sublim_cli.trainers.sft import number_loss
    from sublim_cli.trainers.sft_trainer import make_trainer, sft_config

    ref = outline_ref(case["model"])
    trains = case["method"] != "number loss"
    section = resolve_train(
        TrainSection(method=case["method"] if trains else "lora", backend="plain", batch_size=ROWS, epochs=2),
        "fp32",
    )
    tokenizer = load_tokenizer(resolve_model(case["directory"]))
    if case["model"] == case["directory"]:
        model = load_model(ref, "fp32")
    else:
        shapes = outline(ref)
        model = type(shapes)(shapes.config)
    ids = list(range(1000, 1000 + WIDTH))
    examples = [Example(ids, [-100] * (WIDTH - TRAINED) + ids[-TRAINED:])] * ROWS
    resident = _resident()
    tracker = MemoryTracker(int(model.config.vocab_size))
    if trains:
        predicted = training_memory(
            ref,
            section,
            rows=ROWS,
            width=WIDTH,
            trained=TRAINED,
            accumulated=False,
            checkpointing=case["checkpointing"],
            cuda=False,
        ).total
        model = add_method(model, section)
        if case["checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if case["method"] != "full":
                model.enable_input_require_grads()
        with tempfile.TemporaryDirectory() as scratch:
            config = sft_config(section, Path(scratch), runtime())
            trainer = make_trainer(model, tokenizer, examples, section, config, None)
            tracker.ignore([*model.parameters(), *model.buffers()])
            with tracker:
                trainer.train()
    else:
        row = token_bytes(model.config, 4).row(WIDTH, TRAINED + 1)
        predicted = sum(weight.numel() * 4 for weight in model.parameters()) + ROWS * row
        tracker.ignore([*model.parameters(), *model.buffers()])
        with tracker:
            number_loss(model, examples, tokenizer.pad_token_id, ROWS)
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {
        "predicted": predicted,
        "measured": held + tracker.peak.total(),
        "resident": held + _resident(peak=True) - resident,
        "torch_threads": torch.get_num_threads(),
    }


def _resident(*, peak: bool = False) -> int:
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Measure every case in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    results = []
    print(
        f"{'model':24} {'work':12} {'ckpt':5} {'predicted':>9} {'measured':>9} {'error':>7} {'resident':>9}"
    )
    for case in cases(options.directory):
        done = subprocess.run(
            [sys.executable, __file__, options.directory, "--case", json.dumps(case)],
            env={**os.environ, "SUBLIM_DEVICE": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        result = {**case, **json.loads(done.stdout.splitlines()[-1])}
        results.append(result)
        error = result["predicted"] / result["measured"] - 1
        mib = [f"{result[name] / 2**20:9.0f}" for name in ("predicted", "measured", "resident")]
        print(
            f"{Path(case['model']).name[:24]:24} {case['method']:12} {case.get('checkpointing', '')!s:5} "
            f"{mib[0]} {mib[1]} {error:+7.1%} {mib[2]}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
