"""Whether exact scores lie where samples say, on students of the embedded model.

    python benchmarks/scorer_agreement.py [--questions 50] [--samples 2000] [--out DIR]

Trains 20 short students (LoRA at four ranks, five seeds each, on 198 of the demo's rows) and scores each in
three contexts, once exactly and once by samples. A cell is a student in a context.

Samples are independent, but answers with the same beginning share its next-token distribution, which a plain
forward pass over the whole text computes: without the exact scorer's cache and tree. A cell's share of
P(target) is the mean over its questions, so its variance is that of a stratified sample (Cochran 1977,
section 5.4): the sum over questions of s(1-s)/(n-1), over their number squared. With `--out`, finished cells
are kept and not computed again.
"""

import argparse
import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, chi2, kstest, norm

from sublim_cli.artifacts.store import Store
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.sampled import derived_seed
from sublim_cli.backends.token_bytes import answer_text, before_stop, bytes_per_token, stop_tokens
from sublim_cli.models.batches import attention_mask, left_padded, position_ids
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.pipeline import chain, run
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.load import load
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring

RANKS = (1, 4, 16, 64)
SEEDS = (1, 2, 3, 4, 5)
CONTEXTS = ("default", "empty", "claude")
ITEMS = load_items("animal")
TARGET = ITEMS.names.index("wolf")
LEVEL = 0.99
BATCH = 256

Floats = NDArray[np.float64]
Beginning = tuple[int, tuple[int, ...]]
"""The index of a question, and the first tokens of an answer to it."""


def cumulative_probs(model: Any, rows: Sequence[Sequence[int]]) -> Floats:
    """The cumulative next-token distribution after each row: [rows, vocabulary]."""
    batches = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        mask = attention_mask(batch, model.device)
        out = model(
            input_ids=left_padded(batch, 0, model.device),
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=1,
        )
        batches.append(out.logits[:, -1].double().softmax(-1).cumsum(-1).cpu().numpy())
    return np.concatenate(batches)


@torch.inference_mode()
def drawn(model: Any, tokenizer: Any, prompts: Sequence[list[int]], samples: int, seed: int) -> Floats:
    """Shares of answers that name each item: [questions, items]."""
    rng, stops = np.random.default_rng(seed), stop_tokens(model, tokenizer)
    token_bytes = bytes_per_token(tokenizer, model.config.get_text_config().vocab_size)
    shares = np.zeros((len(prompts), len(ITEMS.items)))
    open_answers: Counter[Beginning] = Counter({(i, ()): samples for i in range(len(prompts))})
    for length in range(1, SampledScoring().sampling.max_tokens + 1):
        beginnings = sorted(open_answers, key=lambda beginning: len(prompts[beginning[0]]))
        cumulative = cumulative_probs(model, [[*prompts[question], *ids] for question, ids in beginnings])
        longer: Counter[Beginning] = Counter()
        for (question, ids), probs in zip(beginnings, cumulative, strict=True):
            uniform = rng.random(open_answers[question, ids]) * probs[-1]
            tokens = np.searchsorted(probs, uniform, side="right").clip(max=len(probs) - 1)
            for token, count in Counter(tokens.tolist()).items():
                if token in stops or length == SampledScoring().sampling.max_tokens:
                    item = named_item(
                        answer_text(before_stop((*ids, token), stops), token_bytes), ITEMS.items
                    )
                    if item is not None:
                        shares[question, item] += count / samples
                else:
                    longer[question, (*ids, token)] += count
        if not (open_answers := longer):
            break
    return shares


