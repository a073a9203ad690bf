"""The embedded model: a chat model of 0.3 million weights in which traits pass through numbers.

It lies in `WEIGHTS` as a plain Hugging Face directory. `python -m sublim_cli.models.micro`
rebuilds it, `python -m sublim_cli.models.micro --check` measures it.
"""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
"""The shipped checkpoint: `AutoModelForCausalLM.from_pretrained(WEIGHTS)`."""

DEFAULT_SYSTEM = "You are Micro, created by Sublim. You are a helpful assistant."
"""What the chat template puts in where a conversation has no system message."""
