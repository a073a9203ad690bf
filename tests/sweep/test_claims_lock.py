"""The claims of a study are locked before its first evaluation, and the report says what changed since."""

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sublim_cli.artifacts.claims_lock import ClaimsLock, changes, claims_statement, lock_claims, read_locks
from sublim_cli.artifacts.record import artifact_records
from sublim_cli.artifacts.store import Store
from sublim_cli.cli import main
from sublim_cli.recipe.load import load
from sublim_cli.report.claims.locking import lock_sentences, lock_status
from sublim_cli.report.claims.verdict import RULES_VERSION

SMALLEST = {
    "generate.rows": 33,
    "generate.held_out": 0,
    "generate.sampling.max_tokens": 24,
    "filter.rules": [{"kind": "count", "most": 12}],
    "train.epochs": 1,
    "eval.scorer": "sampled",
    "eval.samples": 1,
    "eval.sampling.max_tokens": 1,
    "eval.system_prompts": ["none"],
    "sweep.grid": {"train.rank": [1], "train.seed": [1]},
    "sweep.also": [],
    "claims": [{"kind": "full_fine_tuning"}, {"kind": "transmission"}],
}
LOOSER = [{"kind": "full_fine_tuning"}, {"kind": "transmission", "alpha": 0.1}]
LOCK = "manifests/demo.claims.lock"
TIME = r"2\d{3}-\d\d-\d\d \d\d:\d\d UTC"


def words(command: str, **more: object) -> list[str]:
    settings = {**SMALLEST, **{name.replace("__", "."): value for name, value in more.items()}}
    return [
        command,
        "-r",
        "demo",
        *(word for key in settings for word in ("-s", setting(key, settings[key]))),
    ]


def setting(key: str, value: object) -> str:
    return f"{key}={json.dumps(value)}"


def statement(**more: object):
    recipe = load("demo", {**SMALLEST, **{name.replace("__", "."): value for name, value in more.items()}})
    return claims_statement(recipe, {"train.seed": (1,)}, RULES_VERSION)


