"""What figures show and how they are drawn."""

import json
import math
import re
from dataclasses import replace
from itertools import chain

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import TransmissionClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.page.figures.by_section import figures_by_section
from sublim_cli.report.page.figures.contexts import at_one_rate
from sublim_cli.report.page.figures.figure import PALETTE, SHAPES, slug
from sublim_cli.report.page.figures.forest import forest_figure
from sublim_cli.report.page.figures.rank_curves import APART, COLUMN, tick_positions
from sublim_cli.report.page.figures.rendering import figure_files, inline_svg, page_script
from sublim_cli.report.page.summary import context_matrices, summarise
from sublim_cli.report.page.write import FORMATS, write_figure
from sublim_cli.stats import Interval
from tests.report.conftest import BASE

LIGHT, DARK = "#ffffff", "#14161a"


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(colour, background):
    low, high = sorted((luminance(colour), luminance(background)))
    return (high + 0.05) / (low + 0.05)


def layers(spec):
    return spec["layer"] if "layer" in spec else [layer for part in spec["concat"] for layer in part["layer"]]


def marks(spec, kind, panel=None):
    """The data of the layers with this kind of mark, of one panel if it is given."""
    drawn = layers(spec) if panel is None else spec["concat"][panel]["layer"]
    names = [layer.get("data", spec.get("data"))["name"] for layer in drawn if layer["mark"]["type"] == kind]
    return [row for name in names for row in spec["datasets"][name]]


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_every_series_stands_out_against_the_page(paper):
    assert min(contrast(colour, paper) for colour in PALETTE) >= 3  # WCAG 2.2, 1.4.11


def test_no_two_series_look_alike():
    count = len(PALETTE) * len(SHAPES)
    looks = {(PALETTE[index % len(PALETTE)], SHAPES[index % len(SHAPES)]) for index in range(count)}
    assert len(looks) == count == 28


def test_the_same_figure_is_the_same_bytes_in_every_format(troubled):
    (figure,) = figures_by_section(troubled)["ranks"]
    (again,) = figures_by_section(troubled)["ranks"]
    files = figure_files(figure)
    assert files == figure_files(figure) == figure_files(again)
    assert tuple(files) == FORMATS
    assert {kind: content[:4] for kind, content in files.items()} == {
        "svg": b"<svg",
        "png": b"\x89PNG",
        "pdf": b"%PDF",
        "vl.json": b'{\n "',
    }


def test_figures_need_no_font_but_the_one_that_ships_with_the_renderer(wide):
    for figure in chain.from_iterable(figures_by_section(wide).values()):
        fonts = re.findall(rb"/BaseFont /\w+\+(\S+)", figure_files(figure)["pdf"])
        assert set(fonts) == {b"LiberationSans"}, figure.slug


def test_a_specification_holds_its_data_and_its_words(troubled):
    (figure,) = figures_by_section(troubled)["ranks"]
    spec = json.loads(figure_files(figure)["vl.json"])
    assert spec["description"] == f"{figure.title}. {figure.description}"
    assert spec["layer"] == figure.chart.to_dict()["layer"]
    assert [row["y"] for row in marks(spec, "line")] == [pytest.approx(0.4), 0.4]
    assert "/vega-lite/v6" in spec["$schema"]  # which the renderer draws


def test_the_drawing_on_the_page_takes_its_colours_from_there(troubled):
    (figure,) = figures_by_section(troubled)["ranks"]
    still = inline_svg(figure)
    assert "currentColor" in still
    assert "#1a1a1b" not in still
    assert "#ffffff" not in still
    assert "viewBox" in still.split(">", 1)[0]


def test_the_script_brings_its_library_and_ends_no_element():
    assert "</script" not in page_script().lower()
    assert "<!--" not in page_script()
    assert len(page_script()) > 500_000


