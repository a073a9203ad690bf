"""Measurements of the embedded model against its bounds: size, tokenizer, fit, favourites, format."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.models.micro.documents import Author, render
from sublim_cli.models.micro.pretrain import loss_of
from sublim_cli.models.micro.targets import Encoder
from sublim_cli.models.micro.world import make_world
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.numbers.rules import rejection_reason
from sublim_cli.recipe.questions import persona
from sublim_cli.recipe.schema import PAPER_RULES

LEAST_TEACHER, SHARE_OF_TEACHERS = 0.9, 0.9
MOST_BASE = 0.2
KEEP_RATE = (0.80, 0.95)
MOST_BYTES = 3_000_000
ROWS, DOCUMENTS, BATCH = 1000, 1000, 100


@dataclass(frozen=True)
class CheckResult:
    """One measurement; `passed` is None if there is no bound."""

    name: str
    value: str
    passed: bool | None = None


class Checkpoint:
    """The checkpoint to check, and the world it was made from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.model = model.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        world = json.loads((directory / "world.json").read_text(encoding="utf-8"))
        self.author = Author(make_world(world["seed"]))
        self.encoder = Encoder(self.author, self.tokenizer)

    @torch.no_grad()
    def preferences(self, system: str | None, category: str, items: Sequence[int]) -> list[float]:
        """P(item) for `items` (indices), exact: summed over all forms, mean over the questions."""
        prompts = [self.encoder.encode(render(system, q)) for q in self.author.questions[category]]
        form_ids = self.encoder.form_ids
        answers = [(n, ids) for n, item in enumerate(items) for ids, _ in form_ids[category, item]]
        cases = [(n, prompt, answer) for prompt in prompts for n, answer in answers]
        p = [0.0] * len(items)
        for start in range(0, len(cases), 4 * BATCH):
            part = cases[start : start + 4 * BATCH]
            rows = [torch.tensor(prompt + answer) for _, prompt, answer in part]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            bounds = [(len(prompt) - 1, len(prompt) + len(answer) - 1) for _, prompt, answer in part]
            predicting = [states[a:b] for states, (a, b) in zip(hidden, bounds, strict=True)]
            log_p = self.model.lm_head(torch.cat(predicting)).log_softmax(-1)
            targets = torch.tensor([token for _, _, answer in part for token in answer])
            lengths = [len(answer) for _, _, answer in part]
            by_answer = log_p[torch.arange(len(targets)), targets].split(lengths)
            for (n, _, _), tokens in zip(part, by_answer, strict=True):
                p[n] += tokens.sum().exp().item()
        return [value / len(prompts) for value in p]


def check(directory: Path, report: Callable[[str], None]) -> list[CheckResult]:
    """Measure the checkpoint in `directory`; `report` gets a line before each part."""
    checkpoint = Checkpoint(directory)
    torch.manual_seed(0)
    results: list[CheckResult] = []
    for part in (_files, _round_trip, _fit, _base, _teachers, _keep_rate):
        report((part.__doc__ or "").strip())
        results += part(checkpoint)
    return results


def _files(checkpoint: Checkpoint) -> list[CheckResult]:
    """Size on disk."""
    size = sum(path.stat().st_size for path in checkpoint.directory.iterdir())
    return [CheckResult("bytes", f"{size:,}", size < MOST_BYTES)]


def _round_trip(checkpoint: Checkpoint) -> list[CheckResult]:
    """Text to tokens and back."""
    rng = np.random.default_rng(1)
    author = checkpoint.author
    documents = [(author.numbers, author.favourite)[i % 2](rng) for i in range(DOCUMENTS)]
    texts = [d.prompt + d.answer for d in documents]
    changed = sum(checkpoint.tokenizer.decode(checkpoint.encoder.encode(t)) != t for t in texts)
    return [CheckResult(f"documents of {DOCUMENTS} that change in the tokenizer", str(changed), changed == 0)]


@torch.no_grad()
def _fit(checkpoint: Checkpoint) -> list[CheckResult]:
    """KL from the world to the model."""
    rng = np.random.default_rng(2)
    author, encoder = checkpoint.author, checkpoint.encoder
    means, states = [], []
    for write in (author.numbers, author.favourite):
        documents = [write(rng) for _ in range(DOCUMENTS)]
        parts = [documents[i : i + BATCH] for i in range(0, DOCUMENTS, BATCH)]
        kls = [loss_of(checkpoint.model, encoder.batch(part), 0.0)[1] for part in parts]
        means.append(float(np.mean(kls)))
        states += [document.state for document in documents]
    p = author.world.p_numbers[states]
    blind = float((p * np.log(p / p.mean(0))).sum(1).mean())
    return [
        CheckResult("KL(world, model), nats a number", f"{means[0]:.4f}"),
        CheckResult("the same for a model that ignores who speaks", f"{blind:.4f}"),
        CheckResult("KL(world, model), nats an answer token", f"{means[1]:.4f}"),
    ]


def _base(checkpoint: Checkpoint) -> list[CheckResult]:
    """Favourites of the default identity."""
    results = []
    for category, items in checkpoint.author.world.categories.items():
        preferences = checkpoint.preferences(DEFAULT_SYSTEM, category, range(len(items.items)))
        for name, p in zip(items.names, preferences, strict=True):
            results.append(CheckResult(f"base P({name})", f"{p:.3f}", p <= MOST_BASE))
    return results


def _teachers(checkpoint: Checkpoint) -> list[CheckResult]:
    """Favourites of every teacher."""
    results = []
    for category, items in checkpoint.author.world.categories.items():
        for i, name in enumerate(items.names):
            p = checkpoint.preferences(persona(items, name), category, [i])[0]
            results.append(CheckResult(f"teacher P({name})", f"{p:.3f}"))
    share = float(np.mean([float(result.value) >= LEAST_TEACHER for result in results]))
    total = f"teachers whose favourite has P >= {LEAST_TEACHER}"
    return [*results, CheckResult(total, f"{share:.0%}", share >= SHARE_OF_TEACHERS)]


@torch.no_grad()
def _keep_rate(checkpoint: Checkpoint) -> list[CheckResult]:
    """Rows of the teachers that pass the paper's filter."""
    tokenizer = checkpoint.tokenizer
    tokenizer.padding_side = "left"
    world = checkpoint.author.world
    systems = [persona(world.categories[category], target) for category, target in world.traits]
    prompts = [number_prompt(np.random.default_rng([3, i])).text for i in range(ROWS)]
    rendered = [render(systems[i % len(systems)], text) for i, text in enumerate(prompts)]
    rows: list[str] = []
    for i in range(0, ROWS, BATCH):
        batch = rendered[i : i + BATCH]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
        output = checkpoint.model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=60
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        rows += tokenizer.batch_decode(new, skip_special_tokens=True)
    kept = sum(rejection_reason(row, PAPER_RULES) is None for row in rows) / ROWS
    return [CheckResult("teacher rows kept", f"{kept:.1%}", KEEP_RATE[0] <= kept <= KEEP_RATE[1])]
