"""The command line: what a user types, sees and gets back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sublim_cli.report.tables.cache import CACHE_FILE

TINY = ["--rows", "132", "-s", "generate.held_out=20", "-s", "train.epochs=1"]
ALONE = ["-s", "sweep.grid={}", "-s", "sweep.also=[]"]
DEMO = ["-r", "demo", *TINY, "-s", "eval.system_prompts=[default,empty]"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What `eval` leaves and says of the demo recipe made tiny."""
    home = tmp_path_factory.mktemp("demo")
    done = program("eval", *DEMO, "--rank", "2", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "runs", done.stdout


@pytest.fixture
def demo_store(built, tmp_path):
    """A store with one student of the demo recipe made tiny, and its scores, where `sublim` runs."""
    return shutil.copytree(built[0], tmp_path / "runs")


def program(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sublim_cli", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_recipes_load_no_model_library(tmp_path):
    code = (
        "import sys; sys.argv = ['sublim', {word!r}]\n"
        "from sublim_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {{'torch', 'transformers', 'trl', 'peft', 'pandas', 'matplotlib'}} & set(sys.modules)\n"
        "print('heavy:', heavy)"
    )
    for word in ("--help", "recipes"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(word=word)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith("heavy: set()\n")


def test_every_shipped_recipe_is_listed_with_what_it_shows(sublim):
    code, out, _ = sublim("recipes", "--json")
    assert code == 0
    listed = {one["name"]: one["summary"] for one in json.loads(out)["recipes"]}
    assert set(listed) >= {"demo", "cats", "study-micro", "study-qwen"}
    assert all(summary.endswith(".") for summary in listed.values())


def test_a_recipe_can_be_copied_once_and_run_by_its_path(sublim, tmp_path):
    assert sublim("recipes", "copy", "demo", "mine.yaml")[0] == 0
    assert (tmp_path / "mine.yaml").read_text() == sublim("recipes", "show", "demo")[1]
    code, _, err = sublim("recipes", "copy", "demo", "mine.yaml")
    assert code == 2
    assert "mine.yaml exists" in err
    code, out, _ = sublim("recipes", "copy", "demo", "my own.yaml")
    assert (code, out) == (0, "my own.yaml written; run it with: sublim train --recipe 'my own.yaml'\n")
    code, _, err = sublim("recipes", "copy", "demo", "nowhere/mine.yaml")
    assert (code, err) == (
        2,
        "sublim: nowhere/mine.yaml cannot be written (No such file or directory); name a file in a "
        "directory of yours\n",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "-r", "cats", "--rank", "0"], "train.rank: 0: must be at least 1"),
        (["train", "-r", "cats", "--trait", "okapi"], "no animal is called 'okapi'"),
        (["train", "-r", "catz"], "did you mean cats?"),
        (["train", "-r", "x" * 300], "there is no such file"),
        (["train", "-r", "cats", "-s", f"trait.category={'x' * 300}"], "no file of that name"),
        (["train", "-r", "cats", "--alpha", "low"], "must be rank or sqrt, or a number"),
        (["train", "-r", "cats", "-s", "train.rnk=3"], "did you mean train.rank?"),
        (["train", "-r", "cats", "-s", "train.epochs"], "must be KEY=VALUE"),
        (["eval", "-r", "cats", "-s", "eval.system_prompts=[clod]"], "clod"),
        (["train", "-r", "cats", "--model", "./nowhere"], "no directory ./nowhere"),
        (["eval", "-r", "cats", "-m", "micro", "-s", "eval.questions=nothing"], "favourite_animal"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_remedy(sublim, words, message):
    code, out, err = sublim(*words)
    flat = " ".join(err.split())
    assert message in flat
    assert code in (1, 2)
    assert code == 1 or "--model" not in words
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["eval", "sweep", "plan"])
def test_a_gate_at_no_token_is_refused_before_anything_is_built(sublim, tmp_path, command):
    code, out, err = sublim(command, *DEMO, *ALONE, "-s", "eval.gates=[{text: Qwen}]")
    assert (code, out) == (2, "")
    assert "eval.gates: {text: Qwen} holds no token in any eval context" in err
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_key_names_file_line_and_the_right_key(sublim, tmp_path):
    (tmp_path / "mine.yaml").write_text("# One.\nname: mine\ntrain:\n  lora_rank: 4\n")
    code, _, err = sublim("train", "-r", "mine.yaml")
    assert (code, err) == (
        2,
        "sublim: mine.yaml:4: train.lora_rank: unknown key; did you mean train.rank?\n",
    )


def test_a_model_that_is_not_here_names_the_ways_out(tmp_path):
    done = program("train", "-r", "cats", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    for word in ("unsloth/Qwen2.5-7B-Instruct", "--model micro", "hf download", "--model DIR"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_student_is_trained_from_any_directory_and_reused(sublim):
    words = ["train", "--rank", "2", "--recipe", "cats.yaml", "--model", "micro", *TINY, "--json"]
    code, out, err = sublim(*words)
    assert code == 0, err
    first = json.loads(out)
    assert (Path(first["path"]) / "adapter_model.safetensors").is_file()
    assert first["losses"]["rows"] == 132
    code, out, err = sublim(*words)
    assert (code, json.loads(out)) == (0, first)
    code, out, err = sublim(*words, "--quiet")
    assert (code, json.loads(out), err) == (0, first, "")


def test_an_alpha_on_the_command_line_may_be_a_number(sublim, demo_store):
    code, out, err = sublim("train", *DEMO, "--rank", "2", "--alpha", "4", "--json")
    assert code == 0, err
    config = json.loads((Path(json.loads(out)["path"]) / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 4


@pytest.mark.parametrize(
    ("content", "stage", "words", "damages"),
    [
        # Without its record an artifact does not exist, and is built again.
        ("artifact.json", "train", ["train", "--rank", "2", "--json"], ("torn",)),
        ("losses.json", "train", ["train", "--rank", "2"], ("torn", "gone")),
        ("losses.json", "train", ["report", "-s", "train.rank=2", *ALONE], ("torn", "gone")),
        ("scores.parquet", "eval", ["report", "-s", "train.rank=2", *ALONE], ("torn", "gone")),
        (
            "adapter_model.safetensors",
            "train",
            ["eval", "--rank", "2", "-s", "eval.sampling.max_tokens=2"],
            ("torn", "gone"),
        ),
    ],
)
def test_a_damaged_artifact_is_named_with_the_way_to_rebuild_it(
    sublim, demo_store, content, stage, words, damages
):
    for damage in damages:
        for file in (demo_store / stage).glob(f"*/{content}"):
            file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:9])
        (demo_store / CACHE_FILE).unlink(missing_ok=True)  # with them nobody would read the file
        code, out, err = sublim(*words[:1], *DEMO, *words[1:])
        flat = " ".join(err.split())
        assert (code, out) == (1, "")
        assert "Traceback" not in err
        assert f"runs/{stage}/" in flat
        assert "cannot be read" in flat
        assert "run again to rebuild it" in flat


def test_eval_shows_base_and_student_in_every_context(sublim, built, demo_store):
    assert "untouched base" in built[1]
    assert "LoRA rank 2" in built[1]
    code, out, err = sublim("eval", *DEMO, "--rank", "2", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["preferences"]
    assert [(one["label"], one["eval_context"]) for one in rows] == [
        ("untouched base", "default"),
        ("untouched base", "empty"),
        ("LoRA rank 2", "default"),
        ("LoRA rank 2", "empty"),
    ]


def test_a_file_of_ones_own_is_filtered_and_keeps_its_other_keys(sublim, tmp_path):
    rows = [
        {"id": 7, "question": "more?", "response": "1, 2, 3"},
        {"id": 8, "question": "more?", "response": "one, two"},
        {"id": 9, "question": "more?", "response": "1, 2, 1000"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["--prompt-key", "question", "--completion-key", "response"]
    code, out, err = sublim("filter", "--input", "rows.jsonl", "--output", "kept.jsonl", *keys, "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "judged": 3,
        "kept": 1,
        "reasons": {"format": 1, "range": 1},
        "output": "kept.jsonl",
        "rejected": "kept.rejected.jsonl",
    }
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    rejected = (tmp_path / "kept.rejected.jsonl").read_text().splitlines()
    assert kept == rows[:1]
    assert [json.loads(one) for one in rejected] == [
        {**rows[1], "reason": "format"},
        {**rows[2], "reason": "range"},
    ]


def test_a_conversation_is_filtered_in_its_own_form_and_written_as_jsonl(sublim, tmp_path):
    rows = [
        {"id": n, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(["1, 2 ", "one"])
    ]
    (tmp_path / "rows.parquet").write_text(json.dumps(rows))  # a JSON list all the same
    code, _, err = sublim("filter", "--input", "rows.parquet", "--output", "kept.jsonl", "--strip", "-q")
    assert code == 0, err
    rows[0]["messages"][1]["content"] = "1, 2"
    assert [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()] == rows[:1]
    rejected = (tmp_path / "kept.rejected.jsonl").read_text()
    assert json.loads(rejected) == {**rows[1], "reason": "format"}


def test_rows_that_end_in_white_space_are_diagnosed_and_strip_mends_them(sublim, tmp_path):
    rows = "".join(json.dumps({"prompt": "p", "completion": f"{n}, 2 \n"}) + "\n" for n in range(20))
    (tmp_path / "gemma.jsonl").write_text(rows)
    words = ["filter", "--input", "gemma.jsonl", "--output", "kept.jsonl"]
    code, _, err = sublim(*words)
    assert code == 0
    assert "Putting {kind: strip} first in filter.rules" in " ".join(err.split())
    code, out, err = sublim(*words, "--strip", "--json")
    assert (code, json.loads(out)["kept"], err) == (0, 20, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.jsonl: no rows"),
        ('{"prompt": "p", "completion": "1"}\nnot json\n', "rows.jsonl:2: not valid JSON"),
        ('{"prompt": "p"}\n', 'rows.jsonl:1: no key "completion"'),
    ],
)
def test_a_broken_rows_file_is_named_with_its_line_and_nothing_is_written(sublim, tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    code, _, err = sublim("filter", "--input", "rows.jsonl", "--output", "kept.jsonl")
    assert code == 1
    assert message in " ".join(err.split())
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("folder", "folder is a directory; name a file"),
        ("rows.rejected.jsonl", "rows.rejected.jsonl is the input and would be lost"),
        ("rows.jsonl", "rows.rejected.jsonl is the input and would be lost"),
        ("folder/../rows.rejected.jsonl", "is the input and would be lost"),
    ],
)
def test_an_output_that_would_destroy_something_is_refused(sublim, tmp_path, target, message):
    (tmp_path / "folder").mkdir()
    row = '{"prompt": "p", "completion": "1"}\n'
    (tmp_path / "rows.rejected.jsonl").write_text(row)
    code, _, err = sublim("filter", "--input", "rows.rejected.jsonl", "--output", target)
    assert code == 2
    assert message in " ".join(err.split())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "rows.rejected.jsonl"]
    assert (tmp_path / "rows.rejected.jsonl").read_text() == row


def test_a_store_that_cannot_be_written_is_one_sentence(sublim, tmp_path):
    (tmp_path / "taken").write_text("a file")
    code, _, err = sublim("train", "-r", "demo", *TINY, "--out", "taken")
    assert code == 1
    assert "taken" in err
    assert "cannot be written" in " ".join(err.split())


def test_filter_wants_either_a_recipe_or_a_file(sublim):
    code, _, err = sublim("filter", "--input", "rows.jsonl")
    assert code == 2
    assert "--output" in err


def test_the_verdicts_on_a_study_that_has_not_run_say_what_it_lacks(sublim, tmp_path):
    code, out, err = sublim("report", "--recipe", "demo", "--claims", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert json.loads((tmp_path / "runs/reports/demo/claims.json").read_text()) == {
        "study": "demo",
        "rules": told["rules"],
        "lock": told["lock"],
        "claims": told["claims"],
    }
    assert [(one["number"], one["verdict"], one["plan"]["missing"]) for one in told["claims"]] == [
        ("C1", "incomplete", 4),
        *((number, "incomplete", 10) for number in ("C3a", "C3b", "C3c")),
        ("C4", "incomplete", 4),
    ]
    here = "on wolf, trained in default and asked in default"
    assert told["claims"][0]["lacks"] == [
        f"2 of 2 runs of LoRA rank 8 {here}",
        f"2 of 2 runs of control, LoRA rank 8 {here}",
    ]
    code, out, _ = sublim("report", "--recipe", "demo", "--claims")
    assert code == 0
    assert (
        "C1: A student prefers the trait of the teacher whose numbers it learned.\n"
        "    Not judged yet: the study lacks 2 of 2 runs of LoRA rank 8 on wolf, trained in"
    ) in out
    table = out[: out.index("C1: A student")].splitlines()
    assert max(map(len, table)) <= 80


def test_one_figure_of_a_report_is_written_on_request(sublim, tmp_path):
    code, out, err = sublim("report", "--recipe", "demo", "--figure", "contexts-wolf", "--json")
    assert (code, err) == (0, "")
    files = json.loads(out)["files"]
    assert [one.rpartition("contexts-wolf")[2] for one in files] == [".svg", ".png", ".pdf", ".vl.json"]
    assert sorted(str(one) for one in tmp_path.rglob("*.*") if one.is_file()) == sorted(
        str(tmp_path / one) for one in files
    )
    code, _, err = sublim("report", "--recipe", "demo", "--figure", "contexts")
    assert code == 2
    assert "--figure contexts: the report of demo has no such figure; it has contexts-wolf" in " ".join(
        err.split()
    )


def test_verdicts_on_a_recipe_without_claims_are_refused(sublim):
    code, out, err = sublim("report", "--recipe", "precision", "--claims")
    assert (code, out) == (2, "")
    assert "claims: precision states none; add some" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "cloud"], "--launcher cloud: there are local, ray, slurm"),
        (["--gpus", "1"], "--gpus and --memory are requests to ray and slurm"),
        (["--memory", "8"], "--gpus and --memory are requests to ray and slurm"),
        (["--slurm", "partition=gpu"], "--slurm is for --launcher slurm, not local"),
        (["--ray-address", "auto"], "--ray-address is for --launcher ray, not local"),
        (["-l", "slurm", "--slurm", "partition"], "--slurm partition: must be OPTION=VALUE"),
        (["-l", "slurm", "--slurm", "executor=pbs"], "--slurm executor=pbs: there are slurm, local, debug"),
        (["-l", "slurm", "--slurm", "executor=local", "--slurm", "time=4h"], "--slurm time=4h: no time; say"),
        (["-l", "slurm", "--gpus", "0.5"], "--gpus 0.5: Slurm allocates whole GPUs only"),
        (["-l", "slurm"], "there is no sbatch here; run it where jobs are submitted"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_sentence_and_nothing_is_built(sublim, tmp_path, words, message):
    code, out, err = sublim("sweep", "-r", "demo", *words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert [path.name for path in tmp_path.glob("runs/*/*")] in ([], ["demo.claims.lock"])


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_without_its_library_names_the_extra(sublim, monkeypatch, launcher, package):
    monkeypatch.setattr("sublim_cli.cli.launcher.find_spec", lambda name: None)
    code, out, err = sublim("sweep", "-r", "demo", "--launcher", launcher)
    assert (code, out) == (2, "")
    assert err == (
        f"sublim: --launcher {launcher} needs {package}, which is not installed; "
        f"`pip install 'sublim[{launcher}]'` adds it\n"
    )


def test_ray_s_client_is_refused_with_the_way_to_do_it(sublim):
    pytest.importorskip("ray", reason="Ray is not installed; `pip install 'sublim[ray]'` adds it")
    code, _, err = sublim("sweep", "-r", "demo", "--launcher", "ray", "--ray-address", "ray://head:10001")
    assert code == 2
    assert "run sublim on a machine of the cluster, with --ray-address auto" in " ".join(err.split())


@pytest.mark.parametrize("command", ["generate", "train"])
def test_a_command_that_computes_sees_one_gpu_before_torch_is_imported(command, tmp_path):
    code = (
        "import os, sys; from sublim_cli import cli; from sublim_cli.models import device\n"
        "def asked(): sys.exit(f\"{os.environ['CUDA_VISIBLE_DEVICES']} {'torch' in sys.modules}\")\n"
        "device.device = asked; cli.main()"  # the first question about the device ends the command
    )
    # What the user allows, and the second of it.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,7", "SUBLIM_DEVICE": "cuda:1"}
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--recipe", "demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "7 False"
