"""The verdicts of docs/results/study-micro, and the script that recomputes them without sublim."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "docs" / "results" / "study-micro"


def run(script: Path, argument: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), str(argument)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def written(path: Path) -> list[dict]:
    return json.loads(path.read_text())["claims"]


def test_every_verdict_is_that_of_a_script_without_sublim():
    done = run(STUDY / "recompute.py", STUDY / "claims.json")
    lines = done.stdout.splitlines()
    claims = written(STUDY / "claims.json")
    assert (done.returncode, len(lines)) == (0, len(claims)), done.stdout + done.stderr
    for claim, line in zip(claims, lines, strict=True):
        assert line.startswith(f"{claim['number']:4}{claim['statement']}: {claim['verdict']}: agrees (")


def test_the_script_sees_every_number_and_word_that_was_changed(tmp_path):
    document = json.loads((STUDY / "claims.json").read_text())
    claims = document["claims"]
    claims[0]["findings"][1]["p"] *= 1.01
    claims[1]["findings"][2]["effect"]["high"] += 0.001
    claims[7]["verdict"] = "supported"
    claims[8]["traits"][0]["outcome"] = "supported"
    changed = tmp_path / "claims.json"
    changed.write_text(json.dumps(document))
    done = run(STUDY / "recompute.py", changed)
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("C")]
    differ = [place for place, line in enumerate(verdicts) if "DIFFER" in line]
    assert (done.returncode, differ) == (1, [0, 1, 7, 8]), done.stdout + done.stderr


def test_the_verdicts_are_those_of_the_present_rules(tmp_path):
    for name in ("results.parquet", "localisation.parquet", "recipe.yaml"):
        shutil.copy(STUDY / name, tmp_path)
    done = run(ROOT / "benchmarks" / "judge_tables.py", tmp_path)
    assert done.returncode == 0, done.stderr
    for now, then in zip(written(tmp_path / "claims.json"), written(STUDY / "claims.json"), strict=True):
        for key in ("number", "verdict", "outcome", "traits", "plan"):
            assert now[key] == then[key], f"python benchmarks/judge_tables.py {STUDY.relative_to(ROOT)}"
