"""What exact scores cost beside samples drawn with `generate`, on the embedded model.

    python benchmarks/scoring.py [--rounds 3] [--contexts 5] [--samples 100]

50 questions in each context, in three ways that take turns within one process: the exact scorer; `generate`
on all samples of all questions in one batch, as one would write it by hand; and the sampled scorer, which
computes what equal prompts share once. A row is the median time of a context, and the median of what the
process computed in that time: on a busy machine the latter tells more.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import ItemProbs
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.token_bytes import answer_text, before_stop, bytes_per_token, stop_tokens
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.device import device
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring

CONTEXTS = ("default", "empty", "none", "chatgpt", "claude")
ITEMS = load_items("animal").items
REF = resolve_model("micro")
TOKENIZER = load_tokenizer(REF)

Prompts = Sequence[list[int]]


def by_hand(model: Any, prompts: Prompts, samples: int, length: int) -> list[float]:
    """P(any item) by `generate` alone: every prompt written out once a sample."""
    rows = [one for one in prompts for _ in range(samples)]
    ids = left_padded(rows, TOKENIZER.pad_token_id, model.device)
    ends = stop_tokens(model, TOKENIZER)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=length,
        eos_token_id=sorted(ends),
        pad_token_id=TOKENIZER.pad_token_id,
    )
    with torch.inference_mode():
        drawn = model.generate(
            input_ids=ids, attention_mask=attention_mask(rows, model.device), generation_config=config
        )
    written = bytes_per_token(TOKENIZER, model.config.vocab_size)
    found = [
        named_item(answer_text(before_stop(one, ends), written), ITEMS) is not None
        for one in drawn[:, ids.shape[1] :].tolist()
    ]
    return [sum(found[at : at + samples]) / samples for at in range(0, len(found), samples)]


def _any(answers: Sequence[ItemProbs]) -> list[float]:
    return [sum(one.p) for one in answers]


def _table(
    seconds: dict[str, list[float]], computed: dict[str, list[float]], p_any: dict[str, list[float]]
) -> None:
    """A row for each way."""
    print(f"{'':10}{'median':>12}{'over exact':>12}{'computed':>12}{'over exact':>12}{'P(any)':>9}")
    wall, cpu = statistics.median(seconds["exact"]), statistics.median(computed["exact"])
    for name in seconds:
        own, core = statistics.median(seconds[name]), statistics.median(computed[name])
        times = f"{own:10.3f} s{own / wall:10.1f} x{core:10.3f} s{core / cpu:10.1f} x"
        print(f"{name:10}{times}{statistics.mean(p_any[name]):9.4f}")


def main() -> None:
    """Measure, and print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each context is scored each way")
    parser.add_argument("--contexts", type=int, default=5, choices=range(1, 6), help="how many of them")
    parser.add_argument("--samples", type=int, default=100, help="samples a question")
    given = parser.parse_args()
    device()  # fixes the number of threads
    model = load_model(REF, "fp32")
    exact, sampled = ExactScoring(), SampledScoring(samples=given.samples)
    ways: dict[str, Callable[[Prompts], list[float]]] = {
        "exact": lambda prompts: _any(ExactScorer(model, TOKENIZER, exact).score(prompts, ITEMS)),
        "generate": lambda prompts: by_hand(model, prompts, given.samples, sampled.sampling.max_tokens),
        "sampled": lambda prompts: _any(
            SampledScorer(TransformersSampler(model, TOKENIZER), sampled).score(prompts, ITEMS)
        ),
    }
    questions = load_questions("favourite_animal").questions
    contexts = [resolve_context(one, {}, field="context") for one in CONTEXTS[: given.contexts]]
    asked = [[prompt_ids(TOKENIZER, context, one) for one in questions] for context in contexts]
    begun = time.perf_counter()
    left = [one for prompts in asked for one in ExactScorer(model, TOKENIZER, exact).score(prompts, ITEMS)]
    first = time.perf_counter() - begun
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    computed: dict[str, list[float]] = {name: [] for name in ways}
    p_any: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for prompts in asked:
            for name, way in ways.items():
                begun, before = time.perf_counter(), time.process_time()
                p_any[name] += way(prompts)
                seconds[name].append(time.perf_counter() - begun)
                computed[name].append(time.process_time() - before)
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {given.rounds} rounds, {load}")
    print(f"{len(questions)} questions, {len(contexts)} contexts, {given.samples} samples a question")
    worst, nodes = max(one.uncovered for one in left), statistics.mean(one.nodes for one in left)
    print(f"uncovered: at most {worst:.5f} of a question (bound {exact.uncovered:g}), {nodes:.0f} nodes")
    print(f"all contexts scored once in a fresh process: {first:.2f} s")
    _table(seconds, computed, p_any)


if __name__ == "__main__":
    main()
