"""Which learning rate stands for a rank, and what the four curves say, in worlds whose truth is known."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.recipe.schema import InvertedUClaim, PerRank, Recipe, TrainSection
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.page.figures.matched import matched_figure
from sublim_cli.report.rates.choose import common_seeds, grid_of
from sublim_cli.report.rates.panels import KINDS, fixed_rate, matched_curves
from tests.report.conftest import runs_of

RANKS = (1, 4, 16, 64)
RATES = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)
SEEDS = ((1, 1), (2, 2), (3, 3), (4, 4))
PRECISIONS = ("fp32", "bf16_pure")


def norm_of(rank, rate):
    """A step under alpha = rank moves the weights by the rate, in more directions at a higher rank."""
    return 1000 * rate * math.sqrt(rank)


def loss_of(norm, floor=3.0):
    """Least at a norm of two."""
    return floor + 0.02 * math.log(norm / 2) ** 2


def row(method, rank, rate, seeds, norm, loss, p, **more):
    return {
        **{"role": "student", "category": "animal", "target": "owl", "method": method, "rank": rank},
        **{"learning_rate": rate, "precision": "fp32", "settings": "", "alpha": None, "broken": ""},
        **{"train_context": "default", "eval_context": "default", "missing": ""},
        **{"train_seed": seeds[0], "data_seed": seeds[1], "update_norm": norm, "number_loss": loss},
        **{"p_target": p, "p_target_base": 0.1, "difference": p - 0.1, **more},
    }


def world(preference, *, loss=lambda rank, norm: loss_of(norm), spread=0.0, rates=RATES, full=True, seed=0):
    """A study in which a student's P(target) is `preference(rank, norm)`; data sets differ in loss."""
    generator = np.random.default_rng(seed)
    runs = []
    for rank, rate, seeds in product(RANKS, rates, SEEDS):
        norm = norm_of(rank, rate)
        level, noise = 0.3 * seeds[1], generator.normal(0, spread)
        runs.append(
            row("lora", rank, rate, seeds, norm, loss(rank, norm) + level, preference(rank, norm) + noise)
        )
    for precision, rate, seeds in product(PRECISIONS if full else (), rates, SEEDS):
        norm = norm_of(64, rate) / (4 if precision == "bf16_pure" else 1)
        values = (norm, loss_of(norm) + 0.3 * seeds[1], preference(64, norm))
        runs.append(row("full", None, rate, seeds, *values, precision=precision))
    return runs


def hump(norm):
    """Preference that over-stepping destroys."""
    return 0.1 + 0.4 * math.exp(-(math.log(norm / 2) ** 2))


def panels(rows, fixed=None):
    return matched_curves(runs_of(rows), fixed)


def curves(runs, fixed=3.2e-3):
    (panel,) = panels(runs, fixed)
    return {curve.kind: curve for curve in panel.curves}


def means(curve):
    return [point.difference.mean for point in curve.points]


def test_where_the_norm_alone_decides_the_fixed_rate_falls_and_equal_norms_are_flat():
    by_kind = curves(world(lambda rank, norm: hump(norm), spread=0.005))
    fixed = means(by_kind["fixed"])
    assert max(fixed) - fixed[-1] > 0.3
    for kind in ("best", "loss_matched", "norm_matched"):
        assert [point.row for point in by_kind[kind].points] == list(RANKS)
        assert max(means(by_kind[kind])) - min(means(by_kind[kind])) < 0.03
    assert all(abs(point.mismatch) < 1e-9 for point in by_kind["norm_matched"].points)


def test_where_the_rank_alone_decides_every_curve_shows_it():
    gains = {1: 0.1, 4: 0.4, 16: 0.2, 64: 0.1}
    by_kind = curves(world(lambda rank, norm: 0.1 + gains[rank], full=False))
    for kind in KINDS:
        assert means(by_kind[kind]) == pytest.approx(list(gains.values()))


def test_the_best_rate_is_that_of_the_lowest_loss_whatever_the_preference():
    generous = world(lambda rank, norm: 0.9, full=False)
    spiteful = world(lambda rank, norm: 0.9 - 0.4 * hump(norm), full=False)
    chosen = [curves(runs)["best"].points for runs in (generous, spiteful)]
    assert chosen[0] == chosen[1]
    for rank, point in zip(RANKS, chosen[0], strict=True):
        losses = {rate: loss_of(norm_of(rank, rate)) for rate in RATES}
        assert point.weights == {min(losses, key=losses.get): 1.0}
    assert [point.edge for point in chosen[0]] == ["", "", "", "lowest"]


