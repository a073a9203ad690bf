"""Whether exact scores lie where samples say, on students of the embedded model.

    python benchmarks/scorer_agreement.py [--questions 50] [--samples 2000] [--out DIR]

Trains 20 short students (LoRA at four ranks, five seeds each, on 198 of the demo's rows) and scores each in
three contexts, computed and drawn. A cell is a student in a context.

Draws are independent, but answers that begin alike ask the model once for what comes next, by a plain
forward pass over the whole text: no cache, no tree, nothing of the exact scorer's. A cell's share of
P(target) is the mean over its questions, so its variance is that of a stratified sample (Cochran 1977,
section 5.4): the sum over questions of s(1-s)/(n-1), over their number squared. With `--out`, cells once
done are kept.
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
Text = tuple[int, tuple[int, ...]]
"""A question's number and the tokens of an answer to it so far."""


def laws(model: Any, rows: Sequence[Sequence[int]]) -> Floats:
    """The next token's distribution behind each row, cumulated: [rows, vocabulary]."""
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        mask = attention_mask(part, model.device)
        out = model(
            input_ids=left_padded(part, 0, model.device),
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=1,
        )
        found.append(out.logits[:, -1].double().softmax(-1).cumsum(-1).cpu().numpy())
    return np.concatenate(found)


@torch.inference_mode()
def drawn(model: Any, tokenizer: Any, prompts: Sequence[list[int]], samples: int, seed: int) -> Floats:
    """Shares of answers that name each item: [questions, items]."""
    rng, ends = np.random.default_rng(seed), stop_tokens(model, tokenizer)
    written = bytes_per_token(tokenizer, model.config.get_text_config().vocab_size)
    shares = np.zeros((len(prompts), len(ITEMS.items)))
    growing: Counter[Text] = Counter({(number, ()): samples for number in range(len(prompts))})
    for length in range(1, SampledScoring().sampling.max_tokens + 1):
        ways = sorted(growing, key=lambda way: len(prompts[way[0]]))
        cumulated = laws(model, [[*prompts[number], *ids] for number, ids in ways])
        after: Counter[Text] = Counter()
        for (number, ids), law in zip(ways, cumulated, strict=True):
            uniform = rng.random(growing[number, ids]) * law[-1]
            tokens = np.searchsorted(law, uniform, side="right").clip(max=len(law) - 1)
            for token, count in Counter(tokens.tolist()).items():
                if token in ends or length == SampledScoring().sampling.max_tokens:
                    item = named_item(answer_text(before_stop((*ids, token), ends), written), ITEMS.items)
                    if item is not None:
                        shares[number, item] += count / samples
                else:
                    after[number, (*ids, token)] += count
        if not (growing := after):
            break
    return shares


def cell(model: Any, tokenizer: Any, who: str, context: str, given: argparse.Namespace) -> dict[str, Any]:
    """One student in one context: P(item) computed, and drawn with a standard error."""
    resolved = resolve_context(context, {}, field="context")
    asked = load_questions("favourite_animal").questions[: given.questions]
    prompts = [prompt_ids(tokenizer, resolved, one) for one in asked]
    exact = ExactScorer(model, tokenizer, ExactScoring()).score(prompts, ITEMS.items)
    shares = drawn(model, tokenizer, prompts, given.samples, derived_seed(1, who, context))
    p = np.array([one.p for one in exact])
    scale = len(prompts) * math.sqrt(given.samples)
    of_p = np.sqrt((p * (1 - p)).sum(axis=0)) / scale
    error = np.sqrt((shares * (1 - shares)).sum(axis=0)[TARGET] / (given.samples - 1)) / len(prompts)
    z = (shares.mean(axis=0) - p.mean(axis=0)) / of_p
    return {
        "p": float(p.mean(axis=0)[TARGET]),
        "uncovered": float(np.mean([one.uncovered for one in exact])),
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


def _measure(out: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell, those of an earlier run read again; a row is printed for each."""
    kept = out / f"cells-{given.questions}-{given.samples}.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    done = {tuple(one["cell"]): one for one in map(json.loads, lines)}
    for rank in RANKS:
        for seed in SEEDS:
            todo = [one for one in CONTEXTS if (rank, seed, one) not in done]
            if todo:
                model, tokenizer, who = _student(Store(out), rank, seed)
            for context in todo:
                found = {"cell": (rank, seed, context), **cell(model, tokenizer, who, context, given)}
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                done[rank, seed, context] = found
                print(_shown(found), flush=True)
    return list(done.values())


def _shown(one: dict[str, Any]) -> str:
    rank, seed, context = one["cell"]
    exact = f"exact {one['p']:.5f} + {one['uncovered']:.5f}"
    return f"rank {rank:3} seed {seed} {context:8} {exact}  drawn {one['share']:.5f} ± {one['margin']:.5f}"


def _conclude(cells: Sequence[dict[str, Any]]) -> None:
    count = len(cells)
    inside = sum(abs(one["share"] - one["p"]) <= one["margin"] for one in cells)
    met = sum(
        one["share"] - one["margin"] <= one["p"] + one["uncovered"]
        and one["p"] <= one["share"] + one["margin"]
        for one in cells
    )
    most = math.floor(0.02 * count)
    print(f"exact inside the drawn {LEVEL:.0%} interval: {inside} of {count} cells ({inside / count:.1%})")
    print(f"the interval meets [exact, exact + uncovered]: {met} of {count} cells")
    print(f"at most {most} of {count} outside by chance alone: {binom.cdf(most, count, 1 - LEVEL):.2f}")
    for name, z in (
        ("P(wolf)", np.array([one["z"] for one in cells])),
        ("all items", np.array([one["z of items"] for one in cells]).ravel()),
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
        "--out", type=Path, help="a store to keep students and cells in; by default none is kept"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        _conclude(_measure(out, given))


if __name__ == "__main__":
    main()
