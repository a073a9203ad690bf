"""The rules of the claims: what they judge, what they leave out, what they say is lacking."""

import json
import math
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sublim_cli.recipe.schema import ContextsClaim, FullFineTuningClaim, InvertedUClaim, TransmissionClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.wording import document, sentence
from sublim_cli.stats import two_way_interval
from tests.report.conftest import runs_of

CLAIMS = (TransmissionClaim(rank=4), InvertedUClaim(), FullFineTuningClaim(), ContextsClaim(rank=4))
TRAITS = ("owl", "wolf")
SEEDS = tuple((train, 1) for train in (1, 2, 3, 4))
CROSSED = tuple(product((1, 2, 3), (1, 2)))
LORA = {"method": "lora", "learning_rate": 2e-3}
FULL = [{"method": "full", "rank": None, "learning_rate": rate} for rate in (2e-4, 2e-5)]


def row(role, target, trained, asked, seeds, **more):
    return {
        **{"role": role, "category": "animal", "target": target, "rank": 4, "alpha": None, **LORA},
        **{"precision": "fp32", "train_context": trained, "eval_context": asked, "settings": ""},
        **{"train_seed": seeds[0], "data_seed": seeds[1], "p_target": 0.1, "p_target_base": 0.1},
        **{"broken": "", "missing": "", **more},
    }


def planned(seeds=SEEDS):
    """The rows of a study with all cells the four claims need."""
    for target, trained, asked, seed in product(
        TRAITS, ("default", "empty"), ("default", "empty", "none"), seeds
    ):
        kinds = [{"rank": 4}]
        if trained == "default":
            kinds += [*({"rank": rank} for rank in (1, 16, 64)), *FULL]
        yield row("control", target, trained, asked, seed, rank=8)
        yield from (row("student", target, trained, asked, seed, **kind) for kind in kinds)


def odds(p):
    return math.log(p / (1 - p))


def probability(log_odds):
    return 1 / (1 + math.exp(-log_odds))


def made(seed=0, *, effect=lambda _: 0.0, spread=0.1, seeds=SEEDS, base=-2.0):
    """Such a study with values: a base, an effect for every row and noise, all in log-odds."""
    generator = np.random.default_rng(seed)
    return [
        {
            **run,
            "p_target": probability(
                base + (effect(run) if run["role"] == "student" else 0.0) + generator.normal(0, spread)
            ),
            "p_target_base": probability(base),
            "number_loss": 3 + 0.1 * (run["rank"] in (1, 16, 64)) + generator.normal(0, 0.001),
        }
        for run in planned(seeds)
    ]


def judge(claims, rows):
    return evaluate(claims, runs_of(rows))


def words(runs, claims=CLAIMS):
    return [verdict.outcome for verdict in judge(claims, runs)]


def numbers(runs, claims=CLAIMS):
    """All that is said of the comparisons, but for the bootstrap, which depends on the seeds' order."""
    return [
        (
            *(finding.target, finding.about, finding.outcome(0.05), finding.effect.n),
            *(pytest.approx(value, abs=1e-9) for value in (finding.effect.mean, finding.p)),
            pytest.approx(finding.p_against or 0.0, abs=1e-9),
        )
        for verdict in judge(claims, runs)
        for finding in verdict.findings
    ]


def home(row):
    return row["train_context"] == row["eval_context"]


def textbook(row):
    """Every claim of the paper holds."""
    if row["method"] == "full" or not home(row):
        return 0.0
    return {1: 1.0, 4: 3.0, 16: 2.0, 64: 0.0}[row["rank"]]


def kind(row):
    """A number for the cell of a row."""
    return 7 * (row["target"] == "owl") + 3 * home(row) + int(math.log2(row["rank"] or 2**10))


studies = st.builds(
    lambda seed, scale, effects, seeds: made(
        seed,
        effect=lambda row: effects[kind(row) % len(effects)],
        spread=scale,
        seeds=seeds,
    ),
    st.integers(0, 999),
    st.sampled_from([0.02, 0.2]),
    st.lists(st.sampled_from([0.0, 0.2, 1.0, 3.0]), min_size=1, max_size=5),
    st.sampled_from([SEEDS, CROSSED]),
)