def test_of_two_rates_with_the_same_loss_the_lower_is_taken():
    runs = world(lambda rank, norm: norm, loss=lambda rank, norm: 3.0, full=False)
    assert [list(point.weights) for point in curves(runs)["best"].points] == [[RATES[0]]] * 4


def test_losses_are_matched_on_the_side_of_small_steps():
    """A rank whose best is worse than another's is met before that one's best, not where it over-steps."""
    floors = {1: 3.1, 4: 3.0, 16: 3.0, 64: 3.0}
    rates = tuple(RATES[-1] / 2**halved for halved in range(10))
    runs = world(
        lambda rank, norm: math.log(norm), loss=lambda rank, norm: loss_of(norm, floors[rank]), rates=rates
    )
    curve = curves(runs)["loss_matched"]
    assert curve.reference == pytest.approx(3.1 + 0.3 * 2.5)  # the floor at rank 1; data sets add 0.3 to 1.2
    for point in curve.points:
        assert point.loss == pytest.approx(curve.reference)
        assert point.mismatch == pytest.approx(0)
        met = math.log(2) - (0 if point.row == 1 else math.sqrt(0.1 / 0.02))
        assert point.difference.mean + 0.1 == pytest.approx(met, abs=0.02)
        assert point.norm == pytest.approx(math.exp(met), rel=0.02)
        assert point.learning_rate == pytest.approx(math.exp(met) / norm_of(point.row, 1), rel=0.02)


def test_the_valley_of_the_loss_is_found_between_the_rates_of_a_grid():
    """Grids that lie otherwise about the same valley tell the same story, which their best rates do not."""
    runs = world(
        lambda rank, norm: 0.3 + 0.1 * math.log(norm),
        full=False,
        rates=tuple(4e-5 * 3**step for step in range(8)),
    )
    by_kind = curves(runs)
    assert [point.norm for point in by_kind["loss_matched"].points] == pytest.approx([2.0] * 4)
    assert max(means(by_kind["loss_matched"])) - min(means(by_kind["loss_matched"])) < 1e-6
    assert max(means(by_kind["best"])) - min(means(by_kind["best"])) > 0.05


def test_an_update_that_rounding_took_away_is_not_matched():
    runs = world(lambda rank, norm: hump(norm), full=False)
    still = [{**run, "update_norm": 0.0} if run["learning_rate"] == RATES[0] else run for run in runs]
    moved = [run for run in runs if run["learning_rate"] != RATES[0]]
    assert curves(still)["norm_matched"] == curves(moved)["norm_matched"]


def test_a_rank_that_cannot_reach_the_reference_stands_at_its_nearest_and_says_so():
    runs = world(lambda rank, norm: hump(norm), full=False)
    far = [run for run in runs if run["rank"] != 64 or run["learning_rate"] > 1e-3]
    far = [run for run in far if run["rank"] != 1 or run["learning_rate"] < 2e-3]
    points = {point.row: point for point in curves(far)["norm_matched"].points}
    reference = curves(far)["norm_matched"].reference
    assert points[1].edge == "highest"
    assert points[64].edge == "lowest"
    assert points[64].mismatch == pytest.approx(norm_of(64, 1.6e-3) / reference - 1)
    told = panels(far, 3.2e-3)[0].describe()
    assert f"the lowest rate tried, norm off by +{points[64].mismatch:.0%}".replace("%", " %") in told


def test_full_fine_tuning_is_matched_to_the_adapters_by_precision():
    (panel,) = panels(world(lambda rank, norm: hump(norm)), 3.2e-3)
    adapters = {curve.kind: curve for curve in panel.curves}
    full = {curve.kind: curve for curve in panel.full}
    assert list(full) == ["best", "loss_matched", "norm_matched"]
    for kind in full:
        assert [point.row for point in full[kind].points] == sorted(PRECISIONS)
        assert full[kind].reference == adapters[kind].reference
    assert full["norm_matched"].points[0].mismatch == pytest.approx(0)