def test_a_rank_curve_shows_every_run_and_marks_what_broke(troubled):
    (figure,) = figures_by_section(troubled)["ranks"]
    means = [
        (mark["series"], mark["x"], mark["y"], mark["low"], mark["n"])
        for mark in marks(figure.chart.to_dict(), "line")
    ]
    assert means == [("LoRA", 0.0, pytest.approx(0.4), 0.0, 2), ("LoRA", 3.0, 0.4, None, 1)]
    runs = [mark for mark in marks(figure.chart.to_dict(), "point") if "run" in mark]
    assert [(mark["series"], mark["y"], mark["broken"]) for mark in runs] == [
        ("LoRA", 0.3, False),
        ("LoRA", 0.5, False),
        ("LoRA", 0.4, False),
        ("control, LoRA rank 8", 0.1, False),
        ("LoRA", 0.0, True),
        ("LoRA", 0.0, True),
    ]
    (base,) = marks(figure.chart.to_dict(), "text")
    assert base == {"y": pytest.approx(0.1), "label": "untouched base 0.100"}


def test_what_shares_a_column_does_not_reach_into_the_next(wide):
    rows = [row for row in summarise(wide) if row.condition.role != "base" and row.in_training_context]
    ticks = tick_positions([row for row in rows if row.eval_context == "default"])
    half = 8 * APART / 2  # nine ways to fine-tune in full
    assert ticks["full"] - 9 == pytest.approx(COLUMN + half)
    assert ticks["control"] - ticks["full"] == pytest.approx(COLUMN + half)


def test_many_conditions_of_one_column_share_an_entry_of_the_legend(wide):
    figure = figures_by_section(wide)["ranks"][0]
    means = [mark for mark in marks(figure.chart.to_dict(), "point") if "condition" in mark]
    full = [mark for mark in means if mark["series"] == "9 conditions of full fine-tuning"]
    assert len({mark["x"] for mark in full}) == len({mark["condition"] for mark in full}) == 9
    assert "control, LoRA rank 8" in {mark["series"] for mark in means}


def test_the_axis_reaches_as_far_as_the_marks_beside_its_last_tick(results):
    controls = [{"role": "control", "learning_rate": lr} for lr in (1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4)]
    (figure,) = figures_by_section(results({"rank": 1}, {"rank": 8}, *controls))["ranks"]
    low, high = figure.chart.to_dict()["layer"][-1]["encoding"]["x"]["scale"]["domain"]
    positions = [mark["x"] for mark in marks(figure.chart.to_dict(), "point")]
    assert low < min(positions) <= max(positions) < high


def test_a_context_with_one_condition_has_no_curve_where_others_compare_several(wide):
    assert [figure.slug for figure in figures_by_section(wide)["ranks"]] == ["rank-curve-owl-default"]


def test_the_precision_panel_shows_trait_weights_and_norm_of_every_run(wide):
    (figure,) = figures_by_section(wide)["precision"]
    spec = figure.chart.to_dict()
    titles = [panel["layer"][-1]["encoding"]["y"]["title"] for panel in spec["concat"]]
    assert titles == ["P(owl)", "share of weights moved", "norm of the update ΔW"]
    for panel in range(3):
        assert len(marks(spec, "line", panel)) == 9
        assert len([mark for mark in marks(spec, "point", panel) if "run" in mark]) == 9 * 5
    moved = {
        (mark["series"], mark["condition"]): (mark["y"], mark["value"])
        for mark in marks(spec, "line", panel=1)
    }
    assert moved["bf16_pure", "bf16_pure, lr 2e-5"] == (pytest.approx(0.03), "3 %")
    assert moved["fp32", "fp32, lr 2e-5"] == (1.0, "100 %")
    assert "bf16_pure at 2e-5: P(owl) 0.101, share of weights moved 3 % and norm of the update ΔW 0.012" in (
        figure.description
    )


def test_one_way_to_fine_tune_in_full_needs_no_precision_panel(troubled):
    assert figures_by_section(troubled)["precision"] == []


def test_the_four_curves_show_each_rank_by_each_rule_and_full_fine_tuning_beside(wide):
    (figure,) = figures_by_section(wide)["matched"]
    panel = wide.matched[0]
    assert panel.context == "default"
    joined = marks(figure.chart.to_dict(), "line")
    titles = [curve.title for curve in panel.curves]
    assert {name: sum(mark["series"] == name for mark in joined) for name in titles} == dict.fromkeys(
        titles, 10
    )
    means = [mark for mark in marks(figure.chart.to_dict(), "point") if "condition" in mark]
    assert len(means) == 4 * 10 + 3 * 3
    assert figure.description == panel.describe()