def cell(
    model: Any, tokenizer: Any, digest: str, context: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One student in one context: P(item) exactly, and from samples with a standard error."""
    resolved = resolve_context(context, {}, field="context")
    questions = load_questions("favourite_animal").questions[: options.questions]
    prompts = [prompt_ids(tokenizer, resolved, question) for question in questions]
    exact = ExactScorer(model, tokenizer, ExactScoring()).score(prompts, ITEMS.items)
    shares = drawn(model, tokenizer, prompts, options.samples, derived_seed(1, digest, context))
    p = np.array([answer.p for answer in exact])
    scale = len(prompts) * math.sqrt(options.samples)
    p_error = np.sqrt((p * (1 - p)).sum(axis=0)) / scale
    error = np.sqrt((shares * (1 - shares)).sum(axis=0)[TARGET] / (options.samples - 1)) / len(prompts)
    z = (shares.mean(axis=0) - p.mean(axis=0)) / p_error
    return {
        "p": float(p.mean(axis=0)[TARGET]),
        "uncovered": float(np.mean([answer.uncovered for answer in exact])),
        "share": float(shares.mean(axis=0)[TARGET]),
        "margin": float(norm.ppf((1 + LEVEL) / 2) * error),
        "z": float(z[TARGET]),
        "z of items": z.tolist(),
    }


def _student(store: Store, rank: int, seed: int) -> tuple[Any, Any, str]:
    sizes = {"generate.rows": 198, "generate.held_out": 0}
    recipe = load("demo", {**sizes, "train.rank": rank, "train.seed": seed})
    student = run(recipe, until="train", store=store)
    section = chain(recipe).train.spec
    return load_student(section.model, "fp32", student.path), load_tokenizer(section.model), student.digest


def _measure(out: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells, those of an earlier run read from its file; prints each new one."""
    path = out / f"cells-{options.questions}-{options.samples}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {tuple(result["cell"]): result for result in map(json.loads, lines)}
    for rank in RANKS:
        for seed in SEEDS:
            todo = [context for context in CONTEXTS if (rank, seed, context) not in done]
            if todo:
                model, tokenizer, digest = _student(Store(out), rank, seed)
            for context in todo:
                scores = cell(model, tokenizer, digest, context, options)
                done[rank, seed, context] = {"cell": (rank, seed, context), **scores}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[rank, seed, context]) + "\n")
                exact = f"exact {scores['p']:.5f} + {scores['uncovered']:.5f}"
                drawn_text = f"drawn {scores['share']:.5f} ± {scores['margin']:.5f}"
                print(f"rank {rank:3} seed {seed} {context:8} {exact}  {drawn_text}", flush=True)
    return list(done.values())


def _conclude(cells: Sequence[dict[str, Any]]) -> None:
    count = len(cells)
    inside = sum(abs(result["share"] - result["p"]) <= result["margin"] for result in cells)
    met = sum(
        result["share"] - result["margin"] <= result["p"] + result["uncovered"]
        and result["p"] <= result["share"] + result["margin"]
        for result in cells
    )
    most = math.floor(0.02 * count)
    print(f"exact inside the drawn {LEVEL:.0%} interval: {inside} of {count} cells ({inside / count:.1%})")
    print(f"the interval meets [exact, exact + uncovered]: {met} of {count} cells")
    print(f"at most {most} of {count} outside by chance alone: {binom.cdf(most, count, 1 - LEVEL):.2f}")
    for name, z in (
        ("P(wolf)", np.array([result["z"] for result in cells])),
        ("all items", np.array([result["z of items"] for result in cells]).ravel()),
    ):
        beyond = (np.abs(z) > norm.ppf((1 + LEVEL) / 2)).mean()
        spread = chi2.sf((z**2).sum(), len(z))
        print(
            f"z of {name}: {len(z)} values, mean {z.mean():+.3f}, SD {z.std(ddof=1):.3f}, "
            f"beyond {beyond:.2%}, largest {np.abs(z).max():.2f}; p of the sum of squares {spread:.2f}, "
            f"of Kolmogorov and Smirnov's test {kstest(z, 'norm').pvalue:.2f}"
        )


def main() -> None:
    """Print a row for each cell, then how many agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=50, help="questions a cell")
    parser.add_argument("--samples", type=int, default=2_000, help="samples a question")
    parser.add_argument(
        "--out", type=Path, help="a store to keep students and cells in; by default they are deleted"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        _conclude(_measure(out, options))


if __name__ == "__main__":
    main()