def test_the_interval_is_that_of_the_claims_and_speaks_of_whole_runs():
    runs = world(lambda rank, norm: hump(norm), spread=0.02, full=False)
    point = curves(runs)["best"].points[1]
    (rate,) = point.weights
    chosen = [run for run in runs if (run["rank"], run["learning_rate"]) == (4, rate)]
    values = np.array([run["difference"] for run in chosen])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert point.difference.high - point.difference.mean == pytest.approx(3.182446 * error)
    chosen[0]["broken"] = "names nothing"
    again = curves(runs)["best"].points[1]
    assert (again.broken, again.difference.n, again) == (1, 3, point)


def test_a_rate_at_which_runs_break_is_not_chosen_for_the_loss_of_those_that_do_not():
    runs = world(lambda rank, norm: hump(norm), full=False)
    for run in runs:
        if (run["rank"], run["learning_rate"]) == (16, 6.4e-3):
            good = run["train_seed"] == 1
            run |= {"number_loss": 3.25 if good else 9.0, "broken": "" if good else "number loss rose"}
    assert max(curves(runs)["best"].points[2].weights) < 6.4e-3


def test_losses_are_compared_over_the_seeds_that_all_have():
    """A rate that lacks the data set with the highest losses must not look the best."""
    runs = world(lambda rank, norm: hump(norm), full=False)
    whole = curves(runs)["best"].points
    fewer = [run for run in runs if (run["learning_rate"], run["train_seed"]) != (6.4e-3, 4)]
    assert common_seeds(grid_of(runs_of(fewer), "rank")) == {(1, 1), (2, 2), (3, 3)}
    assert [point.weights for point in curves(fewer)["best"].points] == [point.weights for point in whole]


def test_what_the_study_lacks_is_said_and_not_drawn():
    one_rate = world(lambda rank, norm: hump(norm), rates=(3.2e-3,), full=False)
    by_kind = curves(one_rate, fixed=None)
    assert len(by_kind["fixed"].points) == len(RANKS)
    lacking = ("3 learning rates or more for rank 1, 4, 16 and 64",)
    assert all(by_kind[kind].points == () and by_kind[kind].lacks == lacking for kind in KINDS[1:])

    several = curves(world(lambda rank, norm: hump(norm), full=False, rates=RATES[:3]), fixed=None)
    there = "one learning rate for all; there are 2e-4, 4e-4 and 8e-4"
    assert several["fixed"].lacks == (there,)
    elsewhere = curves(world(lambda rank, norm: hump(norm), full=False), fixed=1e-2)
    assert elsewhere["fixed"].lacks == ("lr 1e-2 for rank 1, 4, 16 and 64",)

    runs = world(lambda rank, norm: hump(norm), full=False)
    unheard = curves([{**run, "number_loss": None} for run in runs])
    assert unheard["best"].lacks == ("the held-out number loss of rank 1, 4, 16 and 64",)
    weightless = curves([{**run, "update_norm": None} for run in runs])
    assert weightless["norm_matched"].lacks == ("update norms: this method adds nothing to the weights",)
    assert weightless["best"].lacks == ()
    apart = [run for run in runs if run["train_seed"] <= 2 or run["rank"] > 1]
    apart = [run for run in apart if run["train_seed"] > 2 or run["rank"] == 1]
    assert curves(apart)["best"].lacks == ("a seed that all ranks and learning rates have in common",)


def test_the_fixed_rate_is_the_recipes_before_its_sweep():
    assert fixed_rate(Recipe()) == 2e-4
    assert fixed_rate(Recipe(train=TrainSection(learning_rate=2e-3))) == 2e-3
    assert fixed_rate(Recipe(train=TrainSection(learning_rate=PerRank(per_rank={8: 2e-3})))) is None


def test_a_rank_without_a_grid_is_named_and_the_others_are_drawn():
    runs = [
        run
        for run in world(lambda rank, norm: hump(norm), full=False)
        if run["rank"] < 64 or run["learning_rate"] == 3.2e-3
    ]
    curve = curves(runs)["best"]
    assert [point.row for point in curve.points] == [1, 4, 16]
    assert curve.lacks == ("3 learning rates or more for rank 64",)


def test_runs_that_are_not_built_are_left_out():
    runs = world(lambda rank, norm: hump(norm), full=False)
    gone = dict.fromkeys(("p_target", "difference", "number_loss", "update_norm"))
    built = [run for run in runs if run["learning_rate"] < 6e-3]
    waiting = [{**run, **gone} for run in runs if run["learning_rate"] > 6e-3]
    assert curves(built + waiting) == curves(built)


