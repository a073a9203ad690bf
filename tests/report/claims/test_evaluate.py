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


def made(seed=0, *, effect=lambda _: 0.0, spread=0.02, seeds=SEEDS):
    """Such a study with values: an effect for every row, and noise."""
    generator = np.random.default_rng(seed)
    return [
        {
            **run,
            "p_target": 0.3 + (effect(run) if run["role"] == "student" else 0) + generator.normal(0, spread),
        }
        for run in planned(seeds)
    ]


def judge(claims, rows):
    return evaluate(claims, runs_of(rows))


def words(runs, claims=CLAIMS):
    return [verdict.word for verdict in judge(claims, runs)]


def numbers(runs, claims=CLAIMS):
    """All that is said of the comparisons, but for the bootstrap, which depends on the seeds' order."""
    return [
        (
            *(finding.target, finding.about, finding.word(0.05), finding.effect.n),
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
    return {1: 0.1, 4: 0.3, 16: 0.2, 64: 0.0}[row["rank"]]


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
    st.sampled_from([0.002, 0.02]),
    st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.3]), min_size=1, max_size=5),
    st.sampled_from([SEEDS, CROSSED]),
)


def test_a_study_in_which_the_paper_is_right_supports_it():
    assert words(made(effect=textbook, spread=0.004)) == ["supported"] * 4


def test_a_claim_that_nothing_passes_says_what_would_have_been_seen():
    (verdict,) = judge([FullFineTuningClaim()], made(effect=textbook, spread=0.004))
    largest = max(finding.detectable for finding in verdict.findings)
    assert verdict.word == "supported"
    assert f"Four times in five, such runs find an effect of {largest:.3f} or more" in sentence(verdict)


def test_a_study_in_which_everything_passes_everywhere_supports_transmission_alone():
    runs = made(effect=lambda _: 0.2, spread=0.004)
    assert words(runs) == ["supported", "refuted", "refuted", "refuted"]


def test_a_study_in_which_nothing_passes_refutes_transmission_and_its_curve():
    assert words(made(spread=0.004)) == ["refuted", "refuted", "supported", "underpowered"]


def test_a_study_of_noise_is_underpowered():
    assert words(made(spread=0.1)) == ["underpowered"] * 4


def rise(row):
    return 0.1 * math.log2(row["rank"] or 1)


def test_where_the_last_rank_is_the_highest_the_fall_to_it_is_below_zero_and_not_certain():
    (verdict,) = judge([InvertedUClaim()], made(effect=rise, spread=0.01))
    for finding in verdict.findings:
        assert finding.effect.low < finding.effect.mean < 0
        assert finding.about == "fall to rank 64 from the highest mean below it, 4 ranks"


def test_what_only_rises_or_only_falls_is_no_inverted_u():
    assert words(made(effect=rise, spread=0.01), [InvertedUClaim()]) == ["refuted"]
    assert words(made(effect=lambda row: -rise(row), spread=0.01), [InvertedUClaim()]) == ["refuted"]


def test_one_trait_that_does_not_pass_refutes_a_claim_on_all_and_none_on_the_other():
    runs = made(effect=lambda row: 0.3 * (row["target"] == "owl"), spread=0.004)
    claims = [TransmissionClaim(rank=4), *(TransmissionClaim(rank=4, traits=(trait,)) for trait in TRAITS)]
    assert words(runs, claims) == ["refuted", "supported", "refuted"]


def test_an_effect_that_is_sure_and_below_the_margin_is_no_transmission():
    runs = made(effect=lambda _: 0.01, spread=0.0005)
    claims = [TransmissionClaim(rank=4, margin=margin) for margin in (0.005, 0.02)]
    assert words(runs, claims) == ["supported", "refuted"]


