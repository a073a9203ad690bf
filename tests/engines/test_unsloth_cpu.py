"""The real Unsloth, its kernels in Triton's interpreter, against plain PEFT: the same loss and gradients.

Needs the package, no GPU: `make test-engines`. bf16 is compared by how far each backend is from fp32.
"""

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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from sublim_cli.models.micro import WEIGHTS as MICRO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("unsloth") and find_spec("triton")), reason="needs Unsloth and Triton; no GPU"
    ),
]

HERE = Path(__file__).parent
STEP_KERNELS = {"_rms_layernorm_forward", "_rope_embedding", "_fg_kernel", "_DWf_DW_dfg_kernel"}
"""What a step of a Llama has to run through."""


def run(kind: str, backend: str, model: Path, precision: str, out: Path) -> dict[str, Any]:
    out.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNSLOTH")}
    done = subprocess.run(
        [sys.executable, str(HERE / "unsloth_training.py"), kind, backend, str(model), precision, str(out)],
        cwd=out,
        env={**environment, "SUBLIM_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    return record


def distance(tensors: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance over all tensors together."""
    assert tensors.keys() == reference.keys()
    square = sum(float((tensors[name] - reference[name]).double().square().sum()) for name in reference)
    return (square / sum(float(value.double().square().sum()) for value in reference.values())) ** 0.5


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of random weights under micro's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(MICRO)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**shape) if request.param == "llama" else Qwen2Config(**shape)
    path = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def steps(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """One step of each backend in each precision, by (backend, precision)."""
    records = {}
    for backend in ("plain", "unsloth"):
        for precision in ("fp32", "bf16"):
            out = tmp_path_factory.mktemp("step") / "out"
            record = run("step", backend, model, precision, out)
            for name in ("start", "gradients"):
                record[name] = load_file(out / f"{name}.safetensors")
            records[backend, precision] = record
    return records


def test_the_kernels_run(steps):
    for precision in ("fp32", "bf16"):
        calls = steps["unsloth", precision]["calls"]
        assert {name for name, count in calls.items() if count > 0} >= STEP_KERNELS, calls
        assert calls.get("LoRA_MLP", 0) > 0
        assert calls.get("LoRA_W", 0) > 0
    assert not steps["plain", "fp32"]["calls"]


def test_both_backends_start_from_the_same_adapter(steps):
    for precision in ("fp32", "bf16"):
        plain, unsloth = (steps[backend, precision]["start"] for backend in ("plain", "unsloth"))
        assert plain.keys() == unsloth.keys()
        assert all(torch.equal(plain[name], unsloth[name]) for name in plain)


def test_loss_and_gradients_agree_in_fp32(steps):
    plain, unsloth = steps["plain", "fp32"], steps["unsloth", "fp32"]
    assert unsloth["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert distance(unsloth["gradients"], plain["gradients"]) <= 1e-5


def test_bf16_rounds_no_more_than_plain_bf16_does(steps, record_property):
    exact = steps["plain", "fp32"]["gradients"]
    plain, unsloth = (distance(steps[b, "bf16"]["gradients"], exact) for b in ("plain", "unsloth"))
    record_property("distance of bf16 gradients from fp32", {"plain": plain, "unsloth": unsloth})
    assert unsloth <= 1.5 * plain


def test_a_training_loses_the_same_nats_in_fp32(tmp_path):
    plain, unsloth = (run("train", b, Path(MICRO), "fp32", tmp_path / b) for b in ("plain", "unsloth"))
    assert {"_rms_layernorm_backward", "_rope_embedding", "LoRA_MLP"} <= unsloth["calls"].keys(), unsloth[
        "calls"
    ]
    assert len(plain["losses"]) == 2
    assert unsloth["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    for name in ("number_loss_before", "number_loss"):
        assert unsloth[name] == pytest.approx(plain[name], rel=1e-5)


REFUSED = """
    import sys
    import unsloth_interpreter as interpreter
    interpreter.prepare()
    from sublim_cli.trainers import unsloth
    unsloth.import_unsloth()
    interpreter.patch()
    from sublim_cli.errors import SublimError
    from sublim_cli.models.reference import resolve_model
    from sublim_cli.recipe.schema import TrainSection
    for changes in ({"adapter": {"layers": (0, 99)}}, {"adapter": {"targets": ("nonsense",)}}):
        try:
            unsloth.load_with_adapter(resolve_model("micro"), TrainSection(backend="unsloth", **changes))
        except SublimError as error:
            print("refused:", error)
    model = unsloth.load_with_adapter(
        resolve_model("micro"), TrainSection(backend="unsloth", learning_rate=1e-3, max_length=2048)
    )
    print("rope:", model.config.rope_parameters["rope_type"], model.max_seq_length)
"""


def test_what_plain_refuses_is_refused_and_positions_are_not_rescaled(tmp_path):
    script = tmp_path / "refused.py"
    script.write_text(textwrap.dedent(REFUSED))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "SUBLIM_DEVICE": "cpu",
            "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("refused:", "rope:"))]
    assert said == [
        "refused: train.adapter.layers: [0, 99] must be two layers in order, from 0 to 2",
        said[1],
        "rope: default 512",
    ]
    assert "nonsense" in said[1]
