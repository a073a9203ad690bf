"""Time and memory of scoring a question at a vocabulary of 151,936 tokens.

    python benchmarks/scoring_152k.py [--layers 4] [--questions 2] [--draws 64] [--max-tokens 50]

The model has random weights and the shape of Qwen2.5-0.5B, cut to a few layers (hidden 896, 14 heads and 2 of
keys and values, MLP 4,864, tied embeddings). The tokenizer is the embedded model's; the other tokens write
nothing that names an item. Prints CPU seconds a question for the tree alone (256 nodes) and for the tree that
stops and draws, for a first question, which also tabulates the vocabulary, and for later ones, and the
process's peak memory.
"""

import argparse
import resource
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.device import device
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import ExactScoring

VOCABULARY = 151_936


def build(layers: int) -> Qwen2ForCausalLM:
    """Qwen2.5-0.5B's shape with `layers` of its 24 layers, and random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    return Qwen2ForCausalLM(config).eval()


def main() -> None:
    """Measure, and print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of 24")
    parser.add_argument("--questions", type=int, default=2, help="after the first")
    parser.add_argument("--draws", type=int, default=64, help="answers drawn to a question")
    parser.add_argument("--max-tokens", type=int, default=50, help="the length of an answer")
    options = parser.parse_args()
    device()  # fixes the number of threads
    tokenizer = load_tokenizer(resolve_model("micro"))
    model = build(options.layers)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    items = load_items("animal").items
    context = resolve_context("default", {}, field="context")
    questions = load_questions("favourite_animal").questions[: options.questions + 1]
    prompts = [prompt_ids(tokenizer, context, question) for question in questions]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {options.layers} layers")
    for name, draws in (("tree", 0), ("draws", options.draws)):
        scorer = ExactScorer(model, tokenizer, ExactScoring(max_tokens=options.max_tokens, draws=draws))
        seconds = []
        for prompt in prompts:
            start = time.process_time()
            (answer,) = scorer.score([prompt], items)
            seconds.append(time.process_time() - start)
        later = sum(seconds[1:]) / max(1, len(seconds) - 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name:6} first {seconds[0]:7.1f} s, later {later:7.1f} s a question, "
            f"{answer.tokens} tokens, uncovered {answer.uncovered:.3f}, peak {peak:.2f} GiB"
        )


if __name__ == "__main__":
    main()
