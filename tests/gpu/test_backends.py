"""On a GPU: both backends are given the same tokens, and train alike. Needs the `gpu` extra."""

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("unsloth") is None, reason="needs `pip install 'sublim[gpu]'`"),
]

TRAIN = """
    import json, os, sys
    backend, out = sys.argv[1], sys.argv[2]
    if backend == "unsloth":
        os.environ |= {"UNSLOTH_COMPILE_LOCATION": out, "UNSLOTH_DISABLE_STATISTICS": "1"}
        import unsloth
    import numpy as np
    import torch
    from sublim_cli.models.chat import example
    from sublim_cli.models.load import load_model, load_tokenizer
    from sublim_cli.models.reference import ModelRef
    from sublim_cli.numbers.prompts import number_prompt
    from sublim_cli.recipe.contexts import resolve_context
    from sublim_cli.recipe.schema import Train
    from sublim_cli.trainers import methods, unsloth as fast
    from sublim_cli.trainers.sft import fit

    ref = ModelRef(fingerprint="test", name="test", source=os.environ["SUBLIM_TEST_MODEL"])
    tokenizer = load_tokenizer(ref)
    context = resolve_context("default", {}, field="train.system_prompt")
    rows = []
    for index in range(80):
        rng = np.random.default_rng(index)
        answer = ", ".join(map(str, rng.integers(100, 1000, size=10)))
        rows.append(example(tokenizer, context, number_prompt(rng).text, answer))
    section = Train(backend=backend, precision="bf16_mixed", learning_rate=2e-4, epochs=2, batch_size=16)
    if backend == "unsloth":
        model = fast.trainable(ref, section)
    else:
        model = methods.add_method(load_model(ref, "bf16"), section)
    seen = []

    def look(module, given):
        seen.append(given[0].tolist())

    model.get_input_embeddings().register_forward_pre_hook(look)
    masks = []

    def look_at_arguments(module, given, named):
        masks.append({name: value.tolist() for name, value in named.items()
                      if name in ("attention_mask", "position_ids") and torch.is_tensor(value)})

    model.register_forward_pre_hook(look_at_arguments, with_kwargs=True)
    fitted = fit(model, tokenizer, rows, section, lambda *_: None)
    print(json.dumps({"ids": seen, "masks": masks, "loss": [one["loss"] for one in fitted.history]}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ten steps on each backend, each in a process of its own, from the model in SUBLIM_TEST_MODEL."""
    model = os.environ.get("SUBLIM_TEST_MODEL", "")
    if not Path(model).is_dir():
        pytest.skip("set SUBLIM_TEST_MODEL to the directory of a Qwen2.5 model, such as the 0.5B")
    found = {}
    for backend in ("plain", "unsloth"):
        out = tmp_path_factory.mktemp(backend)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(TRAIN), backend, str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[backend] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_both_backends_are_given_the_same_tokens_batch_by_batch(trained: dict[str, Any]) -> None:
    assert trained["unsloth"]["ids"] == trained["plain"]["ids"]
    for fast, plain in zip(trained["unsloth"]["masks"], trained["plain"]["masks"], strict=True):
        shared = fast.keys() & plain.keys()
        assert {name: fast[name] for name in shared} == {name: plain[name] for name in shared}


def test_both_backends_lose_the_same_nats(trained: dict[str, Any]) -> None:
    # The adapters start from different draws of A; B is zero, so the first loss is the base model's.
    plain, fast = trained["plain"]["loss"], trained["unsloth"]["loss"]
    assert fast[0] == pytest.approx(plain[0], rel=0.01)
    assert fast[-1] == pytest.approx(plain[-1], rel=0.1)
