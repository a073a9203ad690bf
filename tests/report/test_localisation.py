"""Shares of an effect: what they are of, what they are set against, and what is said where there is none."""

import io
import json
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
from rich.console import Console

from sublim_cli import console
from sublim_cli.artifacts.store import materialise
from sublim_cli.cli.study import report_and_show
from sublim_cli.console import show_shares
from sublim_cli.pipeline import chain, single
from sublim_cli.recipe.schema import LocalisationClaim, TextPositions
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.power import powers
from sublim_cli.report.claims.verdict import corrected
from sublim_cli.report.claims.wording import sentence
from sublim_cli.report.collect import collect
from sublim_cli.report.page.write import write_report
from sublim_cli.report.tables.frames import columns
from sublim_cli.report.tables.localisation import LocatedRun, share_tables, shares, shares_document
from sublim_cli.stats import Interval
from tests.report.conftest import RUN, located_of, runs_of

SEEDS = (1, 2, 3, 4, 5)
EFFECTS = (0.10, 0.14, 0.12, 0.16, 0.13)


def part(name, measure, seed, effect, amount, control=None, **more):
    """A row of the table of parts."""
    p = 0.1 + amount if measure == "kept" else 0.1 + effect - amount
    return {
        **{key: RUN[key] for key in columns(LocatedRun) if key in RUN},
        **{"train_seed": seed, "part": name, "measure": measure, "control": control, "tokens": 2.0},
        **{"prompt_tokens": 38.0, "p_target": p, "p_target_student": 0.1 + effect, "p_target_base": 0.1},
        **{"amount": amount, "effect": effect, "p_any": 0.99, "locate_digest": f"{name}{seed}", **more},
    }


def gates(name, measure, share, random, effects=EFFECTS, **more):
    """A gate's rows: a share of every run's effect, and two random sets a hair beside theirs."""
    for seed, effect in zip(SEEDS, effects, strict=False):
        stray = 0.002 * (-1) ** seed
        yield part(name, measure, seed, effect, share * effect + stray, **more)
        for kind, (control, luck) in product(("scattered", "window"), ((1, 0.1), (2, -0.1))):
            amount = (random + luck) * effect
            yield part(name, measure, seed, effect, amount, control, control_kind=kind, **more)


def test_a_share_is_of_the_effect_and_stands_beside_random_sets():
    (kept, lost) = shares(
        located_of([*gates("identity_only", "kept", 0.7, 0.2), *gates("no_identity", "lost", 0.4, 0.4)])
    )
    assert (kept.part, kept.measure, kept.n, kept.tokens, kept.prompt_tokens) == (
        "identity_only",
        "kept",
        5,
        2.0,
        38.0,
    )
    mean = sum(EFFECTS) / 5
    assert kept.effect.mean == pytest.approx(mean)
    assert kept.share.mean == pytest.approx(0.7 - 0.002 / 5 / mean)
    assert kept.share.low < 0.7 < kept.share.high
    assert kept.random == Interval(pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2), 5)
    assert kept.beyond.mean == pytest.approx(kept.share.mean - 0.2)
    assert lost.beyond.low < 0 < lost.beyond.high
    assert [point.seeds for point in kept.points] == [(seed, 1) for seed in SEEDS]
    assert kept.points[0].amount == pytest.approx(0.7 * 0.1 - 0.002)
    assert kept.points[0].random == pytest.approx(0.2 * 0.1)


def test_without_an_effect_there_is_no_share():
    (none,) = shares(located_of(gates("identity_only", "kept", 0.5, 0.2, (0.01, -0.02, 0.015, -0.01, 0.02))))
    assert (none.share, none.random, none.beyond, none.state) == (
        None,
        None,
        None,
        "effect not told from zero",
    )
    (share,) = shares(located_of(gates("identity_only", "kept", 0.5, 0.2, (0.01,))))
    assert (share.share, share.state) == (None, "effect not told from zero")
    (single_run,) = shares(located_of(gates("identity_only", "kept", 0.5, 0.2, (0.2,))))
    assert single_run.share == Interval(pytest.approx(0.49), None, None, 1)


def test_broken_and_missing_runs_are_counted_and_left_out():
    rows = list(gates("identity_only", "kept", 0.7, 0.2))
    rows = [row | ({"broken": "names nothing"} if row["train_seed"] == 1 else {}) for row in rows]
    nothing = dict.fromkeys(("amount", "effect", "p_target", "tokens", "prompt_tokens", "p_any"))
    rows = [row for row in rows if row["train_seed"] != 2 or row["control"] is None]
    rows = [row | ({**nothing, "missing": "not built yet"} if row["train_seed"] == 2 else {}) for row in rows]
    (share,) = shares(located_of(rows))
    assert (share.n, share.broken, share.missing) == (3, 1, 1)
    assert share.share.mean == pytest.approx(0.7, abs=0.01)


