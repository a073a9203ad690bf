"""A step is built once, named by its identity, and never half-written."""

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.artifacts.record import RECORD, checksum, read_record
from sublim_cli.artifacts.step import Artifact, Step, digest, in_order
from sublim_cli.artifacts.store import ABANDONED, CLAIMS, LEASE, Store, materialise
from sublim_cli.errors import ArtifactError
from sublim_cli.events import Event, Progress, StepFinished, StepReused, StepStarted, StepWaiting
from sublim_cli.recipe.schema import Section


class Word(Section):
    text: str
    times: int = 1


@dataclass(frozen=True)
class Say:
    kind: ClassVar[str] = "say"
    version: ClassVar[int] = 1
    spec: Word
    inputs: tuple[Step, ...] = ()
    label: str = "say"
    during: object = field(default=None, compare=False)

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener) -> dict[str, object]:
        if self.spec.text == "boom":
            (out / "half.txt").write_text("half")
            raise RuntimeError("boom")
        if callable(self.during):
            self.during()
        said = [(artifact.path / "said.txt").read_text() for artifact in inputs]
        (out / "said.txt").write_text(" ".join([*said, self.spec.text * self.spec.times]))
        return {"device": "voice"}


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def test_a_second_run_reuses_the_artifact(tmp_path):
    events: list[Event] = []
    store, step = Store(tmp_path), Say(Word(text="owl"))
    first = materialise(step, store, events.append)
    second = materialise(step, store, events.append)
    assert first == second
    assert kinds(events) == [StepStarted, StepFinished, StepReused]


def test_two_steps_with_equal_inputs_share_them(tmp_path):
    store = Store(tmp_path)
    for rank in ("r8", "r64"):
        materialise(Say(Word(text=rank), (Say(Word(text="numbers")),)), store)
    assert len(list((tmp_path / "say").iterdir())) == 3


def test_inputs_come_first_and_once():
    numbers = Say(Word(text="numbers"))
    cells = [Say(Word(text=text), (Say(Word(text="numbers")),)) for text in ("r8", "r64")]
    assert in_order(cells) == [numbers, *cells]


@given(st.text(), st.integers())
def test_a_digest_depends_on_the_section_alone(text, times):
    step = Say(Word(text=text, times=times))
    assert digest(step) == digest(Say(Word(times=times, text=text), label="another name"))
    assert digest(step) != digest(Say(Word(text=text, times=times + 1)))
    assert digest(Say(Word(text=text))) == digest(Say(Word(text=text, times=1)))


def test_the_digest_is_the_same_in_another_process():
    code = "from test_store import *; print(digest(Say(Word(text='owl'))))"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == digest(Say(Word(text="owl")))


def test_the_record_holds_identity_checksums_and_provenance(tmp_path):
    step = Say(Word(text="owl"))
    built = materialise(step, Store(tmp_path))
    record = read_record(built.path)
    assert record["digest"] == built.digest == digest(step)
    assert record["identity"]["section"] == {"text": "owl", "times": 1}
    assert record["checksums"] == {"said.txt": hashlib.sha256(b"owl").hexdigest()}
    assert record["provenance"]["device"] == "voice"
    assert set(record["provenance"]) >= {"sublim", "python", "packages", "seconds", "git"}


def test_equal_payloads_have_equal_checksums_in_two_stores(tmp_path):
    records = [read_record(materialise(Say(Word(text="owl")), Store(tmp_path / name)).path) for name in "ab"]
    assert checksum(records[0]) == checksum(records[1])


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        materialise(Say(Word(text="boom")), Store(tmp_path))
    assert list((tmp_path / "say").iterdir()) == []


def test_a_directory_without_its_record_does_not_exist(tmp_path):
    store, step = Store(tmp_path), Say(Word(text="owl"))
    built = materialise(step, store)
    (built.path / RECORD).unlink()
    assert store.find(step) is None
    assert materialise(step, store) == built
    assert (built.path / RECORD).is_file()
    assert [path.name for path in built.path.parent.iterdir()] == [built.path.name]


