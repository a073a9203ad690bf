import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from sublim_cli.errors import ArtifactError
from sublim_cli.recipe.schema import FullFineTuningClaim, TransmissionClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.sensitivity import sensitivities
from sublim_cli.report.claims.verdict import RULES_VERSION
from sublim_cli.report.claims.wording import document
from sublim_cli.report.collect import Missing
from sublim_cli.report.page.figures.by_section import figures_by_section
from sublim_cli.report.page.figures.rank_curves import legend_lines, tick_positions
from sublim_cli.report.page.html import leak_sentence
from sublim_cli.report.page.summary import summarise
from sublim_cli.report.page.write import write_report
from sublim_cli.report.tables.frames import frame
from sublim_cli.report.tables.runs import Run

VOID = {"meta", "link", "br"}
FORBIDDEN = {"img", "iframe", "object", "embed", "image"}
SCRIPTS = ([("type", "application/json")], [("type", "module")])
ALLOWED_LINKS = re.compile(
    r"(data:,|#[\w-]+|results\.(csv|parquet)|items\.parquet|claims\.json|recipe\.yaml"
    r"|figures/([a-z0-9-]+\.(svg|png|pdf|vl\.json))?)$"
)


class Outline(HTMLParser):
    """The page's text, its headings, and everything that is not as it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.faults, self.headings, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in FORBIDDEN or (tag == "script" and attrs not in SCRIPTS):
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            if name == "id" and value in self.ids:
                self.faults.append(f"id {value} stands twice")
            if name == "id":
                self.ids.add(value)
            if name in {"src", "href", "xlink:href"} and not ALLOWED_LINKS.match(value):
                self.faults.append(f"{name} {value}")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            return
        self.text.append(data)
        if self.open and self.open[-1] in {"h1", "h2", "h3"}:
            self.headings.append(f"{self.open[-1]} {data}")


def outline(page):
    contents = Outline()
    contents.feed(page.read_text(encoding="utf-8"))
    return contents


@pytest.fixture
def page(troubled, tmp_path):
    return write_report(troubled, tmp_path / "report")


def test_the_page_is_well_formed_and_asks_for_nothing_outside(page):
    contents = outline(page)
    assert (contents.faults, contents.open) == ([], [])
    css = page.read_text(encoding="utf-8").split("</style>")[0]
    assert "@import" not in css
    assert "url(" not in css


def test_the_headings_lead_through_the_page(page):
    assert outline(page).headings == [
        "h1 made-by-hand",
        "h2 Missing",
        "h2 Rank curves",
        "h2 Contexts",
        "h2 How likely the target is named",
        "h3 owl",
        "h3 What else moved",
        "h2 The rows students learned from",
        "h3 Teachers",
        "h3 Filter",
        "h3 Leak",
        "h2 What training did to the weights",
        "h2 Provenance",
    ]


def test_the_page_says_how_many_of_the_planned_trainings_there_are(results, tmp_path):
    there = {"train_seed": 1, "train_digest": "a"}
    gone = {"train_seed": 2, "train_digest": "b", "missing": "not built yet", "p_target": None}
    page = write_report(results(there, gone), tmp_path).read_text(encoding="utf-8")
    assert "1 training run of 2 planned</p>" in page
    assert "planned</p>" not in write_report(results(there), tmp_path).read_text(encoding="utf-8")


def test_what_is_too_long_to_scroll_past_is_folded_away(page, wide, tmp_path):
    folded = "conditions in every context: owl</summary>"
    assert folded not in page.read_text(encoding="utf-8")
    assert folded in write_report(wide, tmp_path).read_text(encoding="utf-8")
    assert outline(tmp_path / "report.html").faults == []


def test_the_verdicts_come_first_and_say_why(results, tmp_path):
    changes = []
    for seed, gain in ((1, 0.1), (2, 0.2), (3, 0.3)):
        changes.append({"train_seed": seed, "p_target": 0.1 + gain, "difference": gain})
        changes.append({"train_seed": seed, "role": "control", "p_target": 0.1, "difference": 0.0})
    claims = (TransmissionClaim(), FullFineTuningClaim())
    runs = results(*changes).runs
    verdicts = evaluate(claims, runs)
    page = write_report(results(*changes, claims=tuple(verdicts)), tmp_path)
    contents = outline(page)
    assert (contents.faults, contents.open) == ([], [])
    assert [" ".join(heading.split()) for heading in contents.headings[:6]] == [
        "h1 made-by-hand",
        "h2 C1: A student prefers the trait of the teacher whose numbers it learned",
        "h2 C3a: Transmission disappears under full fine-tuning, at one learning rate and precision",
        "h2 C3b: Transmission disappears under full fine-tuning, at every learning rate and precision of "
        "the study",
        "h2 C3c: Transmission disappears under full fine-tuning, compared with the best adapter, both at "
        "the least number loss",
        "h2 Rank curves",
    ]
    text = " ".join(" ".join(contents.text).split())
    start, end = text.index("A sublim study"), text.index("C1: odds ratio of students")
    assert text[start:end].strip() == (
        "A sublim study of owl on micro, 1 training run Of 4 claims, 1 is supported (C1). "
        "✓ supported on one data set C1: A student prefers the trait of the teacher whose numbers it learned "
        "Students of the owl teacher name owl 3.0 × as often as the untouched model, odds ratio "
        "3.7 [1.6, 8.5], 3 of 3 runs."
    )
    start, end = text.index("At other margins"), text.index("Test: one-sided t tests")
    assert text[start:end].strip() == (
        "At other margins: supported at all of them. ✓ 1.1 ✓ 1.25 ✓ 1.5 ✓ 1.75 ✓ 2 ✓ 2.5 ✓ 3 "
        "Without train seed 2 or 3 it is underpowered; without any other, the same. "
        "Every comparison and the test; runs: 6 of 6 planned"
    )
    assert (
        "owl, LoRA rank 8, trained and asked in default, minus the control for 3.7 [1.6, 8.5] 0.300 0.100, "
        "0.100 3 3 0.022 0.958 3.1 minus the base 1.32 [0.489, 2.15] … incomplete C3a:"
    ) in text
    written = json.loads((tmp_path / "claims.json").read_text())
    assert written == {
        "study": "made-by-hand",
        "rules": RULES_VERSION,
        "lock": None,
        "claims": document("", verdicts, sensitivities(verdicts, runs))["claims"],
    }


def test_a_page_without_a_decided_claim_begins_with_what_was_seen(results, tmp_path):
    changes = [{"train_seed": seed, "p_target": p} for seed, p in ((1, 0.5), (2, 0.2))]
    changes += [{"train_seed": seed, "role": "control", "p_target": 0.1} for seed in (1, 2)]
    runs = results(*changes).runs
    verdicts = tuple(evaluate((TransmissionClaim(),), runs))
    assert [verdict.outcome for verdict in verdicts] == ["underpowered"]
    text = " ".join(
        " ".join(outline(write_report(results(*changes, claims=verdicts), tmp_path)).text).split()
    )
    seen, open_claim = text.index("Asked in the training context"), text.index("underpowered")
    assert seen < open_claim
    assert text.count("Asked in the training context (default)") == 1


def test_what_is_broken_or_missing_can_be_seen(page):
    text = " ".join(" ".join(outline(page).text).split())
    assert "eval owl full seed 1 : out of memory" in text
    assert "1 broken" in text
    assert "number loss rose from 3.300 to 5.000" in text


def test_all_that_was_promised_is_written_and_nothing_else(page):
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*") if path.is_file()}
    drawn = ("rank-curve-owl-default", "contexts-owl")
    figures = {f"figures/{name}.{kind}" for name in drawn for kind in ("svg", "png", "pdf", "vl.json")}
    assert names == {
        *("report.html", "results.csv", "results.parquet", "items.parquet", "recipe.yaml", "claims.json"),
        *figures,
    }


def test_the_tables_hold_the_runs_as_they_are(page, troubled):
    runs = frame(troubled.runs, Run)
    pd.testing.assert_frame_equal(pd.read_parquet(page.with_name("results.parquet")), runs)
    csv = pd.read_csv(page.with_name("results.csv"))
    assert list(csv.columns) == list(runs.columns)
    assert csv["p_target"].tolist() == pytest.approx(runs["p_target"].tolist(), nan_ok=True)


def test_the_same_results_write_the_same_bytes(page, troubled, tmp_path):
    again = write_report(troubled, tmp_path / "again").parent
    for path in page.parent.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(page.parent)).read_bytes()


def test_names_that_look_like_markup_or_formulas_are_shown_as_text(results, tmp_path):
    odd = '<script>alert("$x^2$ & more")</script>'
    study = results(
        {"train_context": odd, "eval_context": odd}, missing=(Missing(odd, f"{odd} failed"),), name="odd"
    )
    page = write_report(study, tmp_path)
    contents = outline(page)
    assert (contents.faults, contents.open) == ([], [])
    assert odd in "".join(contents.text)


def test_two_figures_on_one_page_share_no_id(results, tmp_path):
    study = results({}, {"target": "wolf"}, {"train_context": "empty", "eval_context": "empty"})
    page = write_report(study, tmp_path)
    assert page.read_text(encoding="utf-8").count('<div class="still"><svg') == 5
    assert outline(page).faults == []


def test_a_figure_tells_its_content_to_those_who_do_not_see_it(troubled, page):
    (curve,) = figures_by_section(troubled)["ranks"]
    assert curve.description == (
        "untouched base: 0.100; control, LoRA rank 8: 0.100 (n = 1); "
        "LoRA rank 1: 0.400 [0.000, 1.000] (n = 2); LoRA rank 8: 0.400 (n = 1, 1 broken); "
        "LoRA rank 64: broken; full fine-tuning: missing."
    )
    text = page.read_text(encoding="utf-8")
    assert f">{curve.description}</desc>" in text
    assert f"<p>{curve.description}</p>" in text
    drawn = (page.parent / "figures" / "rank-curve-owl-default.svg").read_text(encoding="utf-8")
    assert f">{curve.description}</desc>" in drawn


def test_ranks_are_one_line_and_stand_at_their_log2(troubled):
    trained = [row for row in summarise(troubled) if row.condition.role != "base"]
    lines = {name: [row.condition.rank for row in rows] for name, rows in legend_lines(trained).items()}
    assert lines == {
        "LoRA": [1, 8, 64],
        "full fine-tuning": [None],
        "control, LoRA rank 8": [8],
    }
    ticks = tick_positions(trained)
    assert list(ticks) == ["1", "8", "64", "full", "control"]
    assert [ticks[name] for name in ("1", "8", "64")] == [0, 3, 6]


def test_ranks_stay_one_line_where_alpha_follows_its_own_rule(results):
    rows = summarise(results({"rank": 4, "alpha": 2.0}, {"rank": 16, "alpha": 4.0}))
    assert list(legend_lines(rows)) == ["LoRA"]


def test_a_study_without_a_student_in_its_own_context_has_no_curve(results, tmp_path):
    study = results({"eval_context": "empty"})
    assert figures_by_section(study)["ranks"] == []
    assert "there is no curve to draw" in write_report(study, tmp_path).read_text(encoding="utf-8")


def test_a_directory_that_cannot_be_written_is_one_sentence(results, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_report(results({}), tmp_path / "file" / "report")


def test_the_leak_is_put_in_words(results):
    (leak,) = results({}).leaks
    assert (
        leak_sentence(leak)
        == "given one row of each, the classifier picks the trait teacher's 62% of the time"
    )
    named = replace(leak, named=2, shown=("wolves 7",))
    assert leak_sentence(named) == "2 rows that students learn from name the target: wolves 7"
    assert leak_sentence(replace(leak, low=0.49)).startswith("the classifier does not differ from chance")