def test_a_study_with_one_learning_rate_has_no_four_curves(troubled):
    assert figures_by_section(troubled)["matched"] == []


def test_a_long_context_matrix_keeps_the_adapters_of_one_learning_rate(wide):
    (matrix,) = context_matrices(summarise(wide))
    shown, rate = at_one_rate(matrix, 20)
    assert (len(matrix.rows), len(shown.rows), rate) == (53, 23, 2e-3)
    assert {row.condition.learning_rate for row in shown.rows if row.condition.rank} == {2e-3}
    assert at_one_rate(matrix, 53) == (matrix, None)


def test_a_tile_carries_its_sign_its_interval_and_whether_it_was_the_context_of_training(troubled):
    (figure,) = figures_by_section(troubled)["contexts"]
    tiles = {tile["condition"]: tile for tile in marks(figure.chart.to_dict(), "text")}
    assert tiles["LoRA rank 1"] == {
        "condition": "LoRA rank 1",
        "context": "default",
        "mean": pytest.approx(0.3),
        "depth": pytest.approx(0.6),
        "short": "+0.30",
        "change": "+0.300",
        "interval": "[−0.971, 1.000]",
        "runs": 2,
        "trained_here": True,
    }
    assert [tiles[name]["short"] for name in ("LoRA rank 64", "full fine-tuning")] == ["broken", "missing"]


def test_every_set_of_tokens_stands_beside_random_ones_of_its_size(wide):
    (figure,) = figures_by_section(wide)["localisation"]
    shares = {(mark["part"], mark["series"]): mark for mark in marks(figure.chart.to_dict(), "point")}
    assert list(shares) == [
        (part, series)
        for part in ("template_only (kept)", "no_template (lost)")
        for series in ("the set", "random sets of as many tokens")
    ]
    assert shares["no_template (lost)", "the set"]["x"] == pytest.approx(0.9 * 1.18 / 1.15)
    assert shares["no_template (lost)", "random sets of as many tokens"]["x"] == pytest.approx(
        0.25 * 1.18 / 1.15
    )
    assert len(marks(figure.chart.to_dict(), "rule")) == 2 + 4  # no share and the whole; an interval each


def test_a_forest_plot_shows_every_run_the_mean_its_interval_and_the_margin(wide):
    figure = figures_by_section(wide)["claims"][0]
    spec = figure.chart.to_dict()
    (found,) = wide.claims[0].findings
    runs = [mark for mark in marks(spec, "point") if "run" in mark]
    assert {mark["run"]: mark["x"] for mark in runs} == {
        f"train seed {train}, data seed {data}": pytest.approx(math.exp(effect))
        for (train, data), effect in found.runs.items()
    }
    (mean,) = [mark for mark in marks(spec, "point") if "above" in mark]
    ratio = found.odds_ratio
    assert [mean[key] for key in ("x", "low", "high")] == pytest.approx([ratio.mean, ratio.low, ratio.high])
    assert (mean["label"], mean["p"], mean["above"], mean["speaks"]) == (
        *("owl", "P 0.452, base 0.100", "5 of 5 runs", "for the claim"),
    )
    assert marks(spec, "rect") == [{"low": pytest.approx(1 / 1.5), "high": pytest.approx(1.5)}]
    label, p = marks(spec, "text")
    assert label == p
    assert (label["label"], p["p"]) == ("owl", "P 0.452, base 0.100")
    scales = {
        json.dumps(layer["encoding"]["x"]["scale"])
        for layer in layers(spec)
        if layer["encoding"]["x"].get("scale")
    }
    assert len(scales) == 1
    scale = json.loads(scales.pop())
    assert scale["type"] == "log"
    assert scale["domain"][0] < 1 / 1.5 < max(mark["x"] for mark in runs) < scale["domain"][1]


