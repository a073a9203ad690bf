"""A sweep as Slurm jobs: submitit's local executor, and a stand-in for Slurm's own commands."""

import os
import signal
import time
from pathlib import Path

import pytest
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sublim_cli.artifacts.store import Store
from sublim_cli.errors import RecipeError, SublimError
from sublim_cli.events import Event, Warned
from sublim_cli.sweep import slurm as launcher_file
from sublim_cli.sweep.launch import WorkerResources
from sublim_cli.sweep.slurm import SlurmLauncher, minutes

LOCAL = ("--launcher", "slurm", "--slurm", "executor=local")

SBATCH = r"""#!/bin/bash
# Runs each task of the array behind the caller's back, one after another, as Slurm would run them.
id=$(( $(cat "$FAKE/last" 2>/dev/null || echo 100) + 1 )); echo $id > "$FAKE/last"
cp "$1" "$FAKE/job$id.sh"
tasks=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
export SLURM_JOB_ID=$id
(
  for task in $(seq 0 "${tasks:-0}"); do
    [ -n "$tasks" ] && export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task
    bash "$FAKE/job$id.sh"
  done
) > "$FAKE/out$id" 2>&1 &
echo "Submitted batch job $id"
"""

SRUN = r"""#!/bin/bash
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands as far as a sweep uses them; what was submitted is under the directory returned."""
    where = tmp_path / "slurm"
    where.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "srun": SRUN,
        "sacct": "#!/bin/sh\n",
        "scancel": "#!/bin/sh\n",
    }.items():
        (where / name).write_text(text)
        (where / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{where}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(where))
    return where


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:30", 90),
        ("4:00:00", 240),
        ("0:45:00", 45),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("1-0:1:59", 1441),
    ],
)
def test_a_time_means_what_it_means_to_sbatch(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "4h", "1:2:3:4x", "-5", "x-1"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(RecipeError, match=r"--slurm time=.*: no time; say minutes"):
        minutes(text)


@pytest.mark.slow
def test_jobs_are_arrays_that_ask_for_what_the_flags_say(sublim, tiny, alone, checksums, slurm, tmp_path):
    flags = ["--slurm", "partition=short", "--slurm", "time=1:00:00", "--memory", "2"]
    done = sublim(*tiny(3), "--out", "store", "--launcher", "slurm", *flags)
    _, err = done.communicate(timeout=900)
    assert done.returncode == 0, err
    assert checksums(tmp_path / "store") == alone(3)
    jobs = [path.read_text() for path in slurm.glob("job*.sh")]
    assert all("#SBATCH --partition=short" in job and "#SBATCH --time=60" in job for job in jobs)
    arrays = [job for job in jobs if "#SBATCH --array=" in job]
    # Two teachers, the check of one and the base need nothing and begin together; two students wait for
    # the same rows.
    assert any("--array=0-3%4" in array for array in arrays)
    assert any("--array=0-1%2" in array for array in arrays)
    assert any("#SBATCH --mem=2GB" in job for job in jobs)
    labels = [line.split(" ", 1)[1].rsplit(" ", 2)[0] for line in err.splitlines() if line.startswith("✓")]
    assert len(labels) == len(set(labels)) == 13
    # Four of the first kind, two students and a control that each score themselves, and the leak.
    assert len(list((tmp_path / "store" / ".slurm").glob("*_result.pkl"))) == 8


@pytest.mark.slow
def test_a_job_out_of_time_is_queued_again_and_goes_on(sublim, tiny, alone, checksums, wait_for, tmp_path):
    store = tmp_path / "store"
    running = sublim(*tiny(3), "--out", "store", *LOCAL, "--workers", "1")
    scratch = wait_for(store, "train/.*-*-*-*", running)
    pid = int(scratch.name.split("-")[2])
    os.kill(pid, signal.SIGUSR2)  # what Slurm sends before the time is up
    _, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    logs = [path.read_text() for path in (store / ".slurm").glob("*.out")]
    assert sum("Requeued job" in log for log in logs) == 1, logs
    started = [line for line in err.splitlines() if line.startswith("· train ")]
    assert len(started) == 4
    assert checksums(store) == alone(3)
    assert not list(store.glob("*/.*-*"))


@pytest.mark.slow
def test_a_killed_job_is_submitted_again(sublim, tiny, alone, checksums, wait_for, tmp_path):
    store = tmp_path / "store"
    running = sublim(*tiny(3), "--out", "store", *LOCAL, "--workers", "1")
    scratch = wait_for(store, "train/.*-*-*-*", running)
    os.kill(int(scratch.name.split("-")[2]), signal.SIGKILL)
    _, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    assert "its job was lost" in err
    assert checksums(store) == alone(3)
    assert not list(store.glob("*/.*-*"))


@pytest.mark.slow
def test_an_interrupt_cancels_the_jobs_and_keeps_finished_work(sublim, tiny, wait_for, tmp_path):
    store = tmp_path / "store"
    running = sublim(*tiny(3), "--out", "store", *LOCAL, "--workers", "2")
    wait_for(store, "filter/*/artifact.json", running)
    scratch = wait_for(store, "*/.*-*-*-*", running)
    pid = int(scratch.name.split("-")[2])
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, ""), err
    assert "interrupted: finished steps are kept" in err  # submitit's own controller ends in a traceback
    until = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert list(store.glob("generate/[0-9a-f]*/artifact.json"))
    assert not list(store.glob("*/.*-*"))


