"""The page in a real browser: it draws, zooms, tells of spans, sorts, and says nothing on the console.

Without chromium and chromedriver these tests are skipped (Debian has both as chromium, chromium-driver).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hand_timelines import many_spans, ping_pong, pipeline, pool
from test_show_report import EVIL, LAYOUT, VERIFIED, everything

from plancc.show.report import Report, write_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
pytest.importorskip("selenium", reason="selenium is not installed (it is in the extra `test`)")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: chromium and chromedriver are not installed"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1400,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a window, with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    found.set_script_timeout(60)
    yield found
    found.quit()


class Page:
    """An open page."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())
        self.js("document.documentElement.style.scrollBehavior = 'auto'")
        self.frame()

    def js(self, code: str, *args: Any) -> Any:
        """Run a script and give what it returns."""
        return self.browser.execute_script(code, *args)

    def frame(self) -> None:
        """Wait until what was asked for is drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def find(self, css: str) -> Any:
        """One element."""
        return self.browser.find_element("css selector", css)

    def keys(self, *keys: str, at: str = ".scroller") -> None:
        """Press keys on an element."""
        self.find(at).send_keys(*keys)
        self.frame()

    def picture(self, css: str = ".scroller canvas") -> str:
        """What a canvas shows."""
        return str(self.js("return document.querySelector(arguments[0]).toDataURL()", css))

    def range(self) -> str:
        """The range of time that is drawn, in words."""
        return str(self.find("#timeline-range").text)

    def move(self, css: str, x: float, y: float, click: bool = False) -> None:
        """Move the mouse to a place of an element, in pixels from its left top corner."""
        from selenium.webdriver import ActionChains

        node = self.find(css)
        self.js("arguments[0].scrollIntoView({block: 'center'})", node)
        size = node.rect
        chain = ActionChains(self.browser).move_to_element_with_offset(
            node, x - size["width"] / 2, y - size["height"] / 2
        )
        (chain.click() if click else chain).perform()
        self.frame()

    def console(self) -> list[str]:
        """Messages of the console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Page:
    """The pipeline predicted and measured, with all sections."""
    path = tmp_path / "page.html"
    rows = [{"plan": f"p{n}", "step_s": (n * 7 % 10) / 10, "tp": n} for n in range(10)]
    report = Report(
        "a pipeline", [pipeline(), pipeline(predicted=False, seed=1), ping_pong()], rows, LAYOUT,
        ("It is drawn.",), VERIFIED, {"base": 15 * 10**9},
    )  # fmt: skip
    write_report(path, report)
    return Page(browser, path)