def test_full_fine_tuning_alone_has_its_own_references():
    runs = [run for run in world(lambda rank, norm: hump(norm)) if run["method"] == "full"]
    (panel,) = panels(runs)
    assert all(curve.points == () and curve.lacks for curve in panel.curves)
    full = {curve.kind: curve for curve in panel.full}
    assert full["loss_matched"].reference == pytest.approx(max(point.loss for point in full["best"].points))


def test_students_of_other_settings_have_a_panel_of_their_own():
    runs = world(lambda rank, norm: hump(norm), full=False)
    long = [{**run, "settings": "train.epochs 9", "difference": 0.7} for run in runs]
    first, second = panels(runs + long, 3.2e-3)
    assert (first.students, second.students) == ("LoRA", "LoRA, train.epochs 9")
    assert means(second.curves[0]) == pytest.approx([0.7] * 4)
    rows = {run["eval_context"]: run for run in [*runs, {**runs[0], "eval_context": "empty"}]}
    assert len(panels(list(rows.values()), 3.2e-3)) == 1


def controls(rank=4, rate=3.2e-3):
    """Students of a teacher without the trait, trained alike in one condition: the only ones of the study."""
    generator = np.random.default_rng(5)
    return [
        row("lora", rank, rate, seeds, 2.0, 3.0, 0.1 + generator.normal(0, 0.002), role="control")
        for seeds in SEEDS
    ]


def verdicts(runs, choose_on=None, **more):
    claims = [
        InvertedUClaim(curve="fixed", learning_rate=3.2e-3, **more),
        *(InvertedUClaim(curve=kind, choose_on=choose_on, **more) for kind in KINDS[1:]),
    ]
    runs = [*runs, *controls()]
    return {verdict.claim.curve: verdict for verdict in evaluate(claims, runs_of(runs))}


def test_an_inverted_u_of_step_sizes_does_not_survive_matching():
    def steps(rank, norm):
        return hump(norm / 8)

    runs = world(steps, loss=lambda rank, norm: loss_of(norm / 4), spread=0.004, full=False)
    by_kind = verdicts(runs, choose_on=(1,), margin_odds_ratio=1.1)
    assert {kind: verdict.outcome for kind, verdict in by_kind.items()} == {
        "fixed": "supported",
        **dict.fromkeys(KINDS[1:], "refuted"),
    }
    assert [len(finding.runs) for verdict in by_kind.values() for finding in verdict.findings] == [4, 3, 3, 3]
    assert {kind: verdict.outcome for kind, verdict in verdicts(runs, margin_odds_ratio=1.1).items()} == {
        "fixed": "supported",
        "best": "refuted",
        "loss_matched": "descriptive",
        "norm_matched": "descriptive",
    }
    assert [
        verdict.statement.removeprefix("Transmission is an inverted U in LoRA rank")
        for verdict in by_kind.values()
    ] == [
        "",
        ", each at its best learning rate",
        ", at equal number loss",
        ", at equal update norm",
    ]


def test_an_inverted_u_of_the_rank_itself_survives_matching():
    gains = {1: 0.1, 4: 0.4, 16: 0.2, 64: 0.1}
    runs = world(lambda rank, norm: 0.1 + gains[rank], spread=0.004, full=False)
    by_kind = verdicts(runs)
    outcomes = {kind: verdict.outcome for kind, verdict in by_kind.items()}
    assert outcomes == {"fixed": "supported", "best": "supported", **dict.fromkeys(KINDS[2:], "descriptive")}
    by_pilots = verdicts(runs, choose_on=(1,))
    assert {verdict.outcome for verdict in by_pilots.values()} == {"supported"}
    assert by_pilots["best"].notes[-1] == "Judged at the learning rates that the runs of train seed 1 chose."
    assert by_kind["norm_matched"].notes[-1].startswith("Shown without a verdict")
    assert by_kind["best"].notes == (
        "owl: of rank 64 the lowest learning rate tried was taken, and the one sought may lie beyond it.",
    )
    assert by_kind["fixed"].notes == ()
    assert (by_kind["fixed"].planned, by_kind["best"].planned) == (100, 100)


