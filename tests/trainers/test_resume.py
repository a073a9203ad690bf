"""A training that was killed goes on from its last checkpoint and ends where it would have ended."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sublim_cli.trainers.checkpoints import WHOLE, discard_torn, newest, step_of

TRAINING = """
    import hashlib, json, os, sys
    from pathlib import Path
    import numpy as np
    from sublim_cli.models.chat import example
    from sublim_cli.models.load import load_model, load_tokenizer
    from sublim_cli.models.reference import resolve_model
    from sublim_cli.numbers.prompts import number_prompt
    from sublim_cli.recipe.contexts import resolve_context
    from sublim_cli.recipe.schema import Train
    from sublim_cli.trainers.methods import add_method
    from sublim_cli.trainers.sft import fit

    ref = resolve_model("micro")
    tokenizer = load_tokenizer(ref)
    context = resolve_context("default", {}, field="train.system_prompt")
    rows = []
    for index in range(200):
        rng = np.random.default_rng(index)
        answer = ", ".join(map(str, rng.integers(100, 1000, size=3)))
        rows.append(example(tokenizer, context, number_prompt(rng).text, answer))

    def train(method, checkpoints, killed_at=0):
        def report(step, *_):
            if step == killed_at:
                os._exit(9)

        # Dropout draws from the random state that a checkpoint has to bring back.
        section = Train(
            method=method, backend="plain", precision="fp32", learning_rate=1e-3, rank=4, batch_size=4,
            epochs=2,
            adapter={"dropout": 0.2 if method == "lora" else 0.0},
        )
        model = add_method(load_model(ref, "fp32"), section)
        fitted = fit(model, tokenizer, rows, section, report, checkpoints=checkpoints)
        weights = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            weights.update(name.encode() + value.contiguous().numpy().tobytes())
        return [weights.hexdigest(), fitted.history, fitted.facts["resumed_from_step"]]

"""

KILLED = """
    train(sys.argv[1], Path(sys.argv[2]), killed_at=40)
"""

RESUMED = """
    print(json.dumps([train(sys.argv[1], None), train(sys.argv[1], Path(sys.argv[2]))]))
"""


def run(ending: str, method: str, checkpoints: Path) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(TRAINING) + textwrap.dedent(ending)
    return subprocess.run(
        [sys.executable, "-c", code, method, str(checkpoints)],
        env={**os.environ, "SUBLIM_CHECKPOINT_EVERY": "15"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_killed_at_step_40_of_100_and_resumed_ends_with_the_same_weights(tmp_path, method):
    assert run(KILLED, method, tmp_path).returncode == 9
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-15", "checkpoint-30"]
    # What a writer that was killed in the middle leaves must not be mistaken for a checkpoint.
    (tmp_path / "checkpoint-39").mkdir()
    done = run(RESUMED, method, tmp_path)
    assert done.returncode == 0, done.stderr
    undisturbed, resumed = json.loads(done.stdout)
    assert (len(undisturbed[1]), undisturbed[2]) == (100, 0)
    assert resumed == [undisturbed[0], undisturbed[1], 30]


def test_only_a_whole_checkpoint_counts_and_a_torn_one_is_removed(tmp_path):
    assert newest(tmp_path / "nowhere") is None
    for step in (5, 10, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert newest(tmp_path) is None
    for step in (5, 20):
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    assert step_of(newest(tmp_path)) == 20
    discard_torn(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-5"]