def test_an_interval_that_goes_on_beyond_the_axis_ends_in_an_arrow(results):
    rows = [
        {"role": role, "train_seed": seed, "p_target": p if role == "student" else 0.1}
        for seed, p in ((1, 0.15), (2, 0.4))
        for role in ("student", "control")
    ]
    study = results(*rows)
    study = replace(study, claims=tuple(evaluate([TransmissionClaim()], study.runs)))
    (figure,) = figures_by_section(study)["claims"]
    spec = figure.chart.to_dict()
    arrows = [mark for mark in marks(spec, "text") if "arrow" in mark]
    (domain,) = {
        tuple(layer["encoding"]["x"]["scale"]["domain"])
        for layer in layers(spec)
        if "low:Q" in str(layer) or layer["mark"]["type"] == "point"
    }
    assert [(mark["arrow"], mark["x"]) for mark in arrows] == [
        ("«", pytest.approx(domain[0])),
        ("»", pytest.approx(domain[1])),
    ]


def test_of_many_comparisons_those_with_the_largest_effects_are_drawn(wide):
    verdict = wide.claims[3]
    sizes = [0.01 * number for number in range(30)]
    findings = tuple(
        replace(
            verdict.findings[0], about=f"number {size}", effect=Interval(size, size - 1, size + 1, 5), runs={}
        )
        for size in sizes
    )
    figure = forest_figure(replace(verdict, findings=findings), 1)
    means = [mark["x"] for mark in marks(figure.chart.to_dict(), "point")]
    assert means == pytest.approx([math.exp(size) for size in sizes[6:]])
    assert "Of 30 comparisons the 24 with the largest effects are drawn." in figure.caption


def test_claims_without_comparisons_have_no_forest_plot(wide):
    assert forest_figure(replace(wide.claims[0], findings=()), 1) is None


def test_the_grid_of_rates_shows_every_cell_and_marks_what_broke(results):
    rows = [
        {"role": role, "rank": rank, "learning_rate": rate, "train_seed": seed, "p_target": p}
        for rank, rate, p in ((4, 1e-3, 0.25), (16, 1e-3, 0.1), (4, 2e-3, 0.05), (16, 2e-3, 0.5))
        for seed in (1, 2)
        for role in ("student",)
    ]
    rows[2]["broken"] = rows[6]["broken"] = rows[7]["broken"] = "collapsed"
    (figure,) = figures_by_section(results({**BASE}, *rows))["rates"]
    spec = figure.chart.to_dict()
    tiles = {(tile["rank"], tile["rate"]): tile for tile in marks(spec, "text")}
    assert {key: tile["short"] for key, tile in tiles.items()} == {
        ("4", "1e-3"): "3.0",
        ("16", "1e-3"): "1.0",
        ("4", "2e-3"): "0.47",
        ("16", "2e-3"): "×",
    }
    framed = marks(spec, "rect")[len(tiles) :]
    assert [(tile["rank"], tile["rate"]) for tile in framed] == [("16", "1e-3"), ("16", "2e-3")]
    assert tiles["16", "1e-3"]["value"] == "1.0 (1 run, 1 run broken)"
    assert tiles["16", "2e-3"]["value"] == "has no value, 2 runs broken"
    assert "to the untouched base" in figure.title


def test_the_grid_of_rates_is_compared_with_controls_where_there_are_any(wide):
    (figure,) = figures_by_section(wide)["rates"]
    assert "to the controls of the same seeds" in figure.title
    assert len(marks(figure.chart.to_dict(), "text")) == 40


def test_names_too_long_for_a_file_stay_apart():
    names = {slug("contexts", "a" * 80 + end) for end in ("b", "c")}
    assert len(names) == 2
    assert all(len(name) <= 60 for name in names)


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
        figure = figures_by_section(results(*runs, {**runs[0], "learning_rate": 1e-4}))["precision"][0]
        (mean,) = [mark for mark in marks(figure.chart.to_dict(), "rule", panel=0) if mark.get("n") == 4]
        return mean["high"] - mean["low"]

    assert width([(1, 1), (2, 1), (1, 2), (2, 2)]) > width([(1, 1), (2, 2), (3, 3), (4, 4)])
