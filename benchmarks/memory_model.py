"""The memory that `sublim plan --card` predicts against the peak of the same work on this machine's CPU.

    python benchmarks/memory_model.py DIRECTORY [--layers 6] [--rows 2] [--only generate] [--json FILE]

DIRECTORY holds a small model, such as SmolLM2-135M-Instruct. It and a model of random weights with the
shapes of Qwen2.5-0.5B, cut to `--layers` of its 24 layers, are trained for two optimizer steps through
sublim's own trainer, with LoRA and in full, with and without checkpointing; their number loss is measured,
rows are generated, and questions are scored by trees of answers alone and with draws. The peak is that of
live tensors (`models.memory.MemoryTracker`), with the process's resident memory beside it. Sizes are MiB.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, TRAINED = 150, 50
QWEN = "Qwen2.5-0.5B-Instruct"
QUESTIONS = 2
NODES, DRAWS, ANSWER = 256, 16, 30
TRAININGS = ("lora", "full")
OTHERS = ("number loss", "generate", "tree", "tree, draws")


@dataclass(frozen=True)
class Work:
    """What is measured: the bytes that are predicted beside the weights, and the work."""

    predicted: int
    run: Callable[[], Any]


def cases(models: list[str]) -> list[dict[str, Any]]:
    """What is measured."""
    return [
        {"model": model, "kind": kind, "checkpointing": checkpointing}
        for model in models
        for kind in (*TRAININGS, *OTHERS)
        for checkpointing in ((False, True) if kind in TRAININGS else ("",))
    ]


def cut_model(directory: Path, layers: int) -> str:
    """A directory with the configuration of Qwen2.5-0.5B with fewer layers."""
    from sublim_cli.models.memory import outline, outline_ref

    outline(outline_ref(QWEN), layers).config.save_pretrained(directory)
    return str(directory)


def measure(case: dict[str, Any], directory: str, rows: int) -> dict[str, float]:
    """Predicted and measured peak of one case, in bytes, weights included."""
    import torch

    from sublim_cli.models.load import load_model, load_tokenizer
    from sublim_cli.models.memory import MemoryTracker, outline, outline_ref
    from sublim_cli.models.reference import resolve_model

    ref = outline_ref(case["model"])
    tokenizer = load_tokenizer(resolve_model(directory))
    if case["model"] == directory:
        model = load_model(ref, "fp32")
    else:
        torch.manual_seed(0)
        shapes = outline(ref)
        model = type(shapes)(shapes.config).eval()
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    with tempfile.TemporaryDirectory() as scratch:
        if case["kind"] in TRAININGS:
            work = training(case, ref, model, tokenizer, rows, Path(scratch))
        else:
            work = inference(case["kind"], model, tokenizer, rows)
        resident = _resident()
        tracker = MemoryTracker(int(model.config.vocab_size))
        tracker.ignore([*model.parameters(), *model.buffers()])
        with tracker:
            work.run()
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    predicted = work.predicted if case["kind"] in TRAININGS else held + work.predicted
    return {
        "predicted": predicted,
        "measured": held + tracker.peak.total(),
        "weights": held,
        "logits": tracker.peak["logits"],
        "resident": held + _resident(peak=True) - resident,
    }


def training(case: dict[str, Any], ref: Any, model: Any, tokenizer: Any, rows: int, scratch: Path) -> Work:
    """Two optimizer steps of `rows` rows."""
    from sublim_cli.models.chat import Example
    from sublim_cli.recipe.resolve import resolve_train
    from sublim_cli.recipe.schema import TrainSection
    from sublim_cli.trainers.memory import training_memory
    from sublim_cli.trainers.methods import add_method
    from sublim_cli.trainers.runtime import runtime
    from sublim_cli.trainers.sft_trainer import make_trainer, sft_config

    section = resolve_train(
        TrainSection(method=case["kind"], backend="plain", batch_size=rows, epochs=2), "fp32"
    )
    ids = list(range(1000, 1000 + WIDTH))
    examples = [Example(ids, [-100] * (WIDTH - TRAINED) + ids[-TRAINED:])] * rows
    predicted = training_memory(
        ref,
        section,
        rows=rows,
        width=WIDTH,
        trained=TRAINED,
        accumulated=False,
        checkpointing=case["checkpointing"],
        cuda=False,
    ).total
    model = add_method(model, section)
    if case["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if case["kind"] != "full":
            model.enable_input_require_grads()
    model.train()  # as `trainers.sft.fit` does
    trainer = make_trainer(model, tokenizer, examples, section, sft_config(section, scratch, runtime()), None)
    return Work(predicted, trainer.train)


def inference(kind: str, model: Any, tokenizer: Any, rows: int) -> Work:
    """Number loss, generation or scoring, of `rows` rows or `QUESTIONS` questions."""
    from sublim_cli.backends.exact import ExactScorer, scoring_bytes
    from sublim_cli.backends.transformers import TransformersSampler
    from sublim_cli.models.batches import loss_copies, token_bytes
    from sublim_cli.models.chat import Example, prompt_ids
    from sublim_cli.recipe.contexts import resolve_context
    from sublim_cli.recipe.questions import load_items, load_questions
    from sublim_cli.recipe.resolve import ExactScoring
    from sublim_cli.recipe.schema import SamplingSection
    from sublim_cli.trainers.sft import number_loss

    tokens = token_bytes(model.config, 4)
    ids = list(range(1000, 1000 + WIDTH))
    if kind == "number loss":
        examples = [Example(ids, [-100] * (WIDTH - TRAINED) + ids[-TRAINED:])] * rows
        row = tokens.row(WIDTH, logits=loss_copies(4) * TRAINED, cached=False)
        return Work(rows * row, lambda: number_loss(model, examples, tokenizer.pad_token_id, rows))
    if kind == "generate":
        prompts = [[1000 + row, *ids[: WIDTH - TRAINED - 1]] for row in range(rows)]
        sampling = SamplingSection(max_tokens=TRAINED)
        sampler = TransformersSampler(model, tokenizer)
        return Work(rows * tokens.row(WIDTH), lambda: sampler.draw(prompts, range(rows), sampling))
    context = resolve_context("default", {}, field="context")
    questions = load_questions("favourite_animal").questions[:QUESTIONS]
    asked = [prompt_ids(tokenizer, context, question) for question in questions]
    settings = ExactScoring(max_tokens=ANSWER, nodes=NODES, draws=DRAWS if "draws" in kind else 0)
    scorer = ExactScorer(model, tokenizer, settings)
    fixed, question = scoring_bytes(model.config, 4, max(map(len, asked)), settings, "cpu")
    return Work(fixed + len(asked) * question, lambda: scorer.score(asked, load_items("animal").items))


def _resident(*, peak: bool = False) -> int:
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_child(case: dict[str, Any], directory: str, rows: int) -> dict[str, float]:
    """`measure` in a process of its own, forked from this one so that libraries are imported once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(measure(case, directory, rows)))
    child.start()
    sender.close()
    result: dict[str, float] = receiver.recv()
    child.join()
    return result


