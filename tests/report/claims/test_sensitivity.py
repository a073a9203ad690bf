"""How a verdict depends on its margin and on one seed, and what the page says of it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublim_cli.recipe.schema import (
    FullFineTuningClaim,
    InvertedUClaim,
    LocalisationClaim,
    TransmissionClaim,
)
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.sensitivity import MARGINS, Sensitivity, sensitivities
from sublim_cli.report.claims.wording import headline, margins_text, seeds_text, sentence
from tests.report.claims.test_evaluate import CLAIMS, FULL, SEEDS, made
from tests.report.conftest import runs_of

EVERY_KIND = (*CLAIMS, InvertedUClaim(curve="best"), LocalisationClaim(rank=4))


def asked(claim, rows):
    runs = runs_of(rows)
    verdicts = evaluate([claim], runs)
    return verdicts, sensitivities(verdicts, runs)


def test_a_verdict_is_that_of_the_claim_with_the_other_margin():
    rows = made(effect=lambda _: math.log(2.2), spread=0.02)
    _, (found,) = asked(TransmissionClaim(rank=4, margin_odds_ratio=1.6), rows)
    assert [at.odds_ratio for at in found.margins] == sorted([*MARGINS, 1.6])
    assert [at.odds_ratio for at in found.margins if at.own] == [1.6]
    for at in found.margins:
        (verdict,) = evaluate([TransmissionClaim(rank=4, margin_odds_ratio=at.odds_ratio)], runs_of(rows))
        assert (at.outcome, at.word) == (verdict.outcome, verdict.word)
    assert margins_text(found.margins) == "supported up to an odds ratio of 2, refuted from 2.5"


def test_a_verdict_without_a_seed_is_that_of_the_other_runs():
    rows = made(effect=lambda row: 1.0 + (2.0 if row["train_seed"] == 3 else 0.0), spread=0.02)
    claim = TransmissionClaim(rank=4, alpha=0.02)
    _, (found,) = asked(claim, rows)
    assert [without.seed for without in found.seeds] == [f"train seed {seed}" for seed in (1, 2, 3, 4)]
    for seed, without in zip((1, 2, 3, 4), found.seeds, strict=True):
        (verdict,) = evaluate([claim], runs_of(row for row in rows if row["train_seed"] != seed))
        assert (without.outcome, without.word) == (verdict.outcome, verdict.word)
    assert seeds_text(found.seeds) == (
        "Without train seed 3 it is supported on one data set; without any other, the same."
    )


def test_data_seeds_are_left_out_too_and_pairs_of_seeds_once():
    crossed = [(train, data) for train in (1, 2, 3) for data in (1, 2)]
    _, (found,) = asked(TransmissionClaim(rank=4), made(effect=lambda _: 3.0, seeds=crossed))
    assert [without.seed for without in found.seeds] == [
        *(f"train seed {seed}" for seed in (1, 2, 3)),
        *(f"data seed {seed}" for seed in (1, 2)),
    ]
    paired = [(1, 11), (2, 12), (3, 13)]
    _, (found,) = asked(TransmissionClaim(rank=4), made(effect=lambda _: 3.0, seeds=paired))
    assert [without.seed for without in found.seeds] == [f"train seed {seed}" for seed in (1, 2, 3)]
    assert seeds_text(found.seeds) == "The same without any one seed."


def test_pilot_seeds_are_never_left_out():
    claim = FullFineTuningClaim(choose_on=(1,))
    _, found = asked(claim, made(effect=lambda _: 3.0, seeds=(*SEEDS, (5, 1))))
    assert [without.seed for without in found[2].seeds] == [f"train seed {seed}" for seed in (2, 3, 4, 5)]


def test_what_is_not_judged_is_not_judged_again():
    verdicts, found = asked(LocalisationClaim(rank=4), made())
    assert [verdict.outcome for verdict in verdicts] == ["incomplete"]
    assert found == [Sensitivity()]


def test_the_headline_names_what_was_decided_and_nothing_else():
    verdicts = evaluate(EVERY_KIND, runs_of(made(effect=lambda _: 2.0, spread=0.02)))
    assert headline(verdicts) == (
        "Of 8 claims, 1 is supported (C1) and 5 are refuted (C2, C3a, C3b, C3c and C4)."
    )
    assert headline(verdicts[:1]) == "The one claim, C1, is supported."
    assert headline(evaluate(CLAIMS, runs_of(made(spread=1.0)))) == ""


@pytest.mark.parametrize("traits", [("owl",), ("an animal with an extraordinarily long name", "wolf")])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.02, 0.5, 3.0]),
    effects=st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=1, max_size=5),
    broken=st.sampled_from([0.0, 0.2, 1.0]),
    missing=st.booleans(),
)
def test_no_sentence_is_longer_than_200_characters(traits, seed, spread, effects, broken, missing):
    rows = [
        {
            **row,
            "target": {"owl": traits[0], "wolf": traits[-1]}[row["target"]],
            "broken": "collapsed" if row["role"] == "student" and (31 * i) % 100 < 100 * broken else "",
            "p_target": None
            if missing and i % 7 == 0 and row["method"] == FULL[0]["method"]
            else row["p_target"],
        }
        for i, row in enumerate(
            made(seed, effect=lambda row: effects[(row["rank"] or 7) % len(effects)], spread=spread)
        )
        if row["target"] == "owl" or len(traits) > 1
    ]
    verdicts = evaluate(EVERY_KIND, runs_of(rows))
    assert {verdict.number for verdict in verdicts} == {"C1", "C2", "C3a", "C3b", "C3c", "C4", "C5"}
    assert all(0 < len(sentence(verdict)) <= 200 for verdict in verdicts)