def nanoseconds(text: str) -> float:
    """The first time in a text."""
    found = re.search(r"([\d.]+) (ns|µs|ms|s)\b", text)
    assert found is not None, text
    return float(found[1]) * {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[found[2]]


def test_it_draws_without_a_word_on_the_console(page: Page) -> None:
    blank = "return document.querySelectorAll('canvas').length"
    assert page.js(blank) == 5
    for css in (
        ".over",
        ".axis",
        ".scroller canvas",
        "#memory-view canvas",
        "#traffic-view canvas",
    ):
        colours = page.js(
            "const c = document.querySelector(arguments[0]);"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return new Set(new Uint32Array(d.buffer)).size", css,
        )  # fmt: skip
        assert colours > 3, css
    assert page.console() == []
    assert page.range().endswith("all of it")


def test_keys_zoom_and_move(page: Page) -> None:
    whole = page.picture()
    page.keys("+")
    assert nanoseconds(page.range().partition("(")[2]) == pytest.approx(0.6 * 160.8e6, rel=0.02)
    closer, first = page.picture(), nanoseconds(page.range())
    assert closer != whole
    page.keys("d")
    assert nanoseconds(page.range()) > first and page.picture() != closer
    page.keys("-", "0")
    assert page.range().endswith("all of it") and page.picture() == whole


def test_buttons_zoom_and_memory_follows(page: Page) -> None:
    memory = page.picture("#memory-view canvas")
    page.find("[aria-label='Zoom in']").click()
    page.frame()
    assert "of 161 ms" in page.range() and page.picture("#memory-view canvas") != memory
    page.find("[aria-label='Show all of the step']").click()
    page.frame()
    assert page.picture("#memory-view canvas") == memory


def test_ctrl_and_wheel_zoom_where_the_mouse_is(page: Page) -> None:
    """The wheel alone is left to the page."""
    turn = """const c = document.querySelector('.scroller canvas'), b = c.getBoundingClientRect();
        const e = new WheelEvent('wheel', {deltaY: -300, ctrlKey: arguments[0], bubbles: true,
          cancelable: true, clientX: b.left + b.width - 1, clientY: b.top + 40});
        c.dispatchEvent(e); return e.defaultPrevented"""
    assert page.js(turn, False) is False and page.range().endswith("all of it")
    assert page.js(turn, True) is True
    page.frame()
    assert "to 161 ms" in page.range()


def test_the_strip_above_chooses_a_range(page: Page) -> None:
    from selenium.webdriver import ActionChains

    strip = page.find(".over")
    page.js("arguments[0].scrollIntoView({block: 'center'})", strip)
    chain = ActionChains(page.browser).move_to_element_with_offset(strip, 0, 0).click_and_hold()
    chain.move_by_offset(60, 0).move_by_offset(60, 0).release().perform()
    page.frame()
    assert nanoseconds(page.range().partition("(")[2]) < 30e6


def test_the_mouse_tells_of_a_span(page: Page) -> None:
    """In the middle of rank 0 it waits for rank 1; the tooltip goes when the mouse does."""
    tip = page.find(".tip")
    assert not tip.is_displayed()
    width = page.js("return document.querySelector('.scroller canvas').clientWidth")
    page.move(".scroller canvas", width * 0.4, 24 + 10)
    assert tip.is_displayed()
    text = tip.text
    assert "wait for base rank 1" in text and "base rank 0 (predicted)" in text
    assert "layers.0.input_norm" in text and "pp4.plan:7" in text and "micro-batch\n7" in text
    page.move("h1", 5, 5)
    assert not tip.is_displayed()


def test_a_click_picks_and_keys_go_on(page: Page) -> None:
    """The panel tells all of the picked span and of those alike; n goes to the next, Escape lets go."""
    page.move(".scroller canvas", 150, 24 + 10, click=True)
    panel = page.find(".picked")
    first = panel.text
    assert panel.is_displayed() and "base rank 0 (predicted)" in first and "spans, mean" in first
    assert "FLOP/s" in first or "bytes" in first
    page.keys("n")
    assert panel.text != first
    page.keys("p")
    assert panel.text == first
    from selenium.webdriver import Keys

    page.keys(Keys.ARROW_DOWN)
    assert "base rank 1 (predicted)" in panel.text
    page.keys(Keys.ENTER)
    assert not page.range().endswith("all of it")
    page.keys(Keys.ESCAPE)
    assert not panel.is_displayed()
    assert page.console() == []


def test_words_mark_spans(page: Page) -> None:
    """Attention of the second layer of the first stage: 8 forwards, 8 backwards, twice."""
    before = page.picture()
    page.keys("attention layers.1.", at="input[type=search]")
    assert "32 spans" in page.find("#timeline-view .tools").text and page.picture() != before


def test_ranks_can_stand_beside_each_other(page: Page) -> None:
    """The second row is then rank 0 again, measured."""
    page.find("#by-rank").click()
    page.frame()
    assert page.find("#by-rank").get_attribute("aria-pressed") == "true"
    page.move(".scroller canvas", 150, 24 + 35 + 10, click=True)
    assert "base rank 0 (measured)" in page.find(".picked").text
    page.js(
        "const s = document.getElementById('step'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    )
    assert not page.find("#by-rank").is_displayed() and page.console() == []


def test_another_step_can_be_shown(page: Page) -> None:
    page.js(
        "const s = document.getElementById('step'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    )
    page.frame()
    assert page.range() == "1.19 ms, all of it"
    assert "ping-pong" in page.find("#traffic-view").text


def test_heads_of_columns_sort(page: Page) -> None:
    column = "return [...document.querySelectorAll('#results tbody tr')].map(r => r.cells[1].textContent)"
    before = page.js(column)
    head = page.find("#results th:nth-child(2)")
    page.find("#results th:nth-child(2) button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.js(column)[0] == "900 ms" and page.js(column)[-1] == "0 s"
    page.find("#results th:nth-child(2) button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.js(column) == sorted(before, key=nanoseconds)


def test_the_heat_map_reads_its_cells(page: Page) -> None:
    """Rank 0 sends its 8 micro-batches to rank 1, nothing to rank 2; arrow keys say so."""
    from selenium.webdriver import Keys

    note = page.find("#traffic-view .tools")
    canvas = "#traffic-view canvas"
    page.keys(Keys.ARROW_RIGHT, at=canvas)
    page.keys(Keys.ARROW_RIGHT, at=canvas)
    assert "rank 0 → rank 1: 134 MB" in note.text
    page.keys(Keys.ARROW_RIGHT, at=canvas)
    assert "rank 0 → rank 2: nothing" in note.text


def test_both_themes(page: Page) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light, picture = page.js(ground), page.picture()
    page.js("document.getElementById('theme').click(); document.getElementById('theme').click()")
    page.frame()
    assert page.find("#theme").text == "Theme: dark"
    assert page.js(ground) != light and page.picture() != picture


@pytest.mark.parametrize("width", [500, 1000, 1900])
def test_no_width_makes_the_page_scroll_sideways(page: Page, width: int) -> None:
    page.browser.set_window_size(width, 900)
    page.frame()
    try:
        inside, outside = page.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert inside <= outside
    finally:
        page.browser.set_window_size(1400, 1000)


def test_words_of_users_do_nothing(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "evil.html", everything(EVIL))
    page = Page(browser, tmp_path / "evil.html")
    assert page.console() == []
    assert page.js("return document.querySelectorAll('img, script').length") == 2
    assert page.find("h1").text.startswith('"><script>alert(1)')
    page.move(".scroller canvas", 600, 24 + 12)
    assert (
        "<img src=x" in page.find(".tip").text
        and page.js("return document.querySelectorAll('img').length") == 0
    )


def test_many_spans_take_few_elements(browser: Any, tmp_path: Path) -> None:
    """64 ranks with 20,000 spans: about as many elements as with a span each (bars of all kinds are more)."""
    small = Report("t", [many_spans(64, 64)])
    counts = []
    for name, report in (("small", small), ("many", Report("t", [many_spans(20_000, 64)]))):
        write_report(tmp_path / f"{name}.html", report)
        page = Page(browser, tmp_path / f"{name}.html")
        counts.append(page.js("return document.querySelectorAll('*').length"))
        assert page.console() == []
    assert counts[1] - counts[0] < 500 and counts[1] < 1500
    write_report(tmp_path / "pool.html", Report("t", [pool()]))
    page = Page(browser, tmp_path / "pool.html")
    assert page.js("return document.querySelectorAll('#time tbody tr').length") == 40


def test_a_page_without_timelines_works(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "v.html", Report("t", layout=LAYOUT, verification=VERIFIED))
    page = Page(browser, tmp_path / "v.html")
    assert page.console() == [] and page.find("#theme").text == "Theme: auto"
