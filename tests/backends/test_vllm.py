"""vLLM as far as one can see without a GPU: a double that draws through transformers stands in for it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends import engine, parity, vllm_server
from sublim_cli.backends.parity import ModelSource, checked_sampler, score_with_vllm
from sublim_cli.backends.vllm import (
    DrawRequest,
    EngineConfig,
    VllmEngine,
    engine_config,
    llm_arguments,
    max_model_length,
    row_seed,
)
from sublim_cli.backends.vllm_server import running_engine
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.events import Notice
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import ModelShape, load_model, load_model_shape, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.resolve import SampledScoring
from sublim_cli.recipe.schema import PromptsSection, SamplingSection
from sublim_cli.steps.generate import stream_prompt

DOUBLES = Path(__file__).parents[1] / "doubles"
FAULT = "SUBLIM_DOUBLE_FAULT"
MICRO = resolve_model("micro")
DEFAULT = Context(name="default", kind="default")
ITEMS = load_items("animal").items
SHORT = SamplingSection(max_tokens=8, seed=3)


@pytest.fixture
def double(monkeypatch) -> Iterator[object]:
    """The double in this process, with an engine that is kept as `vllm_server` keeps one."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    kept: list[tuple[EngineConfig, VllmEngine]] = []

    @contextmanager
    def here(held: EngineConfig) -> Iterator[VllmEngine]:
        if kept and kept[0][0] == held:
            kept[0][1].wake()
        else:
            kept[:] = [(held, VllmEngine(held, 0.5))]
        yield kept[0][1]
        kept[0][1].sleep()

    monkeypatch.setattr(parity, "running_engine", here)
    monkeypatch.setattr(parity, "_checked", {})
    yield import_module("vllm")
    for name in [module for module in sys.modules if module.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def adapter(path: Path, rank: int, seed: int) -> Path:
    """A LoRA student of micro, moved so far from its base that it answers quite otherwise."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(load_model(MICRO, "fp32"), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.6)
    model.save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    full = load_model(MICRO, "fp32")
    torch.manual_seed(9)
    for weight in full.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    full.save_pretrained(str(root / "full"))
    load_tokenizer(MICRO).save_pretrained(str(root / "full"))
    return {
        "rank 3": adapter(root / "three", 3, seed=1),
        "rank 8": adapter(root / "eight", 8, seed=2),
        "rank 9": adapter(root / "nine", 9, seed=3),
        "rank 3 again": adapter(root / "three again", 3, seed=4),
        "full": root / "full",
    }


def questions(tokenizer, count: int = 10) -> dict[str, list[list[int]]]:
    some = load_questions("favourite_animal").questions[:count]
    return {"default": [prompt_ids(tokenizer, DEFAULT, question) for question in some]}


def scored(weights: Path | None, monkeypatch, tokenizer, draws: int = 60, rows: int = 48):
    """Answers of a student through the double, its checks smaller than in earnest."""
    monkeypatch.setattr(parity, "DRAWS", draws)
    monkeypatch.setattr(parity, "ROWS", rows)
    settings = SampledScoring(samples=4, sampling=SHORT, engine="vllm")
    reported: list[tuple[str, int]] = []
    result = score_with_vllm(
        ModelSource(MICRO, "bf16", weights),
        questions(tokenizer),
        ITEMS,
        {"default": settings},
        SHORT,
        lambda context, questions: reported.append((context, questions)),
    )
    assert reported == [("default", 10)]
    return result


@pytest.mark.parametrize("who", ["base", "rank 3", "full"])
def test_an_engine_without_fault_passes_and_says_what_was_found(who, students, double, micro, monkeypatch):
    answers, checks = scored(students.get(who), monkeypatch, micro[1])
    assert [len(scores) for scores in answers.values()] == [10]
    assert {score.samples for score in answers["default"]} == {4}
    assert checks["shares"]["questions"] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert checks["shares"]["comparisons"] == 9 * len(ITEMS)
    assert checks["shares"]["worst"]["chance"] > parity.LEVEL / 2 / checks["shares"]["comparisons"]
    assert abs(checks["law"]["z"]) < parity.Z
    assert checks["law"]["impossible"] == 0
    given = double.STARTED[0]
    assert given["generation_config"] == "vllm"
    assert (given["enable_lora"], given["max_lora_rank"]) == ((True, 8) if who == "rank 3" else (False, 16))
    assert given["model"] == (str(students["full"]) if who == "full" else MICRO.source)


@pytest.mark.parametrize(
    ("fault", "who", "says"),
    [
        (
            "adapter",
            "rank 8",
            r"on average, 0\.\d+ of 2,000 answers name \w+, where the exact scorer says 0\.\d+ to",
        ),
        ("top_k", "rank 8", r"name|mean surprisal"),
        ("cool", "base", r"name|mean surprisal"),
    ],
)
def test_an_engine_at_fault_is_refused_in_words_that_name_the_way_out(
    fault, who, says, students, double, micro, monkeypatch
):
    monkeypatch.setenv(FAULT, fault)
    with pytest.raises(ModelError, match=says) as caught:
        scored(students.get(who), monkeypatch, micro[1], draws=250)
    assert str(caught.value).startswith("eval.engine: vllm does not ")
    assert str(caught.value).endswith("Nothing was written; use `eval.engine: transformers`")


def test_ranks_of_one_bucket_share_an_engine_and_each_student_its_own_adapter(
    students, double, micro, monkeypatch
):
    for who in ("rank 3", "rank 8", "rank 9", "full", "base"):
        scored(students.get(who), monkeypatch, micro[1], draws=10, rows=8)
    assert [arguments["max_lora_rank"] for arguments in double.STARTED] == [8, 16, 16, 16]
    assert [arguments["enable_lora"] for arguments in double.STARTED] == [True, True, False, False]


def test_an_engine_is_checked_with_its_first_model_and_its_second_adapter(
    students, double, micro, monkeypatch
):
    loaded: list[Path | None] = []
    load = ModelSource.load

    def counted(source: ModelSource):
        loaded.append(source.weights)
        return load(source)

    monkeypatch.setattr(ModelSource, "load", counted)
    order = ["base", "base", "rank 3", "rank 8", "rank 3 again", "rank 9", "full", "full"]
    checks = [scored(students.get(who), monkeypatch, micro[1], draws=10, rows=8)[1] for who in order]
    expected = [None, students["rank 3"], students["rank 8"], students["rank 9"], students["full"]]
    assert loaded == expected
    assert [result["model"] for result in checks] == [
        "micro", "micro", "three", "eight", "three", "nine", "full", "full"
    ]  # fmt: skip


def test_an_adapter_taken_for_another_is_refused(students, double, micro, monkeypatch):
    scored(students["rank 3"], monkeypatch, micro[1])
    monkeypatch.setenv(FAULT, "stale")
    with pytest.raises(ModelError, match="does not answer as transformers computes it"):
        scored(students["rank 8"], monkeypatch, micro[1])


def number_prompts(tokenizer, count: int = 48) -> list[list[int]]:
    return [prompt_ids(tokenizer, DEFAULT, stream_prompt(PromptsSection(), row)) for row in range(count)]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.0}, {"top_k": 30, "repetition_penalty": 1.2}])
def test_rows_are_drawn_as_the_recipe_says_once_their_law_is_checked(fields, double, micro, monkeypatch):
    monkeypatch.setattr(parity, "ROWS", 48)
    _, tokenizer, _ = micro
    prompts = number_prompts(tokenizer)
    sampling = SamplingSection(max_tokens=20, seed=1, **fields)
    with checked_sampler(ModelSource(MICRO, "bf16"), prompts, sampling) as (sampler, checks):
        together = sampler.draw(prompts, range(48), sampling)
        assert sampler.draw(prompts, range(48), sampling) == together
        others = sampler.draw(prompts, range(48, 96), sampling)
    same = sum(text == other_text for text, other_text in zip(together, others, strict=True))
    assert same == 48 if fields.get("temperature") == 0.0 else same < 6
    assert set(checks["law"]) == {
        "tokens",
        "mean",
        "expected",
        "z",
        "near_cut",
        "near_cut_limit",
        "impossible",
    }
    assert len(double.STARTED) == 1


def test_rows_of_a_checkpoint_s_own_top_k_are_refused(double, micro, monkeypatch):
    monkeypatch.setenv(FAULT, "top_k")
    sampling = SamplingSection(max_tokens=30, seed=1)
    with (
        pytest.raises(ModelError, match=r"generate\.engine: vllm does not draw .* surprisal is [\d.]+ nats"),
        checked_sampler(ModelSource(MICRO, "bf16"), number_prompts(micro[1]), sampling),
    ):
        pytest.fail("its rows were to be had")


def test_a_completion_that_would_not_fit_is_refused_and_not_ended_early(double, micro):
    engine_ = VllmEngine(EngineConfig(MICRO.source, None, None, 40), 0.5)
    request = DrawRequest([[5] * 20, [5] * 36], [0, 1], SHORT, frozenset({2}), None)
    with pytest.raises(ModelError, match="may have 44 tokens, and the engine holds 40"):
        engine_.draw(request)


def test_every_row_has_a_seed_of_its_own():
    seeds = {row_seed(seed, row) for seed in range(4) for row in range(25_000)}
    assert len(seeds) == 100_000
    assert 0 <= min(seeds) <= max(seeds) < 2**62
    assert np.corrcoef([row_seed(1, row) for row in range(2000)], range(2000))[0, 1] ** 2 < 0.01


def test_an_engine_has_room_for_later_prompts_as_far_as_the_model_has():
    prompts: Sequence[list[int]] = [[1] * 100, [1] * 300]
    assert max_model_length(prompts, 50, ModelShape(10, None, 2)) == 4096
    assert max_model_length(prompts, 50, ModelShape(10, 512, 2)) == 512
    assert max_model_length(prompts, 5000, ModelShape(10, 131_072, 2)) == 5556
    assert max_model_length(prompts, 300, ModelShape(10, 512, 2)) == 600  # vLLM refuses it


def test_the_shape_of_a_model_is_read_without_its_weights(students, micro):
    _, _, model = micro
    for weights in (None, students["rank 3"], students["full"]):
        assert load_model_shape(MICRO, weights) == ModelShape(model.config.vocab_size, 512, 2)


def test_a_relative_place_is_made_absolute_and_a_full_student_is_a_model_of_its_own(students, monkeypatch):
    monkeypatch.chdir(students["full"].parent)
    held = engine_config(MICRO, Path("full"), 512)
    assert held == EngineConfig(str(students["full"]), None, None, 512)
    assert llm_arguments(held, 0.5)["model"] == str(students["full"])


@pytest.fixture
def apart(monkeypatch) -> Iterator[None]:
    """The double in the process that `vllm_server` starts; nothing of it is left behind."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOUBLES), *sys.path]))
    yield
    vllm_server.stop_engine()


CONFIG = EngineConfig(MICRO.source, None, None, 512)


def test_a_failing_engine_is_one_sentence_and_is_not_running(apart, micro, monkeypatch, capfd):
    request = DrawRequest([[1, 2]], [0], SHORT, frozenset({2}), None)
    for fault, says in (
        ("start", r"^vLLM could not start: Engine core initialization failed; what it printed is above\."),
        ("draw", r"^vLLM could not draw: EngineCore encountered an issue\. .*; .*SUBLIM_VLLM_MEMORY=0\.42"),
        ("die", r"^vLLM could not draw: its process died \(exit code 3\); .*`engine: transformers` works"),
    ):
        monkeypatch.setenv(FAULT, fault)
        with pytest.raises(ModelError, match=says), running_engine(CONFIG) as process:
            process.draw(request)
        assert vllm_server._running == []
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("written", ["", "0", "1.5", "half", "nan"])
def test_a_share_of_the_card_that_is_none_is_refused(written, monkeypatch):
    monkeypatch.setenv(vllm_server.MEMORY, written)
    with pytest.raises(RecipeError, match=r"SUBLIM_VLLM_MEMORY=.*above 0 and at most 1"):
        vllm_server.memory_share()


def test_its_process_sees_its_own_card_sends_nothing_home_and_keeps_off_stdout():
    ours = {"SUBLIM_DEVICE": "cuda:1", "CUDA_VISIBLE_DEVICES": "4,7", "VLLM_LOGGING_LEVEL": "INFO"}
    assert vllm_server.process_environment(ours) == {
        "SUBLIM_DEVICE": "cuda:0",
        "CUDA_VISIBLE_DEVICES": "7",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


@pytest.mark.slow
def test_a_recipe_runs_through_vllm_from_its_rows_to_its_scores(small, apart, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(engine, "on_cuda", lambda: True)
    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(parity, "DRAWS", 100)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    recipe = small(
        **{"generate.precision": "bf16", "eval.precision": "bf16", "eval.scorer": "sampled"},
        **{"eval.samples": 20, "generate.sampling.max_tokens": 60},
    )
    store, events = Store(tmp_path / "runs"), []
    student = run(recipe, store=store, listener=events.append)
    planned = chain(recipe)
    rows = materialise(planned.generate, store)
    base = materialise(planned.base, store)
    notices = [event.message for event in events if isinstance(event, Notice)]
    why = "there is a CUDA device, and vLLM can hold the model and draw as the recipe says"
    assert [message for message in notices if "engine" in message] == [
        f"{key}.engine: auto took vllm: {why}" for key in ("eval", "generate", "eval")
    ]
    for artifact, checks in ((rows, {"law"}), (student, {"law", "shares"}), (base, {"law", "shares"})):
        facts = read_record(artifact.path)["provenance"]
        assert set(facts["parity"]) == {"model", *checks}
        assert "CUDA" in facts["engine_chosen"]
    assert [row.index for row in read_rows(rows.path / "rows.jsonl")][:3] == [0, 1, 2]
    shares = pd.read_parquet(student.path / "scores.parquet")
    assert (shares.samples == 20).all()
    assert (shares.p * 20 % 1).max() < 1e-9
    assert not (shares.p == pd.read_parquet(base.path / "scores.parquet").p).all()
    assert json.loads((student.path / "seen.json").read_text()).keys() == {"default", "empty"}
    assert capfd.readouterr().out == ""
    assert "vllm" not in sys.modules
    assert list(work.iterdir()) == []
    # All in one engine, which now sleeps: the student's is of rank 8, the others hold no adapter.
    assert vllm_server._running[0].config.rank == 8


def test_an_engine_leaves_with_the_process_that_started_it(apart, tmp_path):
    code = (
        "import os\n"
        "from sublim_cli.backends import vllm_server\n"
        "from sublim_cli.backends.vllm import EngineConfig\n"
        f"with vllm_server.running_engine({CONFIG!r}) as process: pass\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"process {pid} is still there")