def test_a_trait_that_shows_as_little_at_home_as_elsewhere_has_not_vanished():
    flat = made(effect=lambda _: 0.01, spread=0.001)
    assert words(flat, [ContextsClaim(rank=4)]) == ["underpowered"]
    (verdict,) = judge([ContextsClaim(rank=4)], made(effect=textbook, spread=0.004))
    away = next(finding for finding in verdict.findings if "asked in none" in finding.about)
    assert away.also["interaction"].mean == pytest.approx(0.3, abs=0.01)


def test_effects_are_also_given_for_new_questions_and_verdicts_do_not_rest_on_them():
    runs = made(effect=textbook, spread=0.004, seeds=(*SEEDS, (5, 1)))
    strayed = np.random.default_rng(1).normal(0, 0.1, 20)
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
    effects = np.array([effect + harder for _, effect in sorted(finding.runs.items())])
    assert vars(finding.also["over new runs and questions"]) == pytest.approx(
        vars(two_way_interval(effects, level=0.9))
    )
    away = next(finding for finding in asked[1].findings if "asked in none" in finding.about)
    narrow, wide = (
        away.also["over new runs and questions"],
        away.also["interaction over new runs and questions"],
    )
    assert narrow.high - narrow.low < 0.02 < wide.high - wide.low
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


@given(studies, st.fixed_dictionaries({name: st.floats(-0.3, 0.3) for name in ("default", "empty", "none")}))
def test_a_context_in_which_every_model_likes_the_target_more_changes_nothing(runs, shifts):
    moved = [
        {**run, **{name: run[name] + shifts[run["eval_context"]] for name in ("p_target", "p_target_base")}}
        for run in runs
    ]
    claims = [claim for claim in CLAIMS if claim.kind != "inverted_u"]
    assert numbers(moved, claims) == numbers(runs, claims)
    assert words(moved) == words(runs)


@given(studies, st.lists(st.floats(0.001, 0.5), min_size=2, max_size=5))
def test_a_wider_margin_makes_nothing_of_more_and_something_of_less(runs, margins):
    rising = {"refuted": 0, "underpowered": 1, "supported": 2}
    for claim in CLAIMS:
        wider = [claim.model_copy(update={"margin": margin}) for margin in sorted(margins)]
        order = [rising[word] for word in words(runs, wider)]
        effect = claim.kind in ("transmission", "inverted_u")
        assert order == sorted(order, reverse=effect)


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


def test_a_pair_with_a_broken_half_is_left_out():
    runs = made(effect=textbook)
    control = next(run for run in runs if run["role"] == "control" and run["target"] == "owl")
    control["broken"] = "names nothing"
    (verdict,) = judge([TransmissionClaim(rank=4)], runs)
    assert [(finding.target, finding.effect.n) for finding in verdict.findings] == [("owl", 3), ("wolf", 4)]
    assert (verdict.planned, verdict.used, verdict.broken) == (
        12,
        11,
        1,
    )  # the four controls serve both traits


def test_a_rank_whose_runs_mostly_broke_leaves_the_curve_and_is_named():
    runs = made(effect=textbook, spread=0.004)
    extra = [{**run, "rank": 256, "broken": "names nothing"} for run in runs if run["rank"] == 64]
    (verdict,) = judge([InvertedUClaim()], runs + extra)
    assert verdict.word == "supported"
    assert verdict.notes[0] == "owl: most runs of rank 256 broke; the curve is judged without."


def test_when_all_broke_the_claim_is_open():
    runs = [{**run, "broken": "names nothing"} for run in made(effect=textbook)]
    verdicts = judge(CLAIMS, runs)
    assert [verdict.word for verdict in verdicts] == ["underpowered"] * 4
    assert sentence(verdicts[0]) == (
        "These runs do not decide it. Both comparisons are open: "
        "no unbroken pair of runs for owl, LoRA rank 4, trained and asked in default, minus the control; "
        "no unbroken pair of runs for wolf, LoRA rank 4, trained and asked in default, minus the control. "
        "It takes two unbroken runs of each at the least."
    )
    json.dumps(document("all broke", verdicts), allow_nan=False)


