"""On a GPU: vLLM draws what transformers computes, as its own checks find. Needs the `vllm` extra."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends import parity, vllm_server
from sublim_cli.backends.parity import ModelSource, checked_sampler
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs `pip install 'sublim[vllm]'`"),
]

DRAWN = {
    "generate.engine": "vllm",
    "generate.precision": "bf16",
    "eval.engine": "vllm",
    "eval.precision": "bf16",
    "eval.scorer": "sampled",
    "eval.samples": 200,
}


@pytest.fixture(autouse=True)
def no_served_model():
    yield
    vllm_server.stop_engine()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "student",
    [{"train.rank": 3}, {"train.rank": 8}, {"train.rank": 64}, {"train.method": "full"}],
    ids=lambda student: " ".join(map(str, student.values())),
)
def test_a_recipe_runs_through_vllm_and_agrees_with_the_exact_scorer(student, small, store):
    drawn = run(small(**DRAWN, **student), store=store)
    for artifact in (drawn, materialise(chain(small(**DRAWN, **student)).base, store)):
        facts = read_record(artifact.path)["provenance"]
        assert facts["parity"]["shares"]["worst"]["chance"] > 0
        assert abs(facts["parity"]["law"]["z"]) < parity.Z
    # Scored exactly on the same weights: the artifacts up to the student are the same.
    same = {key: value for key, value in DRAWN.items() if key not in ("eval.engine", "eval.samples")}
    exact = run(small(**{**same, "eval.scorer": "exact"}, **student), store=store)
    both = [pd.read_parquet(artifact.path / "scores.parquet") for artifact in (drawn, exact)]
    means = [scores.groupby(["context", "item"]).p.mean().to_numpy() for scores in both]
    draws = 200 * both[0].question.nunique()
    spread = np.sqrt(means[1] * (1 - means[1]) / draws)
    assert (np.abs(means[0] - means[1]) < 4.5 * spread + 0.01).all()


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_rows_follow_the_law_of_a_model_of_qwen_s_build(fields, qwen_shaped: Path):
    ref = resolve_model(str(qwen_shaped))
    tokenizer = load_tokenizer(ref)
    context = resolve_context("default", {}, field="generate.system_prompt")
    prompts = [prompt_ids(tokenizer, context, stream_prompt(PromptsSection(), row)) for row in range(64)]
    sampling = SamplingSection(max_tokens=40, seed=1, **fields)
    with checked_sampler(ModelSource(ref, "bf16"), prompts, sampling) as (sampler, facts):
        together = sampler.draw(prompts, range(64), sampling)
        others = sampler.draw(prompts, range(64, 128), sampling)
    assert abs(facts["law"]["z"]) < parity.Z
    assert sum(a == b for a, b in zip(together, others, strict=True)) < 8