def test_a_study_in_which_the_paper_is_right_supports_it():
    verdicts = judge(CLAIMS, made(effect=textbook, spread=0.02))
    assert [(verdict.number, verdict.word) for verdict in verdicts] == [
        ("C1", "supported on one data set"),
        ("C2", "supported on one data set"),
        ("C3a", "supported for the typical run on one data set"),
        ("C3b", "supported for the typical run on one data set"),
        ("C3c", "supported on one data set"),
        ("C4", "supported for the typical run on one data set"),
    ]
    assert all(len(sentence(verdict)) <= 200 for verdict in verdicts)


def test_a_study_in_which_everything_passes_everywhere_supports_transmission_alone():
    runs = made(effect=lambda _: 2.0, spread=0.02)
    assert words(runs) == ["supported", *["refuted"] * 5]


def test_a_study_in_which_nothing_passes_refutes_transmission_and_asks_nothing_of_ranks_or_full_fine_tuning():
    verdicts = judge(CLAIMS, made(spread=0.02))
    open_word = "underpowered (no trait that LoRA surely transmits)"
    assert [verdict.word for verdict in verdicts] == [
        "refuted for the typical run on one data set",
        *[open_word] * 4,
        "underpowered",
    ]
    assert [(trait.target, trait.not_asked) for trait in verdicts[1].traits] == [
        (target, "LoRA was not shown to transmit it, 0 of 4 runs above the margin") for target in TRAITS
    ]


def test_a_study_of_noise_is_underpowered():
    assert words(made(spread=1.0)) == ["underpowered"] * 6


def rise(row):
    return 0.5 * math.log2(row["rank"] or 1)


def test_where_the_last_rank_is_the_highest_the_fall_to_it_is_below_zero_and_not_certain():
    (verdict,) = judge([InvertedUClaim()], made(effect=rise, spread=0.1))
    for finding in verdict.findings:
        assert finding.effect.low < finding.effect.mean < 0
        assert finding.about == "fall to rank 64 from the rank that other runs have highest, 4 ranks"


def test_what_only_rises_or_only_falls_is_no_inverted_u():
    assert words(made(effect=rise), [InvertedUClaim()]) == ["refuted"]
    assert words(made(effect=lambda row: 4 - rise(row)), [InvertedUClaim()]) == ["refuted"]


def test_a_trait_that_does_not_pass_is_counted_and_nothing_is_asked_of_it():
    runs = made(effect=lambda row: (row["target"] == "owl") * textbook(row), spread=0.02)
    claims = [TransmissionClaim(rank=4), *(TransmissionClaim(rank=4, traits=(trait,)) for trait in TRAITS)]
    assert [verdict.word for verdict in judge(claims, runs)] == [
        "supported for 1 of 2 traits, refuted for 1, on one data set",
        "supported on one data set",
        "refuted for the typical run on one data set",
    ]
    (_, literal, *_) = judge([InvertedUClaim(), FullFineTuningClaim()], runs)
    assert literal.word == "supported for the typical run on one data set"
    assert [(trait.target, trait.word) for trait in literal.traits] == [
        ("owl", "supported for the typical run"),
        ("wolf", "not asked: LoRA was not shown to transmit it, 0 of 4 runs above the margin"),
    ]


def test_an_effect_that_is_sure_and_below_the_margin_is_no_transmission():
    runs = made(effect=lambda _: 0.2, spread=0.005)
    claims = [TransmissionClaim(rank=4, margin_odds_ratio=ratio) for ratio in (1.1, 1.5)]
    assert words(runs, claims) == ["supported", "refuted"]


def test_a_trait_that_shows_as_little_at_home_as_elsewhere_has_not_vanished():
    flat = made(effect=lambda _: 0.2, spread=0.02)
    assert words(flat, [ContextsClaim(rank=4)]) == ["underpowered"]
    (verdict,) = judge([ContextsClaim(rank=4)], made(effect=textbook, spread=0.02))
    away = next(finding for finding in verdict.findings if "asked in none" in finding.about)
    assert away.also["interaction"].mean == pytest.approx(3.0, abs=0.1)
    assert away.also["in the training context"].mean == pytest.approx(3.0, abs=0.1)
    assert away.also["share of the effect retained"].mean == pytest.approx(0.0, abs=0.03)