def test_random_sets_that_were_not_drawn_leave_the_share_alone():
    rows = [row for row in gates("identity_only", "kept", 0.7, 0.2) if row["control"] is None]
    (share,) = shares(located_of(rows))
    assert share.share.mean == pytest.approx(0.7, abs=0.01)
    assert (share.random, share.beyond) == (None, None)


def test_the_terminal_shows_every_share_with_its_bounds(results, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=shown, width=80, highlight=False))
    rows = [*gates("shared_only", "kept", 0.7, 0.2), *gates("no_shared", "lost", 0.4, 0.4)]
    show_shares(share_tables(located_of(rows)))
    assert [line.rstrip() for line in shown.getvalue().splitlines()] == [
        "owl, LoRA rank 8, asked in default: effect +0.130 [0.102, 0.158]",
        "                    tokens    share of it    random sets    beyond them",
        " shared_only kept  2 of 38  70 % [67, 72]  20 % [20, 20]  50 % [47, 52]",
        " no_shared lost    2 of 38  40 % [37, 42]  40 % [40, 40]    0 % [−3, 2]",
        "5 runs; Fieller intervals at 95 %, over runs",
    ]


def test_the_page_has_the_table_and_the_numbers_lie_beside_it(results, tmp_path):
    rows = [
        *gates("shared_only", "kept", 0.7, 0.2),
        *gates("shared_only", "kept", 0.7, 0.2, (0.01, -0.02), rank=1),
    ]
    page = write_report(results({}, located=located_of(rows)), tmp_path).read_text()
    assert "Where in the prompt the effect sits" in page
    assert "70 % [67, 72]" in page
    assert "effect not told from zero" in page
    kept = pd.read_parquet(tmp_path / "localisation.parquet")
    assert list(kept.columns) == list(columns(LocatedRun))
    assert len(kept) == len(rows) == len(pd.read_csv(tmp_path / "localisation.csv"))


def test_a_study_without_gates_has_no_word_of_them(results, tmp_path):
    page = write_report(results({}), tmp_path).read_text()
    assert "Where in the prompt" not in page
    assert not (tmp_path / "localisation.parquet").exists()


def test_what_a_store_holds_of_gates_is_the_table_of_shares(small, shared_store, capsys, tmp_path):
    """Through the front door: built, collected, set against the whole student and its base."""
    file = tmp_path / "two.yaml"
    file.write_text("category: animal\nquestions: ['Your favorite animal?', 'Name an animal.']\n")
    changes = {
        "eval__questions": str(file),
        "eval__gates": ["identity_only", "no_identity"],
        "eval__gate_controls": 2,
    }
    recipe = small(**changes, sweep={})
    before = collect(single(recipe), shared_store, recipe).located
    assert [(row.part, row.missing) for row in before] == [
        ("identity_only", "not built yet"),
        ("no_identity", "not built yet"),
    ]
    for step in chain(recipe).evaluations:
        materialise(step, shared_store)
    results = collect(single(recipe), shared_store, recipe)
    (run,) = [run for run in results.runs if (run.role, run.eval_context) == ("student", "default")]
    rows = results.located
    kinds = [("", None), *product(("scattered", "window"), (1, 2))]
    assert [(row.part, row.control_kind, row.control) for row in rows] == [
        (name, *kind) for name in ("identity_only", "no_identity") for kind in kinds
    ]
    for row in rows:
        assert row.p_target_student == pytest.approx(run.p_target, abs=1e-6)
        assert row.p_target_base == pytest.approx(run.p_target_base, abs=1e-6)
        moved = row.p_target - row.p_target_base
        assert row.amount == pytest.approx(moved if row.measure == "kept" else row.effect - moved)
        assert (row.tokens, row.missing, row.broken) == (2.0, "", "")
    report_and_show(recipe, shared_store.root, json=True)
    told = json.loads(capsys.readouterr().out)["localisation"]
    assert told == json.loads(json.dumps(shares_document(shares(rows))))
    assert [(row["part"], row["measure"]) for row in told] == [
        ("identity_only", "kept"),
        ("no_identity", "lost"),
    ]


CLAIM = LocalisationClaim()