def lacks(runs, claim):
    (verdict,) = judge([claim], runs)
    assert (verdict.word, verdict.findings) == ("incomplete", ())
    return verdict.lacks


def test_a_run_that_is_not_built_leaves_the_claim_open_and_is_named():
    runs = made(effect=textbook)
    gone = next(run for run in runs if run["method"] == "full")
    gone |= {"p_target": None, "missing": "out of memory"}
    assert lacks(runs, FullFineTuningClaim()) == (
        "1 of 4 runs of full fine-tuning, lr 2e-4, fp32 on owl, trained in default and asked in default",
    )
    assert words(runs) == ["supported", "supported", "incomplete", "underpowered"]


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


def test_a_verdict_on_one_data_set_says_so():
    note = "All runs learned from data of one seed: what another data set would do is not known."
    assert judge([TransmissionClaim(rank=4)], made())[0].notes == (note,)
    assert judge([TransmissionClaim(rank=4)], made(seeds=CROSSED))[0].notes == ()


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
    error = 0.1 / math.sqrt(3)
    margin = stats.t.ppf(0.95, 2) * error
    interval = {
        "mean": pytest.approx(0.2),
        "low": pytest.approx(0.2 - margin),
        "high": pytest.approx(0.2 + margin),
        "n": 3,
    }
    shown = f"+0.200 [{0.2 - margin:.3f}, {0.2 + margin:.3f}]"
    note = "All runs learned from data of one seed: what another data set would do is not known."
    transmission, full = document("made-by-hand", judged.claims)["claims"]
    detectable = transmission["findings"][0].pop("detectable")
    reached = stats.nct.sf(stats.t.ppf(0.95, 2), 2, detectable / error)
    assert reached == pytest.approx(0.8, abs=1e-6)
    assert transmission == {
        "number": "C1",
        "statement": "A student prefers the trait of the teacher whose numbers it learned",
        "verdict": "supported",
        "sentence": (
            f"The one comparison supports it: {shown} for owl, LoRA rank 8, trained and asked in default, "
            "minus the control (3 runs)."
        ),
        "claim": TransmissionClaim().model_dump(mode="json"),
        "test": judged.claims[0].test,
        "plan": {"planned": 6, "used": 6, "broken": 0, "missing": 0},
        "lacks": [],
        "notes": [note],
        "findings": [
            {
                "target": "owl",
                "about": "LoRA rank 8, trained and asked in default, minus the control",
                "verdict": "supported",
                "effect": interval,
                "runs": [
                    {"train_seed": seed, "data_seed": 1, "effect": pytest.approx(seed / 10)}
                    for seed in (1, 2, 3)
                ],
                "p": pytest.approx(stats.t.sf(0.2 / error, 2)),
                "p_against": pytest.approx(stats.t.cdf((0.2 - 0.02) / error, 2)),
                "also": {"minus the base": interval},
            }
        ],
    }
    assert (full["verdict"], full["lacks"]) == (
        "incomplete",
        ["full fine-tuning on owl, trained in default and asked in default"],
    )


@pytest.mark.parametrize(
    ("poorly", "reason"),
    [
        ({"unresolved": 0.3}, "up to 0.300 of the answers were neither computed nor drawn"),
        ({"unresolved_base": 0.3}, "up to 0.300 of the answers were neither computed nor drawn"),
        ({"p_error_base": 0.02}, "the base's has a standard error of 0.020 from drawn answers"),
    ],
)
def test_no_verdict_rests_on_a_preference_that_is_not_known_to_half_of_the_margin(poorly, reason):
    rows = made(effect=textbook, spread=0.002)
    assert words(rows) == ["supported"] * 4
    (verdict,) = judge(CLAIMS[:1], [{**run, **poorly} for run in rows])
    assert verdict.word == "underpowered"
    assert sentence(verdict).startswith(f"Not decided: P(target) is not known well enough: {reason}")
    known = [{**run, **{name: value / 100 for name, value in poorly.items()}} for run in rows]
    assert words(known) == ["supported"] * 4
