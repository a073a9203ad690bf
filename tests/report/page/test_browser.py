"""The report in a real Chromium: it draws every figure, asks for nothing, and fits a phone."""

import shutil

import pytest

from sublim_cli.report.page.figures.by_section import figures_by_section
from sublim_cli.report.page.write import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine: apt-get install chromium"
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
WIDTHS = (390, 1400)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The page of a study, written once."""
    written = {}

    def of(name, study):
        if name not in written:
            written[name] = write_report(study, tmp_path_factory.mktemp(name))
        return written[name]

    return of


class Visit:
    """A page opened, and all it said and asked for."""

    def __init__(self, browser, path, width, **settings):
        self.said, self.asked = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 844}, **settings)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def wait(self):
        self.page.wait_for_selector("html[data-drawn=yes]", state="attached")
        return self

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def marks(self, kind):
        """How many marks of a kind each figure has, by its name."""
        count = (
            f"figure => [figure.id, figure.querySelectorAll('.live .role-mark.mark-{kind} > path').length]"
        )
        return dict(self.page.evaluate(f"[...document.querySelectorAll('figure.chart')].map({count})"))


def data(spec, kind):
    """The data of every layer with this kind of mark, those of panels too."""
    parts = spec.get("concat", [spec])
    drawn = [layer for part in parts for layer in part["layer"] if layer["mark"]["type"] == kind]
    return [row for layer in drawn for row in spec["datasets"][layer.get("data", spec.get("data"))["name"]]]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_live_without_a_word_or_a_request(browser, reports, wide, width):
    path = reports("wide", wide)
    visit = Visit(browser, path, width).wait()
    figures = {
        figure.slug: figure.chart.to_dict() for group in figures_by_section(wide).values() for figure in group
    }
    assert sorted(figures) == [
        *("claim-1-c1", "claim-2-c2", "claim-3-c3a", "claim-4-c3b", "claim-5-c3c"),
        "contexts-owl",
        "four-curves-owl-default-lora",
        "localisation-owl-lora-rank-8-default",
        "precision-owl-default",
        "rank-curve-owl-default",
        "rates-owl-default",
    ]
    assert visit.marks("symbol") == {name: len(data(spec, "point")) for name, spec in figures.items()}
    tiles = data(figures["contexts-owl"], "text")
    dots = [row for row in data(figures["claim-4-c3b"], "point") if "run" in row]
    assert len(dots) == 9 * 5  # conditions of full fine-tuning, and runs
    assert visit.marks("rect")["rates-owl-default"] == 40
    assert visit.marks("rect")["contexts-owl"] == len(tiles) + sum(tile["trained_here"] for tile in tiles)
    assert visit.page.locator("figure .still").count() == 0
    assert visit.fits()
    assert (visit.said, visit.asked) == ([], [path.as_uri()])
    visit.page.close()


def test_every_figure_is_on_the_page_without_scripts_and_on_paper(browser, reports, wide):
    path = reports("wide", wide)
    visit = Visit(browser, path, 390, java_script_enabled=False)
    assert visit.page.locator("figure.chart .still > svg").count() == 11
    visit.page.emulate_media(media="print")
    boxes = [still.bounding_box() for still in visit.page.locator("figure.chart .still > svg").all()]
    assert all(box["width"] > 300 and box["x"] + box["width"] <= 390 for box in boxes)
    assert visit.page.pdf().startswith(b"%PDF")
    visit.page.close()


def test_a_study_with_all_that_can_go_wrong_is_drawn(browser, reports, troubled):
    path = reports("troubled", troubled)
    visit = Visit(browser, path, 390).wait()
    assert visit.marks("symbol")["rank-curve-owl-default"] == 3 + 6  # means, and runs with the broken ones
    assert (visit.said, visit.asked, visit.fits()) == ([], [path.as_uri()], True)
    visit.page.close()


def test_a_tile_tells_its_interval_under_the_pointer(browser, reports, wide):
    visit = Visit(browser, reports("wide", wide), 1400).wait()
    visit.page.locator("#contexts-owl .live .role-mark.mark-rect > path").first.hover(
        position={"x": 8, "y": 8}
    )
    tooltip = visit.page.locator("#vg-tooltip-element.visible").inner_text()
    assert " ".join(tooltip.split()) == (
        "Condition control, LoRA rank 8 Asked in default Change 0.000 95 % interval [0.000, 0.000] Runs 5"
    )
    visit.page.close()


def test_a_click_on_the_legend_brings_out_one_curve(browser, reports, wide):
    visit = Visit(browser, reports("wide", wide), 1400).wait()
    figure = visit.page.locator("#four-curves-owl-default-lora .live")
    lines = "all => all.map(line => Number(line.getAttribute('opacity') ?? 1))"
    drawn = ".mark-line path"
    assert figure.locator(drawn).evaluate_all(lines) == [1, 1, 1, 1]
    figure.locator(".role-legend-symbol path").nth(1).click()
    assert figure.locator(drawn).evaluate_all(lines) == [0.12, 1, 0.12, 0.12]
    visit.page.close()


@pytest.mark.parametrize(("scheme", "ink"), [("light", "rgb(27, 29, 33)"), ("dark", "rgb(232, 234, 237)")])
def test_a_figure_takes_the_colour_of_the_text_around_it(browser, reports, wide, scheme, ink):
    visit = Visit(browser, reports("wide", wide), 390, color_scheme=scheme).wait()
    label = visit.page.locator("#rank-curve-owl-default .live .role-axis-label text").first
    assert label.evaluate("text => getComputedStyle(text).fill") == ink
    visit.page.close()