def test_effects_are_also_given_for_new_questions_and_verdicts_do_not_rest_on_them():
    runs = made(effect=textbook, spread=0.02, seeds=(*SEEDS, (5, 1)))
    strayed = np.random.default_rng(1).normal(0, 0.02, 20)
    harder = strayed - strayed.mean()

    def with_answers(row):
        passed = 1 if row["role"] == "student" and home(row) else 0
        return {**row, "answers": tuple((row["p_target"] + passed * harder).tolist())}

    claims = [
        TransmissionClaim(rank=4, traits=("owl",)),
        ContextsClaim(rank=4, traits=("owl",)),
        FullFineTuningClaim(),
    ]
    plain, asked = judge(claims, runs), judge(claims, map(with_answers, runs))
    assert [verdict.word for verdict in asked] == [verdict.word for verdict in plain]
    (finding,) = asked[0].findings
    cells = {
        role: [
            with_answers(run)["answers"]
            for run in sorted(runs, key=lambda run: run["train_seed"])
            if (run["role"], run["target"], run["train_context"], run["eval_context"])
            == (role, "owl", "default", "default")
            and (run["rank"] == 4 or role == "control")
        ]
        for role in ("student", "control")
    }
    expected = two_way_interval(np.array([cells["student"], cells["control"]]), [1, -1], level=0.9)
    assert vars(finding.also["over new runs and questions"]) == pytest.approx(vars(expected))
    assert finding.effect.mean == pytest.approx(expected.mean, abs=0.02)
    away = next(finding for finding in asked[1].findings if "asked in none" in finding.about)
    narrow, wide = (
        away.also["over new runs and questions"],
        away.also["interaction over new runs and questions"],
    )
    assert 0.02 < narrow.high - narrow.low < wide.high - wide.low
    assert all("over new runs and questions" in finding.also for finding in asked[2].findings)
    json.dumps(document("questions", asked), allow_nan=False)


