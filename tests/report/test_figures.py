"""What figures show and how they are drawn."""

import json
import re

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.report.page.context_matrix import at_one_rate, matrices
from sublim_cli.report.page.figures.drawn import figures_of
from sublim_cli.report.page.figures.figure import PALETTE, SHAPES, series, slug
from sublim_cli.report.page.figures.files import draw, figure_files, inline_svg, script
from sublim_cli.report.page.rank_curves import APART, COLUMN, places, rank_curves
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.page.write import write_figure

LIGHT, DARK = "#ffffff", "#14161a"


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def drawn_layers(spec):
    return spec["layer"] if "layer" in spec else [one for part in spec["concat"] for one in part["layer"]]


def values(spec, mark):
    """The data of the layers with this mark."""
    found = [one for one in drawn_layers(spec) if one["mark"]["type"] == mark]
    return [value for one in found for value in one["data"]["values"]]


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_every_series_stands_out_against_the_page(paper):
    assert min(contrast(one, paper) for one in PALETTE) >= 3  # WCAG 2.2, 1.4.11


def test_no_two_series_look_alike():
    names = [f"series {number}" for number in range(len(PALETTE) * len(SHAPES))]
    look = series(names)
    pairs = list(zip(*(look[one]["scale"]["range"] for one in ("color", "shape")), strict=True))
    assert len(set(pairs)) == len(names)


def test_the_same_figure_is_the_same_bytes_in_every_format(troubled):
    (figure,) = figures_of(troubled)["ranks"]
    first, again = ([*figure_files(draw(figure))] for _ in range(2))
    assert first == again
    assert [(name.name, content[:4]) for name, content in first] == [
        ("rank-curve-owl-default.svg", b"<svg"),
        ("rank-curve-owl-default.png", b"\x89PNG"),
        ("rank-curve-owl-default.pdf", b"%PDF"),
        ("rank-curve-owl-default.vl.json", b'{\n "'),
    ]


def test_a_specification_holds_its_data_and_its_words(troubled):
    (figure,) = figures_of(troubled)["ranks"]
    spec = json.loads(list(figure_files(draw(figure)))[-1][1])
    assert spec["description"] == f"{figure.title}. {figure.description}"
    assert spec["layer"] == json.loads(json.dumps(figure.spec["layer"]))


def test_the_drawing_on_the_page_takes_its_colours_and_its_width_from_there(troubled):
    (figure,) = figures_of(troubled)["ranks"]
    still = inline_svg(draw(figure))
    head = still.split(">", 1)[0]
    assert "currentColor" in still
    assert "#1a1a1b" not in still
    assert "#ffffff" not in still
    assert not re.search(r"\s(width|height)=", head)
    assert "viewBox" in head


def test_the_script_brings_its_library_and_ends_no_element():
    assert "</script" not in script().lower()
    assert "<!--" not in script()
    assert len(script()) > 500_000


def test_a_rank_curve_shows_every_run_and_marks_what_broke(troubled):
    (figure,) = figures_of(troubled)["ranks"]
    means = [(one["series"], one["x"], one["y"], one["low"], one["n"]) for one in values(figure.spec, "line")]
    assert means == [("LoRA", 0.0, pytest.approx(0.4), 0.0, 2), ("LoRA", 3.0, 0.4, None, 1)]
    runs = [one for one in values(figure.spec, "point") if "run" in one]
    assert [(one["series"], one["y"], one["broken"]) for one in runs] == [
        ("LoRA", 0.3, False),
        ("LoRA", 0.5, False),
        ("LoRA", 0.4, False),
        ("control, LoRA rank 8", 0.1, False),
        ("LoRA", 0.0, True),
        ("LoRA", 0.0, True),
    ]
    (base,) = values(figure.spec, "text")
    assert base == {"y": pytest.approx(0.1), "label": "untouched base 0.100"}


def test_what_shares_a_column_does_not_reach_into_the_next(wide):
    (curve,) = rank_curves(wide)
    where = places(curve.trained)
    half = 8 * APART / 2  # nine ways to fine-tune in full
    assert where["full"] - 9 == pytest.approx(COLUMN + half)
    assert where["control"] - where["full"] == pytest.approx(COLUMN + half)


def test_many_conditions_of_one_column_share_an_entry_of_the_legend(wide):
    figure = figures_of(wide)["ranks"][0]
    means = [one for one in values(figure.spec, "point") if "condition" in one]
    full = [one for one in means if one["series"] == "9 conditions of full fine-tuning"]
    assert len({one["x"] for one in full}) == len({one["condition"] for one in full}) == 9
    assert "control, LoRA rank 8" in {one["series"] for one in means}


def test_the_axis_reaches_as_far_as_the_marks_beside_its_last_tick(results):
    controls = [{"role": "control", "learning_rate": lr} for lr in (1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4)]
    (figure,) = figures_of(results({"rank": 1}, {"rank": 8}, *controls))["ranks"]
    low, high = figure.spec["layer"][-1]["encoding"]["x"]["scale"]["domain"]
    marks = [one["x"] for one in values(figure.spec, "point")]
    assert low < min(marks) <= max(marks) < high


def test_a_context_with_one_condition_has_no_curve_where_others_compare_several(wide):
    assert [one.context for one in rank_curves(wide)] == ["default"]


