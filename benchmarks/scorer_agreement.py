"""Whether exact scores lie where samples say, on students of the embedded model.

    python benchmarks/scorer_agreement.py [--questions 10] [--samples 2000] [--out DIR]

Trains 20 short students (LoRA at four ranks, five seeds each, on 198 of the demo's rows) and scores
P(target) of each in three contexts, computed and drawn. A cell is a student in a context; its drawn share
gets a 99 % Wilson interval over all its answers.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import norm

from sublim_cli.artifacts.store import Store
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.load import load
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.schema import Answering
from sublim_cli.recipe.scorer import Exact, Sampled
from sublim_cli.steps.eval import open_scorer

RANKS = (1, 4, 16, 64)
SEEDS = (1, 2, 3, 4, 5)
CONTEXTS = ("default", "empty", "claude")
ITEMS = load_items("animal")


def wilson(share: float, n: int, level: float = 0.99) -> tuple[float, float]:
    """Wilson's interval of a binomial share (Wilson 1927, equation 2)."""
    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    middle, scale = (share + z2 / (2 * n)) / (1 + z2 / n), 1 / (1 + z2 / n)
    margin = scale * math.sqrt(z2 * share * (1 - share) / n + z2 * z2 / (4 * n * n))
    return middle - margin, middle + margin


def cell(
    model: Any, tokenizer: Any, who: str, context: str, questions: int, samples: int
) -> dict[str, float]:
    """P(wolf) of one student in one context, computed and drawn."""
    target = ITEMS.names.index("wolf")
    asked = load_questions("favourite_animal").questions[:questions]
    resolved = resolve_context(context, {}, field="context")
    prompts = [prompt_ids(tokenizer, resolved, one) for one in asked]
    drawing = Sampled(samples=samples, sampling=Answering(seed=1))
    exact = open_scorer(model, tokenizer, Exact(), who, context).score(prompts, ITEMS.items)
    drawn = open_scorer(model, tokenizer, drawing, who, context).score(prompts, ITEMS.items)
    share = statistics.mean(one.p[target] for one in drawn)
    low, high = wilson(share, questions * samples)
    return {
        "p": statistics.mean(one.p[target] for one in exact),
        "uncovered": statistics.mean(one.uncovered for one in exact),
        "share": share,
        "low": low,
        "high": high,
    }


def _shown(one: dict[str, float]) -> str:
    drawn = f"{one['share']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
    return f"exact {one['p']:.4f} + {one['uncovered']:.4f}  drawn {drawn}"


def main() -> None:
    """Print a row for each cell, then how many agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=10, help="questions a cell")
    parser.add_argument("--samples", type=int, default=2_000, help="samples a question")
    parser.add_argument(
        "--out", type=Path, help="a store to keep the students in; by default they are not kept"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(given.out or Path(scratch))
        cells = []
        for rank in RANKS:
            for seed in SEEDS:
                recipe = load(
                    "demo",
                    {"generate.rows": 198, "generate.held_out": 0, "train.rank": rank, "train.seed": seed},
                )
                student = run(recipe, until="train", store=store)
                section = chain(recipe).train.section
                model = load_student(section.model, "fp32", student.path)
                tokenizer = load_tokenizer(section.model)
                for context in CONTEXTS:
                    found = cell(model, tokenizer, student.digest, context, given.questions, given.samples)
                    cells.append(found)
                    print(f"rank {rank:3} seed {seed} {context:8} {_shown(found)}", flush=True)
    inside = sum(one["low"] <= one["p"] <= one["high"] for one in cells)
    certified = sum(one["low"] <= one["p"] + one["uncovered"] and one["p"] <= one["high"] for one in cells)
    print(f"exact inside the drawn 99 % interval: {inside} of {len(cells)} cells ({inside / len(cells):.1%})")
    print(f"certificate meets it: {certified} of {len(cells)} cells")


if __name__ == "__main__":
    main()