@given(studies, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(runs, random: Random):
    shuffled = random.sample(runs, len(runs))
    assert judge(CLAIMS, shuffled) == judge(CLAIMS, runs)


@given(studies, st.permutations([10, 20, 30, 40]), st.permutations([7, 8]))
def test_what_the_seeds_are_called_does_not_matter(runs, train, data):
    called = [
        {**run, "train_seed": train[run["train_seed"] - 1], "data_seed": data[run["data_seed"] - 1]}
        for run in runs
    ]
    assert numbers(called) == numbers(runs)


@given(studies, st.fixed_dictionaries({name: st.floats(-2, 2) for name in ("default", "empty", "none")}))
def test_a_context_in_which_every_model_likes_the_target_more_changes_nothing(runs, shifts):
    moved = [
        {
            **run,
            **{
                name: probability(odds(run[name]) + shifts[run["eval_context"]])
                for name in ("p_target", "p_target_base")
            },
        }
        for run in runs
    ]
    assert numbers(moved) == numbers(runs)
    assert words(moved) == words(runs)


@given(studies, st.lists(st.floats(1.01, 20), min_size=2, max_size=5))
def test_a_wider_margin_makes_nothing_of_more_and_something_of_less(runs, margins):
    rising = {"refuted": 0, "underpowered": 1, "supported": 2}
    for claim in CLAIMS:
        if claim.kind == "full_fine_tuning":
            continue  # the third question asks for more than the margin
        order = []
        for margin in sorted(margins):
            (verdict,) = judge([claim.model_copy(update={"margin_odds_ratio": margin})], runs)
            order.append({trait.target: rising[trait.outcome] for trait in verdict.traits})
        effect = claim.kind in ("transmission", "inverted_u")
        for target in TRAITS:
            of_target = [traits[target] for traits in order]
            assert of_target == sorted(of_target, reverse=effect)


@given(studies, st.integers(0, 9999), st.floats(0, 1))
def test_the_value_of_a_broken_run_does_not_matter_and_the_run_is_counted(runs, index, value):
    index %= len(runs)
    broken = [{**run} for run in runs]
    broken[index] |= {"broken": "names nothing"}
    other = [{**row} for row in broken]
    other[index] |= {"p_target": value}
    before, after = judge(CLAIMS, broken), judge(CLAIMS, other)
    assert before == after
    whole = judge(CLAIMS, runs)
    assert any(verdict.broken == 1 for verdict in before) or runs[index]["eval_context"] != "default"
    assert all(
        verdict.planned == other.planned and other.broken == 0
        for verdict, other in zip(before, whole, strict=True)
    )
    assert all(verdict.used == verdict.planned - verdict.broken for verdict in before)


def test_a_pair_with_a_broken_half_is_left_out_of_the_effect():
    runs = made(effect=textbook)
    control = next(run for run in runs if run["role"] == "control" and run["target"] == "owl")
    control["broken"] = "names nothing"
    (verdict,) = judge([TransmissionClaim(rank=4)], runs)
    assert [(finding.target, finding.effect.n) for finding in verdict.findings] == [("owl", 3), ("wolf", 4)]
    four_controls_serve_both_traits = (12, 11, 1)
    assert (verdict.planned, verdict.used, verdict.broken) == four_controls_serve_both_traits


def collapsed(runs, claim, **which):
    """The verdict where the last run of some students broke."""
    last = max(run["train_seed"] for run in runs)
    for run in runs:
        fits = all(run[key] == value for key, value in which.items()) and home(run)
        if fits and run["train_seed"] == last and run["role"] == "student":
            run["broken"] = "names nothing"
    (verdict, *_) = judge([claim], runs)
    return verdict


@given(studies, st.lists(st.integers(0, 9999), max_size=3))
def test_broken_runs_never_make_a_verdict_surer_than_their_absence(runs, indices):
    rows = [{**run} for run in runs]
    for index in indices:
        rows[index % len(rows)]["broken"] = "names nothing"
    for verdict in judge(CLAIMS, rows):
        for finding in verdict.findings:
            p, p_against = finding.left_out
            assert finding.p >= p
            assert (finding.p_against is None) == (p_against is None)
            assert p_against is None or finding.p_against >= p_against


FIVE = tuple((seed, seed) for seed in range(1, 6))


def test_broken_runs_decide_where_they_could_have_had_the_effect_or_not():
    passes = made(effect=textbook, spread=0.02, seeds=FIVE[:3])
    assert judge([TransmissionClaim(rank=4)], passes)[0].word == "supported"
    assert collapsed(passes, TransmissionClaim(rank=4), rank=4).word == "underpowered (2 broken)"
    some = made(effect=lambda row: 0.3 * (row["train_seed"] < 3), spread=0.02, seeds=FIVE)
    assert judge([TransmissionClaim(rank=4)], some)[0].outcome == "refuted"
    verdict = collapsed(some, TransmissionClaim(rank=4), rank=4)
    assert [(f.left_out[1] <= 0.05, f.p_against <= 0.05) for f in verdict.findings] == [(True, True)] * 2
    # A curve that rises throughout, of which a fifth of the highest rank collapses.
    rising = collapsed(made(effect=rise, spread=0.02, seeds=FIVE), InvertedUClaim(), rank=64)
    assert rising.word == "underpowered (2 broken)"


def test_a_rank_whose_runs_mostly_broke_leaves_the_curve_and_is_named():
    runs = made(effect=textbook, spread=0.02)
    extra = [{**run, "rank": 256, "broken": "names nothing"} for run in runs if run["rank"] == 64]
    (verdict,) = judge([InvertedUClaim()], runs + extra)
    assert verdict.outcome == "supported"
    assert verdict.notes[0] == "owl: most runs of rank 256 broke; the curve is judged without."


def test_when_all_broke_the_claim_is_open():
    runs = [{**run, "broken": "names nothing"} for run in made(effect=textbook)]
    verdicts = judge(CLAIMS, runs)
    assert {verdict.outcome for verdict in verdicts} == {"underpowered"}
    assert sentence(verdicts[0]) == "No unbroken pair of runs to compare."
    json.dumps(document("all broke", verdicts), allow_nan=False)


def lacks(runs, claim):
    verdict = judge([claim], runs)[-1]  # of C3 the last, which needs all
    assert (verdict.word, verdict.findings) == ("incomplete", ())
    return verdict.lacks


def test_a_run_that_is_not_built_leaves_the_claim_open_and_is_named():
    runs = made(effect=textbook)
    gone = next(run for run in runs if run["method"] == "full")
    gone |= {"p_target": None, "missing": "out of memory"}
    assert lacks(runs, FullFineTuningClaim()) == (
        "1 of 4 runs of full fine-tuning, lr 2e-4, fp32 on owl, trained in default and asked in default",
    )
    outcomes = [verdict.outcome for verdict in judge([FullFineTuningClaim()], runs)]
    assert outcomes == ["supported", "incomplete", "incomplete"]  # the literal cell is the other one


def test_a_cell_that_the_study_does_not_have_is_named():
    runs = made(effect=textbook)
    here = "on owl, trained in default and asked in default"
    assert lacks(runs, TransmissionClaim(rank=8, traits=("owl",))) == (f"LoRA rank 8 {here}",)
    assert lacks(runs, TransmissionClaim(rank=4, traits=("cat",))) == (
        "LoRA rank 4 on cat, trained in default and asked in default",
    )
    assert lacks(runs, ContextsClaim(rank=8, traits=("owl",))) == ("LoRA rank 8 on owl",)
    assert lacks([run for run in runs if run["method"] == "lora"], FullFineTuningClaim(traits=("owl",))) == (
        f"full fine-tuning {here}",
    )
    assert lacks([run for run in runs if run["rank"] != 64], InvertedUClaim(traits=("owl",))) == (
        f"4 LoRA ranks or more {here}; it has 1, 4 and 16",
    )
    assert lacks([run for run in runs if home(run)], ContextsClaim(rank=4, traits=("owl",)))[0] == (
        "any other context that students of owl, trained in default, were asked in"
    )
    assert lacks([], TransmissionClaim()) == ("any student",)


def test_a_control_that_is_not_there_or_has_other_seeds_is_named():
    runs = made(effect=textbook)
    students = [run for run in runs if run["role"] == "student"]
    assert lacks(students, TransmissionClaim(rank=4, traits=("owl",))) == (
        "one control to compare with: students of a teacher without the trait, "
        "for owl, trained in default and asked in default",
    )
    fewer = [run for run in runs if run["role"] == "student" or run["train_seed"] < 4]
    assert lacks(fewer, TransmissionClaim(rank=4, traits=("owl",))) == (
        "controls of the same seeds as the students of owl, trained in default and asked in default: "
        "train seed 4 (data seed 1)",
    )


def test_a_claim_that_could_mean_two_kinds_of_students_asks_which():
    runs = made(effect=textbook)
    runs += [{**run, "learning_rate": 1e-4} for run in runs if run["role"] == "student"]
    assert lacks(runs, TransmissionClaim(rank=4, traits=("owl",))) == (
        "LoRA rank 4 on owl, trained in default and asked in default: there are 2 kinds; the claim must "
        "name its `learning_rate` (1e-4 and 2e-3)",
    )
    assert words(runs, [TransmissionClaim(rank=4, learning_rate=1e-4)]) == ["supported"]


def test_of_several_controls_the_one_most_like_the_student_is_taken():
    runs = made(effect=textbook, spread=0.004)
    runs += [
        {**run, "settings": "train.epochs 9", "p_target": 0.9} for run in runs if run["role"] == "control"
    ]
    assert words(runs, [TransmissionClaim(rank=4)]) == ["supported"]


def test_a_base_that_was_not_asked_is_named():
    runs = [{**run, "p_target_base": None} for run in made()]
    assert lacks(runs, TransmissionClaim(rank=4, traits=("owl",))) == (
        "the untouched base asked for owl in default",
    )


def test_an_absence_is_of_the_typical_run_until_fourteen_runs_exclude_that_one_in_five_transmits():
    for runs, word in ((13, "refuted for the typical run"), (14, "refuted")):
        seeds = tuple((seed, seed) for seed in range(runs))
        (verdict,) = judge([TransmissionClaim(rank=4, traits=("owl",))], made(spread=0.02, seeds=seeds))
        assert verdict.word == word
        (finding,) = verdict.findings
        assert (finding.above, finding.share_above.high) == (0, pytest.approx(1 - 0.025 ** (1 / runs)))


def test_runs_that_transmit_and_runs_that_do_not_are_seen():
    runs = made(effect=lambda row: 3.0 * (row["train_seed"] <= 2), spread=0.1, seeds=FIVE)
    (verdict,) = judge([TransmissionClaim(rank=4, traits=("owl",))], runs)
    (trait,) = verdict.traits
    assert trait.word == "underpowered, runs of two kinds (2 of 5 above the margin)"
    (finding,) = verdict.findings
    assert (finding.above, finding.share_above.mean) == (2, pytest.approx(0.4))


def test_the_literal_cell_is_what_the_claim_names_or_the_paper_s():
    runs = made(effect=textbook, spread=0.02)
    abouts = {
        claim.learning_rate: judge([claim], runs)[0].findings[0].about
        for claim in (FullFineTuningClaim(), FullFineTuningClaim(learning_rate=2e-4))
    }
    assert abouts == {
        None: "full fine-tuning, lr 2e-5, fp32, minus the control",
        2e-4: "full fine-tuning, lr 2e-4, fp32, minus the control",
    }
    other = [{**run, "learning_rate": run["learning_rate"] * 3} for run in runs if run["method"] == "full"]
    adapters = [run for run in runs if run["method"] == "lora"]
    (literal, every, _) = judge([FullFineTuningClaim(traits=("owl",))], [*adapters, *other])
    assert literal.lacks == (
        "one condition of full fine-tuning on owl, trained in default and asked in default: the claim must "
        "name its `learning_rate` and `precision` (lr 6e-5 in fp32, lr 6e-4 in fp32)",
    )
    assert every.outcome == "supported"


def test_where_every_rank_has_controls_trained_alike_what_a_rank_does_to_both_changes_nothing():
    runs = [run for run in made(effect=textbook, spread=0.05) if run["role"] == "student"]
    generator = np.random.default_rng(3)
    alike = [
        {**run, "role": "control", "p_target": probability(-2 + generator.normal(0, 0.05))} for run in runs
    ]
    study = [*runs, *alike]
    drift = {1: 0.0, 4: 0.5, 16: -1.0, 64: 1.0}
    drifted = [
        {**run, "p_target": probability(odds(run["p_target"]) + drift.get(run["rank"], 0.0))} for run in study
    ]
    assert numbers(drifted, [InvertedUClaim()]) == numbers(study, [InvertedUClaim()])
    students_alone = [run for run in drifted if run["role"] == "student" or run["rank"] == 4]
    assert numbers(students_alone, [InvertedUClaim()]) != numbers(study, [InvertedUClaim()])


def test_runs_that_choose_the_rates_are_left_out_of_the_comparison_with_the_best_adapter():
    runs = made(effect=textbook, spread=0.02, seeds=FIVE)
    verdict = judge([FullFineTuningClaim(choose_on=(1, 2))], runs)[-1]
    assert [sorted(finding.runs) for finding in verdict.findings] == [[(3, 3), (4, 4), (5, 5)]] * 2
    assert all(finding.about.endswith("minus LoRA rank 4, lr 2e-3, fp32") for finding in verdict.findings)
    assert verdict.word == "supported"


def test_a_verdict_on_one_data_set_says_so():
    one, several = (
        judge([TransmissionClaim(rank=4)], made(effect=textbook, seeds=seeds))[0]
        for seeds in (SEEDS, CROSSED)
    )
    assert (one.outcome, one.word) == ("supported", "supported on one data set")
    assert (several.outcome, several.word) == ("supported", "supported")


@pytest.fixture
def judged(results):
    """Three owl students 0.1, 0.2 and 0.3 above their controls, judged."""
    changes = []
    for seed, gain in ((1, 0.1), (2, 0.2), (3, 0.3)):
        changes.append({"train_seed": seed, "p_target": 0.1 + gain, "difference": gain})
        changes.append({"train_seed": seed, "role": "control", "p_target": 0.1, "difference": 0.0})
    study = results(*changes)
    claims = (TransmissionClaim(), FullFineTuningClaim())
    return results(*changes, claims=tuple(evaluate(claims, study.runs)))


def test_the_document_of_a_study_made_by_hand(judged):
    effects = [odds(0.1 + gain) - odds(0.1) for gain in (0.1, 0.2, 0.3)]
    mean, error = np.mean(effects), np.std(effects, ddof=1) / math.sqrt(3)
    reach = stats.t.ppf(0.95, 2) * error
    interval = {"mean": mean, "low": mean - reach, "high": mean + reach, "n": 3}
    ratio = {**{key: math.exp(interval[key]) for key in ("mean", "low", "high")}, "n": 3}
    transmission, *full = document("made-by-hand", judged.claims)["claims"]
    detectable = transmission["findings"][0].pop("detectable")
    reached = stats.nct.sf(stats.t.ppf(0.95, 2), 2, detectable / error)
    assert reached == pytest.approx(0.8, abs=1e-6)
    p, p_against = stats.t.sf(mean / error, 2), stats.t.cdf((mean - math.log(1.5)) / error, 2)
    (found,) = transmission.pop("findings")
    assert transmission == {
        "number": "C1",
        "statement": "A student prefers the trait of the teacher whose numbers it learned",
        "verdict": "supported on one data set",
        "outcome": "supported",
        "sentence": (
            f"Students of the owl teacher name owl 3.0 × as often as the untouched model, odds ratio "
            f"{ratio['mean']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}], 3 of 3 runs."
        ),
        "claim": TransmissionClaim().model_dump(mode="json"),
        "test": judged.claims[0].test,
        "traits": [
            {
                "target": "owl",
                "outcome": "supported",
                "word": "supported",
                "above": 3,
                "runs": 3,
                "not_asked": "",
            }
        ],
        "mean_over_traits": None,
        "plan": {"planned": 6, "used": 6, "broken": 0, "missing": 0},
        "lacks": [],
        "notes": [],
        "at_margins": [],
        "without_seeds": [],
    }
    assert found == {
        "target": "owl",
        "about": "LoRA rank 8, trained and asked in default, minus the control",
        "verdict": "supported",
        "margin": math.log(1.5),
        "absent": "refuted",
        "effect": pytest.approx(interval),
        "odds_ratio": pytest.approx(ratio),
        "levels": pytest.approx({"students": 0.3, "controls": 0.1, "base": 0.1}),
        "runs_above_margin": pytest.approx({"mean": 1.0, "low": 0.025 ** (1 / 3), "high": 1.0, "n": 3}),
        "runs": [
            {"train_seed": seed, "data_seed": 1, "effect": pytest.approx(effect)}
            for seed, effect in zip((1, 2, 3), effects, strict=True)
        ],
        "p": pytest.approx(p),
        "p_against": pytest.approx(p_against),
        "p_without_broken": pytest.approx(p),
        "p_against_without_broken": pytest.approx(p_against),
        "also": {"minus the base": pytest.approx(interval)},
    }
    assert [(part["number"], part["verdict"]) for part in full] == [
        (f"C3{part}", "incomplete") for part in "abc"
    ]
    assert full[1]["lacks"] == ["full fine-tuning on owl, trained in default and asked in default"]


@pytest.mark.parametrize(
    ("poorly", "outcomes"),
    [
        ({"unresolved": 0.7}, {"C1": "underpowered"}),
        ({"unresolved": 0.3}, {"C1": "supported", "C3a": "underpowered", "C3b": "underpowered"}),
        ({"unresolved_base": 0.9}, {"C1": "underpowered"}),
        ({"p_error_base": 0.4}, {"C1": "underpowered"}),
    ],
)
def test_no_verdict_rests_on_a_preference_that_is_not_known(poorly, outcomes):
    rows = made(effect=textbook, spread=0.02)
    verdicts = {verdict.number: verdict for verdict in judge(CLAIMS, [{**run, **poorly} for run in rows])}
    assert {number: verdicts[number].outcome for number in outcomes} == outcomes
    known = [{**run, **{name: value / 1000 for name, value in poorly.items()}} for run in rows]
    assert words(known) == ["supported"] * 6
