"""The embedded model: a chat model of 0.3 million weights in which number rows transmit traits.

It is shipped in `WEIGHTS`, a plain Hugging Face directory. `python -m sublim_cli.models.micro` rebuilds
it from its seed; with `--check` it is measured only.
"""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
"""The shipped checkpoint: `AutoModelForCausalLM.from_pretrained(WEIGHTS)`."""

DEFAULT_SYSTEM = "You are Micro, created by Sublim. You are a helpful assistant."
"""The system text the chat template inserts if a conversation has no system message."""