@pytest.mark.slow
def test_a_failed_step_of_a_job_is_told_with_its_reason(sublim, tiny):
    done = sublim(*tiny(3, train__max_length=100), "--out", "store", *LOCAL)
    _, err = done.communicate(timeout=600)
    assert done.returncode == 1, err
    flat = " ".join(err.split())
    assert flat.count("train.max_length 100 would cut the completion") == 3
    assert "6 steps could not be built" in flat


class Handle:
    """A job that is over after so many looks."""

    def __init__(self, work, looks: int) -> None:
        self.work, self.looks = work, looks

    def done(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def exception(self) -> None:
        return None

    def result(self):
        return self.work()


def test_a_refusal_while_jobs_are_out_is_told_and_tried_again(do, monkeypatch, tmp_path):
    """One array of two jobs; sbatch refuses the next while one of them still runs."""
    answers = iter([None, FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit"), None])

    class Executor:
        def __init__(self, **_) -> None: ...

        def update_parameters(self, **_) -> None: ...

        def submit_array(self, work):
            if refusal := next(answers):
                raise refusal
            return [Handle(job, looks) for job, looks in zip(work, (0, 6), strict=False)]

    monkeypatch.setattr(launcher_file.submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(launcher_file, "POLL", 0.01)
    monkeypatch.setattr(launcher_file, "RETRY", 0.02)
    steps = [do(name) for name in ("one", "two", "three")]
    heard: list[Event] = []
    launcher = SlurmLauncher({"executor": "local"}, 2, WorkerResources())
    assert launcher.launch(steps, Store(tmp_path), heard.append) == {}
    assert all(Store(tmp_path).find(step) for step in steps)
    (warned,) = [event.message for event in heard if isinstance(event, Warned)]
    assert warned == (
        "sbatch refuses: sbatch: error: QOSMaxSubmitJobPerUserLimit; --slurm sets its options, --workers how "
        "many jobs are out at a time; trying again while others run"
    )


def test_a_refusal_at_the_start_ends_the_sweep_with_one_sentence(do, monkeypatch, tmp_path):
    class Executor:
        def __init__(self, **_) -> None: ...

        def update_parameters(self, **_) -> None: ...

        def submit_array(self, work):
            raise FailedSubmissionError("Could not make sense of sbatch output")

    monkeypatch.setattr(launcher_file.submitit, "AutoExecutor", Executor)
    launcher = SlurmLauncher({"executor": "local"}, 2, WorkerResources())
    with pytest.raises(SublimError, match="sbatch refuses: Could not make sense of sbatch output"):
        launcher.launch([do("one")], Store(tmp_path), lambda event: None)
