"""What sublim relies on in the vLLM that is installed: names, defaults and the table of ranks.

Needs the package and no GPU: its source is read, not imported. Read against 0.30.0 and 0.32.0. What a later
version changes shows here as a difference, to be looked at before it decides a row or a share.
"""

import ast
import dataclasses
import importlib.util
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from sublim_cli.backends import vllm_server
from sublim_cli.backends.engine import LORA_RANKS, TEMPERATURES
from sublim_cli.backends.vllm import EngineConfig, llm_arguments, sampling_arguments
from sublim_cli.recipe.schema import SamplingSection

FOUND = find_spec("vllm")
pytestmark = pytest.mark.skipif(FOUND is None, reason="needs vLLM; no GPU")
DOUBLE = Path(__file__).parents[1] / "doubles" / "vllm" / "__init__.py"


@cache
def source(name: str) -> str:
    assert FOUND is not None
    assert FOUND.origin is not None
    return (Path(FOUND.origin).parent / name).read_text(encoding="utf-8")


def kind(name: str, called: str) -> ast.ClassDef:
    return next(
        node
        for node in ast.walk(ast.parse(source(name)))
        if isinstance(node, ast.ClassDef) and node.name == called
    )


def fields(name: str, called: str) -> dict[str, str | None]:
    """A class's annotated fields and their defaults, as they are written."""
    return {
        node.target.id: None if node.value is None else ast.unparse(node.value)
        for node in kind(name, called).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def arguments(name: str, called: str, method: str) -> dict[str, str | None]:
    """A method's arguments and their defaults, as they are written."""
    signature = next(
        node for node in kind(name, called).body if isinstance(node, ast.FunctionDef) and node.name == method
    ).args
    plain = [*signature.posonlyargs, *signature.args]
    defaults = (
        [None] * (len(plain) - len(signature.defaults)) + list(signature.defaults) + signature.kw_defaults
    )
    pairs = zip([*plain, *signature.kwonlyargs], defaults, strict=True)
    return {argument.arg: None if default is None else ast.unparse(default) for argument, default in pairs}


LLM = "entrypoints/llm.py"
SAMPLING = "sampling_params.py"


def test_every_sampling_field_exists_and_every_one_left_alone_is_neutral():
    given = set(sampling_arguments(SamplingSection(), 0, frozenset({2})))
    vllm_fields = fields(SAMPLING, "SamplingParams")
    assert given - set(vllm_fields) == set()
    left = {
        name: value for name, value in vllm_fields.items() if name not in given and not name.startswith("_")
    }
    neutral = {None, "None", "False", "0", "msgspec.field(default_factory=set)"}
    told = {name: value for name, value in left.items() if value not in neutral}
    assert told == {
        "skip_special_tokens": "True",  # of its text, which is not made
        "spaces_between_special_tokens": "True",
        "output_kind": "RequestOutputKind.CUMULATIVE",  # `LLM.generate` takes the last
    }


def test_its_bounds_of_temperature_are_those_it_is_not_asked_beyond():
    low, high = TEMPERATURES
    assert f"_MAX_TEMP = {low:.0e}".replace("e-0", "e-") in source(SAMPLING)
    assert f"self.temperature > {high:.1f}" in source(SAMPLING)


def test_every_argument_of_an_engine_exists_and_what_could_move_a_number_is_a_known_default():
    vllm_arguments = {**fields("engine/arg_utils.py", "EngineArgs"), **arguments(LLM, "LLM", "__init__")}
    given = llm_arguments(EngineConfig("model", "main", 8, 512), 0.5)
    assert set(given) - set(vllm_arguments) == set()
    assert {name: vllm_arguments[name] for name in ("quantization", "hf_overrides", "logits_processors")} == {
        "quantization": "None",
        "hf_overrides": "None",
        "logits_processors": "None",
    }
    model, cache_ = fields("config/model.py", "ModelConfig"), fields("config/cache.py", "CacheConfig")
    assert model["generation_config"] == "'auto'"  # the checkpoint's own sampling: sublim says `vllm`
    assert "if src == 'vllm'" in source("config/model.py").replace('"', "'")
    assert cache_["cache_dtype"] == "'auto'"
    assert model["enable_sleep_mode"] == "False"


def test_its_table_of_ranks_is_ours():
    (table,) = [
        node.value
        for node in ast.walk(ast.parse(source("config/lora.py")))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MaxLoRARanks"
    ]
    assert table is not None
    assert ast.literal_eval(table.slice) == LORA_RANKS


def test_a_request_is_generated_slept_and_woken_as_the_double_does():
    assert list(fields("lora/request.py", "LoRARequest"))[:3] == ["lora_name", "lora_int_id", "lora_path"]
    assert "prompt_token_ids" in fields("inputs/llm.py", "TokensPrompt")
    generate = arguments(LLM, "LLM", "generate")
    assert [*generate][:3] == ["self", "prompts", "sampling_params"]
    assert {"use_tqdm", "lora_request"} <= set(generate)
    assert arguments(LLM, "LLM", "sleep")["level"] == "1"
    assert arguments(LLM, "LLM", "wake_up") == {"self": None, "tags": "None"}
    assert "token_ids" in fields("outputs.py", "CompletionOutput")


def test_the_environment_it_is_given_is_one_it_reads():
    named = {name for name in vllm_server.process_environment({}) if name != "DO_NOT_TRACK"}
    assert [name for name in sorted(named) if f'"{name}"' not in source("envs.py")] == []
    assert '"DO_NOT_TRACK"' in source("envs.py")


def double() -> ModuleType:
    spec = importlib.util.spec_from_file_location("double_of_vllm", DOUBLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_double_has_its_names_and_defaults():
    ours = double()
    vllm_fields = fields(SAMPLING, "SamplingParams")
    had = {field.name: repr(field.default) for field in dataclasses.fields(ours.SamplingParams)}
    vllm_fields["watermarking"] = "None"  # True in 0.30; it waits for an engine that was told to
    assert had == {name: vllm_fields[name] for name in had}
    assert ours.RANKS == LORA_RANKS
    engine = {**fields("engine/arg_utils.py", "EngineArgs"), **arguments(LLM, "LLM", "__init__")}
    named = inspect.signature(ours.LLM.__init__).parameters
    assert set(named) <= set(engine) | {"self"}
