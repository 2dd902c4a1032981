"""The report in a real Chromium: filters, episodes, turns, keys, themes, phones, and a thousand episodes without lag.

Lag is held down by what causes it, not by a clock: nodes of the document, nodes that a key adds, packs that are opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.report import write_report
from tests.evaluation.hand_episodes import HOSTILE
from tests.evaluation.pages import KINDS, large_run

COUNT = 1000
WAIT_MS = 60_000
"""Of a condition, not a pause: a machine may be ten times slower than ours."""
COUNT_UNPACKING = """
window.unpacked = 0;
window.DecompressionStream = class extends DecompressionStream { constructor(form) { super(form); window.unpacked += 1; } };
"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=WAIT_MS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def large_report(tmp_path_factory: pytest.TempPathFactory, generated: Scene) -> Path:
    run = large_run(tmp_path_factory.mktemp("large"), generated, np.full((112, 224, 3), 90, np.uint8), COUNT)
    return write_report(run)


class Opener:
    """Opens a report and notes what a page must never do: log an error, ask for anything, show a dialog."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    def __call__(self, report: Path, *, width: int = 1400, height: int = 900, dark: bool = False, place: str = "",
                 script: str = COUNT_UNPACKING) -> Page:
        context = self._browser.new_context(viewport={"width": width, "height": height},
                                            color_scheme="dark" if dark else "light")
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self._note(True, str(error)))
        page.on("dialog", lambda dialog: self._note(True, f"dialog {dialog.message}"))
        page.on("request", lambda request: self._note(not request.url.startswith(("file:", "data:", "blob:")), request.url))
        page.goto(report.as_uri() + place)
        return page

    def _note(self, bad: bool, text: str) -> None:
        if bad:
            self.complaints.append(text)


@pytest.fixture
def opener(browser: Browser) -> Iterator[Opener]:
    made = Opener(browser)
    yield made
    for context in browser.contexts:
        context.close()
    assert made.complaints == []


@pytest.fixture
def page(opener: Opener, large_report: Path) -> Page:
    """The large report, ready."""
    opened = opener(large_report)
    expect(opened.locator("#browser")).to_have_attribute("data-ready", "true")
    return opened


def shown(page: Page, count: int) -> None:
    """The list says that this many of all episodes are shown, and holds them."""
    expect(page.locator("#count")).to_have_text(f"{count} episodes" if count == COUNT else f"{count} of {COUNT} episodes")
    if count:
        expect(page.locator(".row").first).to_have_attribute("aria-setsize", str(count))


def opened(page: Page, name: str) -> None:
    expect(page.locator("#episode-title")).to_have_text(name)


def nodes(page: Page) -> int:
    return int(page.evaluate("document.querySelectorAll('*').length"))


def test_a_thousand_episodes_cost_as_much_as_twenty(page: Page) -> None:
    shown(page, COUNT)
    opened(page, "s00000")
    assert page.evaluate("unpacked") == 3  # the index, one pack of episodes, one of scenes
    assert page.locator(".row").count() < 40 and nodes(page) < 1000
    page.locator("#list").focus()
    page.keyboard.press("End")
    opened(page, "s00999")
    expect(page.locator(".row[aria-selected=true]")).to_have_attribute("aria-posinset", str(COUNT))
    assert page.evaluate("unpacked") == 4  # its scene is that of an episode at the top
    assert page.locator(".row").count() < 40 and nodes(page) < 1000
    page.evaluate("""() => {
      window.added = 0;
      new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach((node) => {
        window.added += 1 + (node.querySelectorAll ? node.querySelectorAll("*").length : 0); })))
        .observe(document.body, {childList: true, subtree: true});
    }""")
    page.keyboard.press("ArrowUp")
    opened(page, "s00998")
    assert 0 < page.evaluate("added") < 600


def test_filters_by_kind_gain_failure_and_words(page: Page) -> None:
    page.locator("#kind").select_option(label=f"{KINDS[0]} (334)")
    shown(page, 334)
    page.locator("#reset").click()
    shown(page, COUNT)
    page.locator("[data-fail=DAC]").click()
    shown(page, sum(n % 3 == 0 and n % 10 != 9 for n in range(COUNT)))
    page.locator("#where").select_option("last")
    shown(page, sum(n % 3 == 0 and n % 10 != 9 and n % 2 == 1 for n in range(COUNT)))
    page.locator("[data-fail=parse]").click()
    shown(page, sum(n % 10 == 9 or (n % 3 == 0 and n % 2 == 1) for n in range(COUNT)))
    page.locator("#reset").click()
    for outcome, count in (("repaired", 500), ("clean", 500), ("failing", 500), ("broken", 0), ("invalid", 0)):
        page.locator("#outcome").select_option(outcome)
        shown(page, count)
    expect(page.locator("#none")).to_be_visible()
    page.locator("#outcome").select_option("")
    page.locator("#gain-low").fill("70")
    shown(page, sum(n % 2 == 0 and n % 5 <= 2 for n in range(COUNT)))
    expect(page.locator("#filters-on")).to_have_text("1")
    page.locator("#query").fill("cut_in s0000")
    shown(page, sum(n % 2 == 0 and n % 5 <= 2 and n % 3 == 2 for n in range(10)))
    page.locator("#reset").click()
    shown(page, COUNT)


def test_order_by_gain(page: Page) -> None:
    page.locator("#order").select_option("gain")
    expect(page.locator("#row-0 .gain")).to_have_text("+90.0")
    page.locator("#order").select_option("worst")
    expect(page.locator("#row-0 .pill").last).to_have_text("0")


def test_turns_side_by_side_with_the_violated_points_marked(page: Page) -> None:
    columns = page.locator(".turn")
    expect(columns).to_have_count(2)
    first, second = columns.nth(0).bounding_box(), columns.nth(1).bounding_box()
    assert first and second and first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]
    answer, feedback = columns.nth(0).locator(".model mark.dac"), columns.nth(0).locator(".agent mark.dac")
    expect(answer).to_have_count(2)
    assert all(re.fullmatch(r"\(.+, .+, .+\)", text) for text in answer.all_inner_texts())
    expect(feedback).to_have_count(2)
    expect(columns.nth(0).locator(".bird path.dac")).to_have_count(2)
    expect(columns.nth(1).locator("mark, path.dac")).to_have_count(0)
    expect(columns.nth(1).locator(".agent")).to_contain_text("No violation.")
    expect(page.locator(".scores .pdms td")).to_have_text(["0", "90"])
    expect(page.locator("img")).to_have_js_property("naturalWidth", 224)
    # the point under the pointer is shown in the picture from above and in the camera's
    columns.nth(0).locator(".model .pt").nth(2).hover()
    assert page.locator(".turn .hot").evaluate_all("all => all.map(one => one.dataset.point)") == ["2", "2"]


def test_the_next_turn_by_arrow_and_by_click(page: Page) -> None:
    def chosen(number: int) -> None:
        expect(page.locator(".turn-name[aria-pressed=true] b")).to_have_text(f"Turn {number}")
        expect(page.locator(".overlay g.on")).to_have_attribute("data-turn", str(number - 1))

    chosen(2)
    page.locator("#list").press("ArrowLeft")
    chosen(1)
    page.locator("#list").press("ArrowRight")
    chosen(2)
    page.locator(".turn-name").first.click()
    chosen(1)


def test_keys_alone_are_enough(page: Page) -> None:
    focused = page.locator(":focus")
    page.keyboard.press("/")
    expect(focused).to_have_id("query")
    page.keyboard.type("s0012")
    shown(page, 10)
    page.keyboard.press("ArrowDown")
    expect(focused).to_have_id("list")
    assert page.locator("#list").evaluate("list => getComputedStyle(list).outlineStyle") != "none"
    page.keyboard.press("ArrowDown")
    opened(page, "s00120")
    page.keyboard.press("PageDown")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    opened(page, "s00121")
    expect(page.locator("#list")).to_have_attribute("aria-activedescendant", "row-1")
    page.keyboard.press("Enter")
    expect(focused).to_have_id("episode-title")
    page.keyboard.press("j")
    opened(page, "s00122")
    page.keyboard.press("k")
    opened(page, "s00121")
    page.keyboard.press("Escape")
    expect(focused).to_have_id("list")
    page.keyboard.press("/")
    page.keyboard.press("Escape")  # clears, and stays
    shown(page, COUNT)
    expect(focused).to_have_id("query")
    page.keyboard.press("Escape")
    expect(focused).to_have_id("list")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_the_address_names_the_episode(opener: Opener, page: Page, large_report: Path) -> None:
    page.locator("#query").fill("s00777")
    page.locator(".row").first.click()
    opened(page, "s00777")
    place = page.url[page.url.index("#"):]
    again = opener(large_report, place=place)
    opened(again, "s00777")
    expect(again.locator(".row[aria-selected=true]")).to_have_attribute("aria-posinset", "778")


def test_an_old_browser_is_told_so(opener: Opener, large_report: Path) -> None:
    page = opener(large_report, script="delete window.DecompressionStream")
    expect(page.locator("#unopened")).to_be_visible()
    expect(page.locator("#browser")).to_be_hidden()
    assert len(opener.complaints) == 1 and "DecompressionStream is not defined" in opener.complaints.pop()


def test_hostile_text_is_text(page: Page) -> None:
    page.locator("[data-fail=parse]").click()
    page.locator(".row").first.click()
    opened(page, "s00009")
    expect(page.locator(".says.model p").first).to_have_text(HOSTILE)
    expect(page.locator(".says.model *")).to_have_count(2 * 2)  # who and what of two turns


def contrast(page: Page, selector: str) -> float:
    """Of an element's text on the page's background (WCAG 2)."""
    colours = page.evaluate("""(selector) => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const rgb = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
      };
      const style = (one) => getComputedStyle(one);
      return [rgb(style(document.querySelector(selector)).color), rgb(style(document.body).backgroundColor)];
    }""", selector)

    def luminance(rgb: list[int]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(colour) for colour in colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_follow_the_system_and_the_button(opener: Opener, run_dir: Path, dark: bool) -> None:
    page = opener(write_report(run_dir), dark=dark)
    background = "body => getComputedStyle(body).backgroundColor"
    body = page.locator("body")

    def is_dark() -> bool:
        return sum(int(part) for part in re.findall(r"\d+", body.evaluate(background))[:3]) < 200

    assert is_dark() is dark
    for selector in ("h1", ".facts dt", ".tile .value", ".results tbody th", ".hint", ".row-id", ".row .gain",
                     ".scores .ok"):
        assert contrast(page, selector) >= 4.5, selector
    button = page.locator("#theme")
    expect(button).to_have_attribute("aria-pressed", str(dark).lower())
    button.click()
    assert is_dark() is not dark
    page.reload()
    assert is_dark() is not dark
    expect(button).to_have_attribute("aria-pressed", str(not dark).lower())


def test_on_a_phone_list_and_episode_take_turns(opener: Opener, run_dir: Path, large_report: Path) -> None:
    for report in (write_report(run_dir), large_report):
        page = opener(report, width=390, height=844)
        expect(page.locator("#browser")).to_have_attribute("data-ready", "true")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        expect(page.locator("#detail")).to_be_hidden()
        page.locator(".row").nth(1).click()
        expect(page.locator("#detail")).to_be_visible()
        expect(page.locator("#list")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        column, picture = page.locator(".turn").first.bounding_box(), page.locator(".camera").bounding_box()
        assert column and 250 < column["width"] < 390 and picture and picture["width"] <= 390
        page.locator(".back").click()
        expect(page.locator("#list")).to_be_visible()


def test_charts_tell_their_values_by_pointer_and_by_key(opener: Opener, run_dir: Path) -> None:
    page = opener(write_report(run_dir))
    chart = page.locator(".chart").nth(1)
    tip = page.locator("#tip")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text("step 1")
    chart.blur()
    expect(tip).to_be_hidden()
    chart.hover()
    expect(tip).to_contain_text("step 1")


def test_names_and_roles_for_those_who_do_not_see(page: Page) -> None:
    assert page.get_by_role("listbox", name="Episodes").count() == 1
    selected = page.locator("#list").get_by_role("option", selected=True)
    assert selected.get_attribute("aria-posinset") == "1"
    expect(page.get_by_role("status")).to_have_text(f"{COUNT} episodes")
    nameless: Any = page.evaluate("""() => [...document.querySelectorAll("button, select, input")].filter((one) =>
      !one.textContent.trim() && !one.ariaLabel && !one.labels?.length).map((one) => one.outerHTML)""")
    assert nameless == []