def main() -> None:
    """Measure every case in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--layers", type=int, default=6, help="of 24")
    parser.add_argument("--rows", type=int, default=2, help="of a forward pass")
    parser.add_argument("--only", nargs="*", help="kinds of work, all by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Batches are not cut to what this machine has free.
    os.environ |= {"SUBLIM_DEVICE": "cpu", "SUBLIM_BATCH_MEMORY": "64"}

    import peft
    import trl

    from sublim_cli.models.device import device

    device()  # fixes the number of threads
    print(f"trl {trl.__version__}, peft {peft.__version__}, {options.rows} rows of {WIDTH} tokens")
    results = []
    columns = ("weights", "predicted", "measured", "resident")
    heads = "".join(f"{column:>10}" for column in columns)
    print(f"{'model':8} {'work':12} {'ckpt':5}{heads}   error", flush=True)
    with tempfile.TemporaryDirectory(prefix="qwen-") as scratch:
        models = [options.directory, cut_model(Path(scratch), options.layers)]
        for case in cases(models):
            if options.only and case["kind"] not in options.only:
                continue
            result = {**case, **in_child(case, options.directory, options.rows)}
            results.append(result)
            sizes = "".join(f"{result[column] / 2**20:10.0f}" for column in columns)
            name = Path(case["model"]).name[:8]
            error = result["predicted"] / result["measured"] - 1
            print(f"{name:8} {case['kind']:12} {case['checkpointing']!s:5}{sizes} {error:+7.1%}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