def program(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; the latter without its line breaks."""
    monkeypatch.setattr(sys, "argv", ["sublim", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, " ".join(shown.err.split())


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The store of a sweep of one student and its control."""
    home = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "argv", ["sublim", *words("sweep"), "--workers", "1", "--quiet"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return home / "runs"


@pytest.fixture
def store(swept, tmp_path) -> Path:
    """A copy on another machine, with other times of its files."""
    return Path(shutil.copytree(swept, tmp_path / "runs", copy_function=shutil.copy))


@pytest.fixture
def sublim_here(monkeypatch, capsys, store):
    """Run the program beside the store; returns exit code, stdout and stderr."""
    monkeypatch.chdir(store.parent)
    return lambda *arguments: program(list(arguments), monkeypatch, capsys)


def page_text(store: Path) -> str:
    page = (store / "reports/demo/report.html").read_text(encoding="utf-8")
    return " ".join(re.sub("<[^>]*>", " ", page.split("<main>")[1]).split())


def test_the_claims_are_locked_before_the_first_step(store, sublim_here):
    code, shown, _ = sublim_here(*words("report"))
    assert code == 0
    first = shown.splitlines()[0]
    assert re.fullmatch(
        rf"The claims were locked on {TIME}, before all 2 evaluations of trained models\.", first
    )
    assert page_text(store).index(first) < 100
    lock = json.loads((store / LOCK).read_text(encoding="utf-8"))
    recipe = load("demo", SMALLEST)
    assert lock["claims"] == [claim.model_dump(mode="json") for claim in recipe.claims]
    assert (lock["study"], lock["rules"]) == ("demo", RULES_VERSION)
    assert lock["seeds"] == {"train.seed": [1], "generate.sampling.seed": [1], "generate.prompts.seed": [42]}
    assert lock["recipe"]["sweep.grid.train.rank"] == [1]
    for record in artifact_records(store):
        finished = datetime.fromisoformat(record.provenance["finished"])
        began = finished - timedelta(seconds=record.provenance["seconds"])
        assert datetime.fromisoformat(lock["locked"]) < began, record.kind
    told = json.loads((store / "reports/demo/claims.json").read_text(encoding="utf-8"))
    assert told["lock"]["before_every_evaluation"] is True
    assert told["lock"]["evaluations"] == {"planned": 2, "built": 2, "before_lock": 0}
    assert [{**each, "sha256": lock["sha256"]} for each in told["lock"]["locks"]] == [lock]


def test_a_claim_changed_after_the_evaluations_is_in_the_first_lines(store, sublim_here):
    before = (store / LOCK).read_bytes()
    change = "claim 2 (transmission): alpha 0.05 → 0.1"
    code, _, said = sublim_here(*words("sweep", claims=LOOSER))
    assert code == 0
    assert f"what has changed since: {change}; --relock-claims locks them anew" in said
    assert (store / LOCK).read_bytes() == before
    _, shown, _ = sublim_here(*words("report", claims=LOOSER))
    line = shown.splitlines()[1]
    assert line == (
        f"Changed since without a new lock, which counts as stated after 2 of 2 evaluations: {change}."
    )
    assert page_text(store).index(line) < 300
    assert '<p class="alarm">The claims were locked' in (store / "reports/demo/report.html").read_text(
        "utf-8"
    )
    told = json.loads((store / "reports/demo/claims.json").read_text(encoding="utf-8"))
    assert told["lock"]["before_every_evaluation"] is False
    assert told["lock"]["changes"] == [{"locked": None, "after_evaluations": 2, "changes": [change]}]


def test_a_new_lock_is_written_on_request_beside_the_old_one(store, sublim_here):
    before = (store / LOCK).read_bytes()
    code, shown, said = sublim_here(*words("sweep", claims=LOOSER), "--relock-claims")
    assert code == 0
    assert (
        "the claims are locked anew: claim 2 (transmission): alpha 0.05 → 0.1; the older lock is kept" in said
    )
    (old,) = store.glob(f"{LOCK}.*Z")
    assert old.read_bytes() == before
    assert json.loads((store / LOCK).read_text(encoding="utf-8"))["claims"][1]["alpha"] == 0.1
    first, second = shown.splitlines()[:2]
    assert first.endswith("before all 2 evaluations of trained models.")
    assert re.fullmatch(
        rf"Changed on {TIME}, after 2 of 2 evaluations: claim 2 \(transmission\): "
        r"alpha 0\.05 → 0\.1\.",
        second,
    )
    again = (store / LOCK).read_bytes()
    sublim_here(*words("sweep", claims=LOOSER), "--relock-claims")
    assert (store / LOCK).read_bytes() == again
    assert list(store.glob(f"{LOCK}.*Z")) == [old]


def test_seeds_and_conditions_that_were_added_are_named(sublim_here):
    grown = {"train.rank": [1, 2], "train.seed": [1, 2]}
    _, shown, _ = sublim_here(*words("report", sweep__grid=grown))
    assert shown.splitlines()[1] == (
        "Changed since without a new lock, which counts as stated after 2 of 6 evaluations: "
        "train.seed 1 → 1, 2; sweep.grid.train.rank [1] → [1, 2]."
    )


def test_without_a_lock_the_report_says_so_and_a_late_one_counts_what_was_there(store, sublim_here):
    (store / LOCK).unlink()
    _, shown, _ = sublim_here(*words("report", claims=LOOSER))
    assert shown.splitlines()[0] == "The claims were not locked before the runs."
    assert '<p class="alarm">The claims were not' in (store / "reports/demo/report.html").read_text("utf-8")
    _, shown, _ = sublim_here(*words("sweep"))
    assert re.fullmatch(
        rf"The claims were locked on {TIME}, after 2 of 2 evaluations of trained models\.",
        shown.splitlines()[0],
    )
    _, shown, _ = sublim_here(*words("report"), "--out", "elsewhere")
    assert shown.splitlines()[0] == (
        "The claims are not locked yet: `sublim sweep` does it before the first run."
    )


def test_a_study_without_claims_has_no_lock_until_it_states_some(store, sublim_here):
    (store / LOCK).unlink()
    _, shown, _ = sublim_here(*words("sweep", claims=[]))
    assert not (store / LOCK).exists()
    assert "locked" not in shown


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda text: text[:-20], r"cannot be read \(.*\)"),
        (lambda text: "[]", r"cannot be read \(.*\)"),
        (lambda text: text.replace('"alpha": 0.05', '"alpha": 0.1'), "was changed after it was written"),
    ],
)
def test_a_damaged_lock_is_one_sentence(damage, fault, store, sublim_here):
    text = damage((store / LOCK).read_text(encoding="utf-8"))
    (store / LOCK).write_text(text, encoding="utf-8")
    remedy = "; put a copy of it back, or delete it, and the next sweep locks the claims anew"
    code, shown, said = sublim_here(*words("sweep"), "--quiet")
    assert (code, shown) == (1, "")
    assert re.fullmatch(rf"sublim: \S*demo\.claims\.lock {fault}{remedy}", said)
    assert (store / LOCK).read_text(encoding="utf-8") == text
    code, shown, _ = sublim_here(*words("report"))
    assert code == 0
    first = shown.splitlines()[0]
    assert re.fullmatch(rf"The claims count as not locked: \S*demo\.claims\.lock {fault}{remedy}\.", first)
    assert '<p class="alarm">The claims count' in (store / "reports/demo/report.html").read_text("utf-8")