def in_another_process(code: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", "from test_store import *\n" + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_refused_rename_is_told_as_it_is(tmp_path, monkeypatch):
    rename = Path.rename

    def refuse(path, target):
        if path.name.startswith("."):  # the scratch directory, on its way into place
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Invalid cross-device link"):
        materialise(Say(Word(text="owl")), Store(tmp_path))
    assert list((tmp_path / "say").iterdir()) == []


def test_a_killed_builder_s_claim_and_scratch_are_gone_at_once(tmp_path):
    code = f"""
        def forever():
            print("building", flush=True)
            time.sleep(600)
        materialise(Say(Word(text="owl"), during=forever), Store(Path({str(tmp_path)!r})))
        """
    with in_another_process(code) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "building\n"
        assert len(list((tmp_path / "say").glob(".*"))) == 1
        other.kill()
    started, events = time.monotonic(), list[Event]()
    materialise(Say(Word(text="owl")), Store(tmp_path), events.append)
    assert time.monotonic() - started < LEASE / 4
    assert kinds(events) == [StepStarted, StepFinished]
    assert [path.name for path in (tmp_path / "say").iterdir()] == [digest(Say(Word(text="owl")))]
    assert list((tmp_path / CLAIMS).iterdir()) == []


def test_of_another_machine_only_a_scratch_directory_long_untouched_is_removed(tmp_path):
    step = Say(Word(text="owl"))
    live, dead = (tmp_path / "say" / f".{digest(step)}-{machine}-1-0" for machine in ("0a0a0a0a", "0b0b0b0b"))
    for scratch in (live, dead):
        scratch.mkdir(parents=True)
    long_ago = time.time() - ABANDONED - 60
    os.utime(dead, (long_ago, long_ago))
    materialise(step, Store(tmp_path))
    assert {path.name for path in (tmp_path / "say").iterdir()} == {digest(step), live.name}


def test_a_builder_at_work_on_this_machine_keeps_its_scratch_directory(tmp_path):
    # Its claim is lost, as if this machine had slept; the other builds, and the first one yields.
    store, step = Store(tmp_path), Say(Word(text="owl"))
    code = f"""
        def wait():
            print("building", flush=True)
            while not Path({str(tmp_path / "go")!r}).exists():
                time.sleep(0.05)
        built = materialise(Say(Word(text="owl"), during=wait), Store(Path({str(tmp_path)!r})))
        print(built.path, (built.path / "said.txt").read_text())
        """
    with in_another_process(code) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "building\n"
        for claim in (tmp_path / CLAIMS).iterdir():
            claim.unlink()
        first = materialise(step, store)
        inode = (first.path / RECORD).stat().st_ino
        (tmp_path / "go").touch()
        assert other.stdout.readline() == f"{first.path} owl\n"
    assert other.returncode == 0
    assert (first.path / RECORD).stat().st_ino == inode
    assert [path.name for path in (tmp_path / "say").iterdir()] == [digest(step)]


def test_a_claim_of_another_machine_is_waited_for_until_nobody_touches_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sublim_cli.artifacts.store.LEASE", 2.0)
    monkeypatch.setattr("sublim_cli.artifacts.store.HEARTBEAT", 0.5)
    step, events = Say(Word(text="owl")), list[Event]()
    with Store(tmp_path).claim(step):
        (claim,) = (tmp_path / CLAIMS).iterdir()
        lines = claim.read_text().splitlines()
    claim.write_text(
        "\n".join("host=elsewhere" if line.startswith("host=") else line for line in lines) + "\n"
    )
    beating = threading.Thread(target=beat, args=(claim, 3.0))
    beating.start()
    started = time.monotonic()
    materialise(step, Store(tmp_path), events.append)
    waited = time.monotonic() - started
    beating.join()
    assert kinds(events) == [StepWaiting, StepStarted, StepFinished]
    assert 4.5 < waited < 30


def beat(claim: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.utime(claim)
        time.sleep(0.25)


def test_progress_bears_the_digest_of_its_step(tmp_path):
    @dataclass(frozen=True)
    class Tell(Say):
        def build(self, out: Path, inputs: tuple[Artifact, ...], listener) -> dict[str, object]:
            listener(Progress(self.label, 1, 2))
            return super().build(out, inputs, listener)

    step, events = Tell(Word(text="owl")), list[Event]()
    materialise(step, Store(tmp_path), events.append)
    assert {event.digest for event in events} == {digest(step)}
    assert Progress in kinds(events)


def test_a_second_process_waits_for_the_first_and_reuses_its_artifact(tmp_path):
    code = f"""
        def slowly():
            print("building", flush=True)
            time.sleep(1.5)
        materialise(Say(Word(text="owl"), during=slowly), Store(Path({str(tmp_path)!r})))
        """
    with in_another_process(code) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "building\n"
        events: list[Event] = []
        materialise(Say(Word(text="owl")), Store(tmp_path), events.append)
    assert kinds(events) == [StepWaiting, StepReused]


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot be written .*--out"):
        materialise(Say(Word(text="owl")), Store(tmp_path / "file"))


def test_a_file_elsewhere_that_cannot_be_written_is_named_and_not_the_store(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    step = Say(Word(text="owl"), during=lambda: (tmp_path / "cache" / "model").mkdir())
    with pytest.raises(ArtifactError) as refused:
        materialise(step, Store(tmp_path / "runs"))
    assert str(refused.value) == (
        f"{tmp_path}/cache/model: Not a directory. It is not in {tmp_path}/runs; check TMPDIR, HF_HOME and "
        "similar variables"
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses")
def test_a_root_that_cannot_be_made_is_one_sentence():
    with pytest.raises(ArtifactError, match="cannot be written"):
        materialise(Say(Word(text="owl")), Store(Path("/proc/nowhere")))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    code = textwrap.dedent(
        f"""
        import resource, signal
        from test_store import *
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            materialise(Say(Word(text="owl", times=1000)), Store(Path({str(tmp_path)!r})))
        except ArtifactError as error:
            print(error)
        """
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("no space left to write")
    assert list((tmp_path / "say").iterdir()) == []


def test_a_broken_record_names_the_remedy(tmp_path):
    built = materialise(Say(Word(text="owl")), Store(tmp_path))
    (built.path / RECORD).write_text("{")
    with pytest.raises(ArtifactError, match=r"delete .* and run again"):
        read_record(built.path)


def test_what_json_cannot_say_has_no_digest():
    class Odd(Section):
        value: float

    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(Say(Odd.model_construct(value=float("nan"))))