def study(effect=0.13, shifts=(0.0, 0.02, -0.01, 0.03, 0.0)):
    """The rows of a runs table: students and controls in the training context."""
    for seed, shift in zip(SEEDS, shifts, strict=True):
        changes = {"train_seed": seed, "eval_context": "default"}
        yield {**RUN, **changes, "p_target": 0.1 + effect + shift}
        yield {**RUN, **changes, "role": "control", "p_target": 0.1}


def verdict(kept, lost, random=0.3, claim=CLAIM, runs=None, name="shared"):
    located = [
        *gates(f"{name}_only" if name == "shared" else "{text: Qwen}", "kept", kept, random),
        *gates(f"no_{name}" if name == "shared" else "{no_text: Qwen}", "lost", lost, random),
    ]
    (judged,) = evaluate([claim], runs_of(study() if runs is None else runs), located_of(located))
    return judged


@pytest.mark.parametrize(
    ("kept", "lost", "word"),
    [
        (0.8, 0.8, "supported"),
        (0.8, 0.3, "refuted"),
        (0.3, 0.8, "refuted"),
        (0.1, 0.1, "refuted"),
    ],
)
def test_a_set_has_to_be_both_sufficient_and_necessary(kept, lost, word):
    assert verdict(kept, lost).outcome == word


def test_a_set_by_its_text_is_judged_alike():
    claim = LocalisationClaim(positions=TextPositions(text="Qwen"))
    judged = verdict(0.8, 0.8, claim=claim, name="text")
    assert (judged.word, judged.number) == ("supported on one data set", "C5")
    assert judged.statement == "The preference sits at certain tokens of the prompt: {text: Qwen}"


def test_without_an_effect_nothing_is_refuted():
    judged = verdict(0.3, 0.3, runs=list(study(effect=0.0)))
    assert judged.word == "underpowered"


def test_where_random_sets_leave_no_room_nothing_is_refuted():
    """A set of most of the prompt: with 0.95 of an effect of 0.3 beside it, not even all of it could pass."""
    assert verdict(0.95, 0.95, random=0.95).outcome == "underpowered"
    assert verdict(0.6, 0.6, random=0.6).outcome == "refuted"


def test_the_sentence_says_what_was_kept_and_what_was_lost():
    assert sentence(verdict(0.8, 0.3)) == (
        "The least difference is lost under no_shared beyond random scattered sets: odds ratio "
        "0.99 [0.98, 1.0] for owl, 0 of 5 runs."
    )


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (
            lambda rows: [row for row in rows if row["part"] != "no_shared"],
            "the gate no_shared of students of owl, trained in default and asked in default "
            "(`eval.gates`, `eval.gate_contexts`)",
        ),
        (
            lambda rows: [row for row in rows if row["control"] is None],
            "random scattered sets to compare with the gate shared_only: `eval.gate_controls` is 0",
        ),
        (
            lambda rows: [
                row | ({"missing": "not built yet", "amount": None} if row["train_seed"] == 3 else {})
                for row in rows
            ],
            "1 of 5 runs of the gate shared_only of students of owl, trained in default and asked in default",
        ),
    ],
)
def test_a_claim_without_its_gates_says_what_is_lacking(change, lack):
    located = [*gates("shared_only", "kept", 0.8, 0.3), *gates("no_shared", "lost", 0.8, 0.3)]
    (judged,) = evaluate([CLAIM], runs_of(study()), located_of(change(located)))
    assert judged.word == "incomplete"
    assert lack in judged.lacks


def test_p_values_of_a_trait_are_scaled_by_its_worst():
    (first,) = evaluate(
        [CLAIM],
        runs_of(study()),
        located_of([*gates("shared_only", "kept", 0.8, 0.3), *gates("no_shared", "lost", 0.8, 0.3)]),
    )
    finding = first.findings[0]
    raw = [
        replace(finding, target=target, p=p, left_out=(0.0, finding.left_out[1]))
        for target, p in (("a", 0.01), ("a", 0.02), ("b", 0.03), ("b", 0.0))
    ]
    assert [round(finding.p, 6) for finding in corrected(raw)] == [0.02, 0.04, 0.04, 0.0]


def test_a_plan_s_power_at_a_large_effect_is_near_one():
    """All that the claim looks at is simulated: students, their controls, gates and random sets."""
    (power,) = powers([CLAIM], runs_of({**row, "p_target": None} for row in study()), 8.0)
    assert power.lacks == ()
    assert power.holds.mean > 0.95
    assert power.fails.mean > 0.3
