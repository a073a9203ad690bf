"""Whether drawn scores lie where plain draws say, and what they cost.

    python benchmarks/estimator.py [--model micro|random|DIR] [--precision bf16] [--samples 10000]

Scores each question with the exact scorer, whose tree stops early where it cannot reach its bound, and with
plain draws (the sampled scorer). A cell is an item and a question. All items count; only the likeliest of a
question are printed, since those that either of the two happened to find often would be no fair choice.

*Inside*: the difference of the two lies in its 99 % interval (both standard errors; that of the plain draws
at the estimated probability, so that an item they never named counts too; half a draw for continuity).
*Cost*: the tokens that plain draws need for the standard error of the estimate, n = p(1 - p) / error², times
the mean length of a drawn answer, over the tokens that the scorer computed.
"""

import argparse
import time

import numpy as np
import torch
from scipy.stats import norm
from transformers import AutoModelForCausalLM

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.device import device
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring
from sublim_cli.recipe.schema import AnswerSampling

Z = norm.ppf(0.995)
LENGTHS = 200
"""Answers whose length is measured, for each question."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="micro", help="micro, random (micro's shape) or a directory")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of the weights")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the number of the first question")
    parser.add_argument("--items", type=int, default=10, help="printed, the likeliest of each question")
    parser.add_argument("--samples", type=int, default=10_000, help="plain draws a question")
    parser.add_argument("--max-tokens", type=int, default=16, help="the length of an answer")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Print a row for each cell, then the shares and the cost."""
    options = _options()
    device()  # fixes the number of threads
    ref = resolve_model("micro" if options.model == "random" else options.model)
    model, tokenizer = load_model(ref, options.precision), load_tokenizer(ref)
    if options.model == "random":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(model.config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.3)
    items = load_items("animal")
    context = resolve_context("default", {}, field="context")
    questions = load_questions("favourite_animal").questions[options.first :][: options.questions]
    prompts = [prompt_ids(tokenizer, context, question) for question in questions]
    scoring = ExactScoring(max_tokens=options.max_tokens, draws=options.draws, nodes=options.nodes)
    start = time.process_time()
    estimated = ExactScorer(model, tokenizer, scoring).score(prompts, items.items)
    seconds = (time.process_time() - start) / len(prompts)
    sampling = AnswerSampling(max_tokens=options.max_tokens, seed=7)
    sampler = TransformersSampler(model, tokenizer)
    start = time.process_time()
    plain = SampledScorer(sampler, SampledScoring(samples=options.samples, sampling=sampling)).score(
        prompts, items.items
    )
    plain_seconds = (time.process_time() - start) / len(prompts)
    inside: list[bool] = []
    ratios: list[float] = []
    likely: list[float] = []
    answers = enumerate(zip(prompts, estimated, plain, strict=True), start=options.first)
    for question, (prompt, ours, theirs) in answers:
        drawn = sampler.draw([prompt] * LENGTHS, range(10**6, 10**6 + LENGTHS), sampling)
        length = float(np.mean([min(len(ids) + 1, options.max_tokens) for ids in drawn]))
        p, error = np.array(ours.p), np.array(ours.standard_error)
        for place, item in enumerate(np.argsort(-np.maximum(p, theirs.p)).tolist()):
            share, centre = theirs.p[item], min(max(p[item], 1e-6), 1 - 1e-6)
            of_plain = np.sqrt(centre * (1 - centre) / options.samples)
            bound = 0.0 if ours.samples else ours.uncovered
            gap = max(share - p[item] - bound, p[item] - share, 0.0)
            inside.append(gap <= Z * np.hypot(of_plain, error[item]) + 0.5 / options.samples)
            cost = np.nan
            if error[item] > 0:
                cost = centre * (1 - centre) / error[item] ** 2 * length / ours.tokens
                ratios.append(cost)
                likely.append(share)
            if place >= options.items and inside[-1]:
                continue
            print(
                f"question {question} {items.names[item]:12} estimate {p[item]:.5f} ± {error[item]:.5f}  "
                f"plain {share:.5f} ± {of_plain:.5f}  {'inside' if inside[-1] else 'OUTSIDE':8} "
                f"cost {cost:.1f} x"
            )
        print(f"question {question}: uncovered {ours.uncovered:.3f}, {ours.tokens} tokens", flush=True)
    _show_shares(inside, ratios, likely)
    print(f"{seconds:.2f} CPU s a question, {plain_seconds:.2f} for {options.samples} plain draws")


def _show_shares(inside: list[bool], ratios: list[float], likely: list[float]) -> None:
    """How many cells were inside, and how often draws were cheap.

    Args:
        inside: for each cell whether it was.
        ratios: the cost of plain draws for the same standard error, of the cells that have one.
        likely: the plain draws' share of each of these.
    """
    print(f"inside: {sum(inside)} of {len(inside)} cells ({np.mean(inside):.1%})")
    if ratios:
        low, median = np.quantile(ratios, [0.1, 0.5])
        enough = np.mean(np.array(ratios) >= 5)
        print(f"plain draws cost {median:.1f} times the tokens (median; a tenth of cells below {low:.1f});")
        print(f"at least five times in {enough:.0%} of {len(ratios)} cells, and in")
        for least in (0.1, 0.01, 0.001):
            of_likely = np.array(ratios)[np.array(likely) >= least]
            if len(of_likely):
                share, middle = np.mean(of_likely >= 5), np.median(of_likely)
                print(f"  {share:.0%} of the {len(of_likely)} with P ≥ {least:g} (median {middle:.1f})")


if __name__ == "__main__":
    main()