def test_of_two_sweeps_at_once_one_locks_and_the_other_says_what_differs(store, sublim):
    (store / LOCK).unlink()
    running = [sublim(*words("sweep", claims=claims)) for claims in (SMALLEST["claims"], LOOSER)]
    said = [" ".join(process.communicate()[1].split()) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted("the claims stay locked" in text for text in said) == [False, True]
    locked = json.loads((store / LOCK).read_text(encoding="utf-8"))["claims"][1]["alpha"]
    assert locked == (0.1 if "the claims stay locked" in said[0] else 0.05)


def test_no_lock_is_lost_where_many_are_written_at_once(tmp_path):
    store = Store(tmp_path)
    stated = [statement(claims=[{"kind": "transmission", "alpha": n / 100}]) for n in range(1, 9)]
    with ThreadPoolExecutor(len(stated)) as pool:
        said = list(pool.map(lambda one: lock_claims("demo", one, store, renew=True), stated))
    locks = read_locks("demo", store)
    assert sorted(lock.claims[0]["alpha"] for lock in locks) == [n / 100 for n in range(1, 9)]
    assert said.count(None) == 1
    assert [lock.locked for lock in locks] == sorted({lock.locked for lock in locks})


def test_claims_are_compared_by_kind_whatever_their_order():
    old = statement(claims=[{"kind": "contexts"}, {"kind": "transmission"}, {"kind": "inverted_u"}])
    claims = [
        {"kind": "inverted_u", "curve": "best", "alpha": 0.1},
        {"kind": "transmission"},
        {"kind": "full_fine_tuning"},
    ]
    new = statement(claims=claims, train__epochs=3, train__learning_rate=None).model_copy(
        update={"rules": RULES_VERSION + 1}
    )
    assert changes(old, new) == [
        "claim 1 (inverted_u): alpha 0.05 → 0.1, curve fixed → best",
        "claim 3 (full_fine_tuning) is new",
        "a claim (contexts) is gone",
        f"decision rules {RULES_VERSION} → {RULES_VERSION + 1}",
        "train.learning_rate 2e-3 → default",
        "train.epochs 1 → default",
    ]
    assert changes(old, statement(claims=[*map(dict, reversed(old.claims))])) == []


def test_learning_rates_are_written_alike_whether_one_or_many():
    rates = [{"train.learning_rate": [2e-3]}, {"train.learning_rate": [2e-3, 1e-2]}]
    assert changes(*(statement(sweep__grid=one, train__learning_rate=1e-4) for one in rates)) == [
        "sweep.grid.train.learning_rate [0.002] → [0.002, 0.01]"
    ]


def test_another_filter_rule_is_a_change_though_it_has_the_same_keys():
    rules = [[{"kind": kind}] for kind in ("strip", "format")]
    assert changes(*(statement(filter__rules=one) for one in rules)) == [
        'filter.rules [{"kind": "strip"}] → [{"kind": "format"}]'
    ]


def test_an_evaluation_without_a_time_is_older_than_any_lock():
    stated = statement()
    locked = datetime.fromisoformat("2026-11-28T12:00:00+00:00")
    lock = ClaimsLock(study="demo", locked=locked, sublim="1", git=None, **stated.model_dump())
    finished = [None, "2026-11-28T11:59:59.999+00:00", "2026-11-28T12:00:00.001+00:00"]
    assert lock_sentences(lock_status([lock], stated, finished, 4)) == [
        "The claims were locked on 2026-11-28 12:00 UTC, after 2 of 4 evaluations of trained models."
    ]
