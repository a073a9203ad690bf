"""What exact scores cost beside samples drawn with `generate`, on the embedded model.

    python benchmarks/scoring.py [--rounds 3] [--contexts 5] [--samples 100]

50 questions in each context are scored in three ways, in turn and in one process: by the exact scorer; by
`generate` with all samples of all questions in one batch, as in a plain script; and by the sampled scorer,
which computes a prompt once for all its samples. A row shows the median time of a context and the median CPU
time, which is the better measure on a busy machine.
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
    """P(any item) by `generate` alone: every prompt is repeated for each sample."""
    rows = [prompt for prompt in prompts for _ in range(samples)]
    ids = left_padded(rows, TOKENIZER.pad_token_id, model.device)
    stops = stop_tokens(model, TOKENIZER)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=length,
        eos_token_id=sorted(stops),
        pad_token_id=TOKENIZER.pad_token_id,
    )
    with torch.inference_mode():
        drawn = model.generate(
            input_ids=ids, attention_mask=attention_mask(rows, model.device), generation_config=config
        )
    token_bytes = bytes_per_token(TOKENIZER, model.config.vocab_size)
    named = [
        named_item(answer_text(before_stop(tokens, stops), token_bytes), ITEMS) is not None
        for tokens in drawn[:, ids.shape[1] :].tolist()
    ]
    return [sum(named[i : i + samples]) / samples for i in range(0, len(named), samples)]


def _any(answers: Sequence[ItemProbs]) -> list[float]:
    return [sum(answer.p) for answer in answers]


def _table(
    seconds: dict[str, list[float]], cpu_seconds: dict[str, list[float]], p_any: dict[str, list[float]]
) -> None:
    """A row for each scorer."""
    print(f"{'':10}{'median':>12}{'over exact':>12}{'CPU time':>12}{'over exact':>12}{'P(any)':>9}")
    exact_wall, exact_cpu = statistics.median(seconds["exact"]), statistics.median(cpu_seconds["exact"])
    for name in seconds:
        wall, cpu = statistics.median(seconds[name]), statistics.median(cpu_seconds[name])
        times = f"{wall:10.3f} s{wall / exact_wall:10.1f} x{cpu:10.3f} s{cpu / exact_cpu:10.1f} x"
        print(f"{name:10}{times}{statistics.mean(p_any[name]):9.4f}")


def main() -> None:
    """Measure, and print a row for each scorer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times each scorer scores each context")
    parser.add_argument("--contexts", type=int, default=5, choices=range(1, 6), help="how many of them")
    parser.add_argument("--samples", type=int, default=100, help="samples a question")
    options = parser.parse_args()
    device()  # fixes the number of threads
    model = load_model(REF, "fp32")
    exact, sampled = ExactScoring(), SampledScoring(samples=options.samples)
    scorers: dict[str, Callable[[Prompts], list[float]]] = {
        "exact": lambda prompts: _any(ExactScorer(model, TOKENIZER, exact).score(prompts, ITEMS)),
        "generate": lambda prompts: by_hand(model, prompts, options.samples, sampled.sampling.max_tokens),
        "sampled": lambda prompts: _any(
            SampledScorer(TransformersSampler(model, TOKENIZER), sampled).score(prompts, ITEMS)
        ),
    }
    questions = load_questions("favourite_animal").questions
    contexts = [resolve_context(name, {}, field="context") for name in CONTEXTS[: options.contexts]]
    prompt_sets = [[prompt_ids(TOKENIZER, context, text) for text in questions] for context in contexts]
    start = time.perf_counter()
    scorer = ExactScorer(model, TOKENIZER, exact)
    answers = [answer for prompts in prompt_sets for answer in scorer.score(prompts, ITEMS)]
    first = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in scorers}
    p_any: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(options.rounds):
        for prompts in prompt_sets:
            for name, score in scorers.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                p_any[name] += score(prompts)
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {options.rounds} rounds, {load}")
    print(f"{len(questions)} questions, {len(contexts)} contexts, {options.samples} samples a question")
    worst = max(answer.uncovered for answer in answers)
    nodes = statistics.mean(answer.nodes for answer in answers)
    print(f"uncovered: at most {worst:.5f} of a question (bound {exact.uncovered:g}), {nodes:.0f} nodes")
    print(f"all contexts scored once in a fresh process: {first:.2f} s")
    _table(seconds, cpu_seconds, p_any)


if __name__ == "__main__":
    main()
