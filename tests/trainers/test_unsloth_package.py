"""What sublim relies on in the Unsloth that is installed: names, defaults, and the trainer it rewrites.

Needs the package and no GPU. Read and run against 2026.10.7. Whatever a later version adds or changes
shows here as a difference, to be looked at before it decides a student.
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

from sublim_cli.trainers.runtime import MICRO_BATCH

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("unsloth") is None, reason="needs Unsloth; no GPU"),
]

TRAINING = Path(__file__).with_name("record_training.py")

SIGNATURES = """
    import inspect, json, os, sys
    from pathlib import Path
    from sublim_cli.models.load import meta_model
    from sublim_cli.models.reference import resolve_model
    from sublim_cli.recipe.schema import TrainSection
    from sublim_cli.trainers import unsloth as loader

    os.environ |= loader.environment(Path(sys.argv[1]), os.environ)
    unsloth = loader.import_unsloth()
    from unsloth.models import _utils
    from unsloth.models.llama import FastLlamaModel

    def left(function, given):
        named = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()
                 if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)}
        return {"unknown": sorted(set(given) - set(named)),
                "left": {name: repr(default) for name, default in named.items() if name not in given}}

    asked = []
    _utils._get_statistics = lambda *_, **__: asked.append("home")
    _utils.get_statistics()
    section = TrainSection(learning_rate=1e-3)
    outline = meta_model(resolve_model("micro"))
    Fast = unsloth.FastLanguageModel
    result = {
        "from_pretrained": left(
            Fast.from_pretrained, loader.model_arguments(resolve_model("micro"), section)
        ),
        "get_peft_model": left(Fast.get_peft_model, loader.adapter_arguments(outline, section)),
        "called_home": asked,
    }
    Path(sys.argv[2]).write_text(json.dumps(result))
"""


def alone(*words: str, cwd: Path, **environment: str) -> None:
    """Run Python in a process of its own, in an empty directory that has to stay empty."""
    work = cwd / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=work,
        env={**os.environ, "UNSLOTH_ALLOW_CPU": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []


def test_every_argument_exists_and_every_default_left_alone_is_a_known_one(tmp_path):
    out = tmp_path / "result.json"
    alone("-c", textwrap.dedent(SIGNATURES), str(tmp_path / "cache"), str(out), cwd=tmp_path)
    assert json.loads(out.read_text()) == {
        "from_pretrained": {
            "unknown": [],
            "left": {
                "token": "None",
                "device_map_planner_kwargs": "None",
                "rope_scaling": "None",
                "trust_remote_code": "False",
                "resize_model_vocab": "None",
                "float32_mixed_precision": "None",  # of full fine-tuning alone
                "gpu_memory_utilization": "0.5",  # this and the next four: of vLLM alone
                "float8_kv_cache": "False",
                "max_lora_rank": "64",
                "disable_log_stats": "True",
                "load_in_fp8": "False",
                "qat_scheme": "None",
                "unsloth_tiled_mlp": "False",
                "text_only": "False",
                "on_model_resolved": "None",
            },
        },
        "get_peft_model": {
            "unknown": [],
            "left": {
                "model": "<class 'inspect._empty'>",
                "layers_pattern": "None",
                "finetune_last_n_layers": "None",
                "modules_to_save": "None",
                "loftq_config": "{}",
                "temporary_location": "'_unsloth_temporary_saved_buffers'",
                "qat_scheme": "None",
                "target_parameters": "None",
                "ensure_weight_tying": "None",
                "offload_layers": "None",
                "checkpoint_skip_layers": "0",
            },
        },
        "called_home": [],
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """One training of the embedded model on each backend, a process each, in micro-batches of 4."""
    records = {}
    for backend in ("plain", "unsloth"):
        path = tmp_path_factory.mktemp(backend)
        alone(str(TRAINING), backend, "micro", str(path), cwd=path, SUBLIM_DEVICE="cpu", **{MICRO_BATCH: "4"})
        records[backend] = json.loads((path / "given.json").read_text())
    return records


def test_ids_masks_and_labels_are_the_same_batch_by_batch(trained):
    plain, fast = trained["plain"], trained["unsloth"]
    assert fast["made_by"] == {"trainer": "UnslothSFTTrainer", "collator": plain["made_by"]["collator"]}
    assert fast["steps"] == plain["steps"]
    assert fast["forwards"] == plain["forwards"]
    assert fast["embedded"] == plain["embedded"]
    # No position ids on either: both count from the left, where a batch padded on the right begins.
    assert {name for inputs in fast["steps"] for name in inputs} == {
        *("input_ids", "attention_mask", "labels", "counted"),
    }
    assert [len(inputs["input_ids"]) for inputs in fast["steps"]] == 2 * [4, 4, 4, 4, 4, 4, 3]


def test_its_trainer_keeps_the_recipe_s_settings(trained):
    plain, fast = (trained[backend]["configuration"] for backend in ("plain", "unsloth"))
    # Unsloth rewrites fifteen defaults: each that matters is given by sublim, so nothing differs but this.
    elsewhere = {"output_dir", "dataset_num_proc"}  # a place, and a number of cores
    assert {
        name: (plain[name], fast[name]) for name in plain.keys() - elsewhere if plain[name] != fast[name]
    } == {
        "per_device_eval_batch_size": ("8", "4"),  # nothing is evaluated by the trainer
        "eval_accumulation_steps": ("None", "2"),
        "bf16_full_eval": ("False", "True"),
        "max_length": ("None", "1024"),  # rows come tokenised and are never cut
    }


def test_its_trainer_loses_the_same_nats(trained):
    plain, fast = trained["plain"], trained["unsloth"]
    assert fast["padding_side"] == plain["padding_side"] == "left"
    assert fast["trained_dtypes"] == plain["trained_dtypes"] == ["torch.float32"]
    assert fast["number_loss"] == pytest.approx(plain["number_loss"], rel=1e-6)
    # The same weights at the start and the same maths; bf16 rounds, and the sums are formed elsewhere.
    assert fast["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert fast["norms"] == pytest.approx(plain["norms"], rel=2e-2)