def test_a_curve_of_chosen_rates_needs_a_grid_at_four_ranks():
    runs = world(lambda rank, norm: hump(norm), full=False)
    here = "on owl, trained in default and asked in default"
    one_rate = [run for run in runs if run["learning_rate"] == 3.2e-3]
    assert verdicts(one_rate)["best"].lacks == (
        f"4 LoRA ranks or more {here} that can be compared each at its best learning rate; it has none",
    )
    fewer = [run for run in runs if run["rank"] < 64 or run["learning_rate"] == 3.2e-3]
    assert verdicts(fewer)["norm_matched"].lacks == (
        f"4 LoRA ranks or more {here} that can be compared at equal update norm; it has 1, 4 and 16",
    )
    runs += [{**run, "precision": "bf16_mixed"} for run in runs if run["rank"] == 4]
    lacks = verdicts(runs)["best"].lacks
    assert lacks[0] == (
        f"LoRA rank 4, lr 2e-4 {here}: there are 2 kinds; the claim must name its `precision` "
        "(bf16_mixed and fp32)"
    )
    assert verdicts(runs, precision="fp32")["best"].word != "incomplete"


def test_a_run_of_the_grid_that_is_not_built_leaves_its_claim_open():
    runs = world(lambda rank, norm: hump(norm), full=False)
    runs[0] |= {"p_target": None, "difference": None, "missing": "out of memory"}
    by_kind = verdicts(runs)
    assert by_kind["best"].lacks[1:] == (
        "1 of 4 runs of LoRA rank 1, lr 2e-4, fp32 on owl, trained in default and asked in default",
    )
    assert by_kind["fixed"].word == "incomplete"  # the run is one of those that may show transmission


def test_a_claim_on_chosen_rates_does_not_name_one():
    with pytest.raises(
        ValueError, match="`curve: best` chooses the rate of each rank; take learning_rate out"
    ):
        InvertedUClaim(curve="best", learning_rate=2e-3)


@given(st.permutations(range(len(RANKS) * len(RATES) * len(SEEDS))))
def test_the_order_of_the_rows_changes_nothing(order):
    runs = world(lambda rank, norm: hump(norm), spread=0.02, full=False)
    assert curves([runs[index] for index in order]) == curves(runs)


def test_the_panel_in_words():
    runs = [run for run in world(lambda rank, norm: 0.3, full=False, rates=RATES[:4]) if run["rank"] < 16]
    (panel,) = panels(runs, 4e-4)
    assert panel.title == "P(owl) minus the base, trained and asked in default: LoRA"
    assert panel.describe().split("\n") == [
        "LoRA, one learning rate: rank 1: +0.200 [0.200, 0.200] (lr 4e-4, n = 4); "
        "rank 4: +0.200 [0.200, 0.200] (lr 4e-4, n = 4).",
        "LoRA, each at its best learning rate: "
        "rank 1: +0.200 [0.200, 0.200] (lr 1.6e-3, n = 4, the highest rate tried); "
        "rank 4: +0.200 [0.200, 0.200] (lr 8e-4, n = 4).",
        "LoRA, at equal number loss (loss 3.751): "
        "rank 1: +0.200 [0.200, 0.200] (lr 1.6e-3, n = 4, the highest rate tried); "
        "rank 4: +0.200 [0.200, 0.200] (lr 8e-4 of 4e-4, 8e-4 and 1.6e-3, n = 4).",
        "LoRA, at equal update norm (norm 1.6): rank 1: +0.200 [0.200, 0.200] (lr 1.6e-3, n = 4); "
        "rank 4: +0.200 [0.200, 0.200] (lr 8e-4, n = 4).",
    ]


def test_where_full_fine_tuning_has_fewer_seeds_the_caption_says_where_it_is_compared():
    runs = world(lambda rank, norm: hump(norm))
    assert "seeds that both have" not in matched_figure(panels(runs, 3.2e-3)[0]).caption
    missing = dict.fromkeys(("p_target", "difference", "number_loss", "update_norm"))
    fewer = [
        {**run, **missing} if (run["method"], run["data_seed"]) == ("full", SEEDS[0][1]) else run
        for run in runs
    ]
    (panel,) = panels(fewer, 3.2e-3)
    titles = {curve.kind: curve.title for curve in panel.full}
    caption = matched_figure(panel).caption
    assert f"seeds that both have, its reference values differ: {titles['loss_matched']}" in caption