def test_the_precision_panel_shows_trait_weights_and_norm_of_every_run(wide):
    (figure,) = figures_of(wide)["precision"]
    panels = figure.spec["concat"]
    titles = [panel["layer"][-1]["encoding"]["y"]["title"] for panel in panels]
    assert titles == ["P(owl)", "share of weights moved", "update norm ‖ΔW‖"]
    for panel in panels:
        means = values(panel, "line")
        assert len(means) == 9
        assert len([one for one in values(panel, "point") if "run" in one]) == 9 * 5
    moved = {(one["series"], one["condition"]): (one["y"], one["value"]) for one in values(panels[1], "line")}
    assert moved["bf16_pure", "bf16_pure, lr 2e-5"] == (pytest.approx(0.03), "3 %")
    assert moved["fp32", "fp32, lr 2e-5"] == (1.0, "100 %")
    assert "bf16_pure at 2e-5: P(owl) 0.101, share of weights moved 3 % and update norm ‖ΔW‖ 0.012" in (
        figure.description
    )


def test_one_way_to_fine_tune_in_full_needs_no_precision_panel(troubled):
    assert figures_of(troubled)["precision"] == []


def test_the_four_curves_show_each_rank_by_each_rule_and_full_fine_tuning_beside(wide):
    (figure,) = figures_of(wide)["matched"]
    panel = wide.matched[0]
    assert panel.context == "default"
    joined = values(figure.spec, "line")
    titles = [one.title for one in panel.curves]
    assert {name: sum(one["series"] == name for one in joined) for name in titles} == dict.fromkeys(
        titles, 10
    )
    means = [one for one in values(figure.spec, "point") if "condition" in one]
    assert len(means) == 4 * 10 + 3 * 3
    assert figure.description == panel.describe()


def test_a_study_with_one_learning_rate_has_no_four_curves(troubled):
    assert figures_of(troubled)["matched"] == []


def test_a_long_context_matrix_keeps_the_adapters_of_one_learning_rate(wide):
    (matrix,) = matrices(summarise(wide))
    shown, rate = at_one_rate(matrix, 20)
    assert (len(matrix.lines), len(shown.lines), rate) == (53, 23, 2e-3)
    assert {line.condition.learning_rate for line in shown.lines if line.condition.rank} == {2e-3}
    assert at_one_rate(matrix, 53) == (matrix, None)


def test_a_tile_carries_its_sign_its_interval_and_whether_it_was_the_context_of_training(troubled):
    (figure,) = figures_of(troubled)["contexts"]
    tiles = {one["condition"]: one for one in figure.spec["data"]["values"]}
    assert tiles["LoRA rank 1"] == {
        "condition": "LoRA rank 1",
        "context": "default",
        "mean": pytest.approx(0.3),
        "depth": pytest.approx(0.6),
        "short": "+0.30",
        "told": "+0.300",
        "interval": "[−0.971, 1.000]",
        "runs": 2,
        "own": True,
    }
    assert [tiles[one]["short"] for one in ("LoRA rank 64", "full fine-tuning")] == ["broken", "missing"]


def test_every_set_of_tokens_stands_beside_random_ones_of_its_size(wide):
    (figure,) = figures_of(wide)["localisation"]
    told = {(one["part"], one["series"]): one for one in values(figure.spec, "point")}
    assert list(told) == [
        (part, series)
        for part in ("template_only (kept)", "no_template (lost)")
        for series in ("the set", "random sets of as many tokens")
    ]
    assert told["no_template (lost)", "the set"]["x"] == pytest.approx(0.9 * 1.18 / 1.15)
    assert told["no_template (lost)", "random sets of as many tokens"]["x"] == pytest.approx(
        0.25 * 1.18 / 1.15
    )
    assert len(values(figure.spec, "rule")) == 2 + 4  # no share and the whole; an interval each


def test_names_too_long_for_a_file_stay_apart():
    names = {slug("contexts", "a" * 80 + end) for end in ("b", "c")}
    assert len(names) == 2
    assert all(len(one) <= 60 for one in names)


def test_one_figure_is_written_alone_and_an_unknown_one_names_those_there_are(troubled, tmp_path):
    written = write_figure(troubled, tmp_path, "contexts-owl")
    assert sorted(tmp_path.rglob("*.*")) == sorted(written)
    with pytest.raises(RecipeError) as error:
        write_figure(troubled, tmp_path, "contexts")
    assert str(error.value) == (
        "--figure contexts: the report of made-by-hand has no such figure; "
        "it has rank-curve-owl-default and contexts-owl"
    )


def test_runs_that_share_seeds_count_as_fewer_in_the_precision_panel(results):
    """Four runs of two data sets and two training seeds, and four that share none: the same values."""

    def width(seeds) -> float:
        same = {"method": "full", "rank": None, "precision": "fp32", "learning_rate": 2e-5}
        drawn = zip(seeds, (0.30, 0.31, 0.50, 0.51), strict=True)
        runs = [{**same, "train_seed": a, "data_seed": b, "p_target": p} for (a, b), p in drawn]
        figure = figures_of(results(*runs, {**runs[0], "learning_rate": 1e-4}))["precision"][0]
        (mean,) = [one for one in values(figure.spec["concat"][0], "rule") if one.get("n") == 4]
        return mean["high"] - mean["low"]

    assert width([(1, 1), (2, 1), (1, 2), (2, 2)]) > width([(1, 1), (2, 2), (3, 3), (4, 4)])
