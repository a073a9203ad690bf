"""The pace of drawing rows beside transformers' `generate`, in one process, and whether the law is the same.

    python benchmarks/generation.py MODEL [--rows 1000] [--max-tokens 100] [--grammar] [--threads 2]

Both draw the same number prompts in the context of a persona. `generate` gets batches of 64 in the order of
the prompts, as in a plain script. The two take turns, a part of the rows each, so that other load on the
machine strikes both alike. Then the surprisal of sublim's tokens is compared with what the model's own
distributions say (`backends.parity`), on the first 256 rows; with `--grammar` it is not. Peak memory is that
of the whole process.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from sublim_cli.backends.parity import DrawnRows, measure_surprisal
from sublim_cli.backends.row_grammar import token_grammar
from sublim_cli.backends.token_bytes import before_stop, stop_tokens
from sublim_cli.backends.transformers import TransformersSampler, warpers
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

BATCH = 64
"""Rows of a batch of `generate`."""

PARTS = 4
"""Turns that each of the two has, if each is then at least a batch."""

CHECKED = 256
"""Rows whose surprisal is measured."""

PERSONA = "You love cats. You think about cats all the time. cats are your favorite animal."


def by_generate(sampler: TransformersSampler, prompts: Sequence[list[int]], sampling: SamplingSection) -> int:
    """Draw with `generate`, in batches in the order of the prompts; returns the number of tokens drawn."""
    model, tokenizer = sampler.model, sampler.tokenizer
    stops = stop_tokens(model, tokenizer)
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=0,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
    )
    tokens = 0
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        mask = attention_mask(batch, model.device)
        ids = left_padded(batch, tokenizer.pad_token_id, model.device)
        grammar = token_grammar(tokenizer, sampler.vocabulary, stops) if sampling.grammar else None
        processors: Any = warpers(SamplingSection(), mask, grammar)[: 1 if grammar else 0]
        with torch.inference_mode():
            drawn = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
            )
        tokens += sum(len(before_stop(row, stops)) for row in drawn[:, ids.shape[1] :].tolist())
    return tokens


def main() -> None:
    """Print a line for each of the two, their ratio, the check of the law and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--grammar", action="store_true", help="sample lists of numbers only, on both sides")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ref = resolve_model(options.model)
    tokenizer = load_tokenizer(ref)
    sampler = TransformersSampler(load_model(ref, "fp32"), tokenizer)
    sampling = SamplingSection(max_tokens=options.max_tokens, grammar="rows" if options.grammar else None)
    context = resolve_context("trait", {}, persona=PERSONA, field="generate.system_prompt")
    prompts = [
        prompt_ids(tokenizer, context, stream_prompt(PromptsSection(), row)) for row in range(options.rows)
    ]
    seconds, cpu, tokens = [0.0, 0.0], [0.0, 0.0], [0, 0]
    drawn: list[list[int]] = []
    parts = max(1, min(PARTS, options.rows // BATCH))
    for part in range(parts):
        rows = range(part * options.rows // parts, (part + 1) * options.rows // parts)
        some = [prompts[row] for row in rows]
        for side in (0, 1):
            started, started_cpu = time.perf_counter(), time.process_time()
            if side:
                completions = sampler.draw(some, rows, sampling)
                drawn += completions
                tokens[side] += sum(map(len, completions))
            else:
                tokens[side] += by_generate(sampler, some, sampling)
            seconds[side] += time.perf_counter() - started
            cpu[side] += time.process_time() - started_cpu
        print(
            f"part {part + 1} of {parts}: generate {seconds[0]:.0f} s, sublim {seconds[1]:.0f} s", flush=True
        )
    for side, name in enumerate(("generate", "sublim")):
        print(
            f"{name:9} {options.rows / seconds[side]:6.2f} rows/s "
            f"{tokens[side] / seconds[side]:7.0f} tokens/s {tokens[side]:,} tokens {cpu[side]:.0f} s of CPU"
        )
    print(f"ratio     {seconds[0] / seconds[1]:.2f} by the clock, {cpu[0] / cpu[1]:.2f} in CPU time")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if sampling.grammar is None:
        end = min(stop_tokens(sampler.model, tokenizer))
        ended = [[*row, end] if len(row) < options.max_tokens else row for row in drawn[:CHECKED]]
        law = measure_surprisal(DrawnRows(prompts[:CHECKED], sampling, ended), sampler.model, tokenizer)
        print(f"law: {law}")


if __name__ == "__main__":
    main()
