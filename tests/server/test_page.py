"""The page in a real browser."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from eaglerl.policies.auto_policy import make_auto_policy
from eaglerl.server import Modes, Service, auto_mode, standard_modes

from .tiny import NAME, PATIENCE, greedy_text, serving, tiny_decoder

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: apt install chromium"
)
TEMPLATED = "u:hello hello\na:"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # The sandbox of Chromium does not start for root, as in containers.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served) -> Iterator:
    """The page, which must complain of nothing."""
    with opened(browser, served[0]) as page:
        yield page


@contextmanager
def opened(browser, address: str) -> Iterator:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console",
        lambda m: complaints.append(f"{m.type}: {m.text} ({m.location.get('url')})"),
    )
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.goto(address)
    expect(page.locator("#mode option")).not_to_have_count(0)
    yield page
    context.close()
    # A page that stops a session aborts its own request, and refusals are logged by the browser.
    assert [text for text in complaints if "/live/sessions" not in text] == []


def fill(page, *, tokens: int, mode: str, second: str = "", pace: str = "0") -> None:
    page.get_by_label("Prompt").fill("hello hello")
    page.locator("#mode").select_option(mode)
    page.locator("#mode-second").select_option(second)
    page.get_by_label("New tokens").fill(str(tokens))
    page.locator("#pace").select_option(pace)


def test_text_and_tree_come_and_one_can_go_back(page) -> None:
    fill(page, tokens=60, mode="tree-lookup")
    page.get_by_role("button", name="Start").click()
    heading = page.get_by_role("heading", name="tree-lookup")
    expect(heading).to_contain_text("ended: token limit")
    text = page.get_by_role("region", name="Text, tree-lookup")
    expect(text).to_have_text(greedy_text(TEMPLATED, 60))
    place = page.locator("#place")
    last = int(place.inner_text().split()[-1])
    assert 1 < last < 60
    tree = page.get_by_role("img").filter(has=page.locator(".node")).first
    expect(tree.locator(".node.root")).to_have_count(1)
    expect(tree.locator(".node.target")).to_have_count(1)
    summary = page.locator(".summary")
    expect(summary).to_contain_text(f"Cycle {last}:")
    # Every drafted node is drawn, and as many are lit as the counter says.
    page.get_by_role("heading", name="How to read it").click()
    lit = 0
    for cycle in range(last - 1, max(0, last - 12), -1):
        page.keyboard.press("ArrowLeft")
        expect(place).to_have_text(f"cycle {cycle} of {last}")
        expect(summary).to_contain_text(f"Cycle {cycle}:")
        rows = int(page.locator("[data-value=rows]").inner_text())
        expect(tree.locator(".node")).to_have_count(rows + 1)
        length = int(page.locator("[data-value=length]").inner_text())
        expect(tree.locator(".node.accepted")).to_have_count(length - 1)
        lit += length - 1
    assert lit > 0
    expect(text.locator(".later")).not_to_have_count(0)
    page.keyboard.press("End")
    expect(place).to_have_text(f"cycle {last} of {last}")
    page.keyboard.press("Home")
    expect(summary).to_contain_text("The prompt was read")


def test_pause_step_and_run_by_keyboard(page, served) -> None:
    _, service = served
    fill(page, tokens=40, mode="plain", pace="1000")
    page.get_by_role("button", name="Start").press("Enter")
    place = page.locator("#place")
    expect(place).to_contain_text("cycle 1")
    page.locator("h1").click()
    page.keyboard.press("Space")
    run = page.get_by_role("button", name="Run")
    expect(run).to_be_visible()
    # A step that was on its way may still arrive.
    page.wait_for_timeout(300)
    stopped = int(place.inner_text().split()[-1])
    for more in (1, 2):
        page.keyboard.press("ArrowRight")
        expect(page.locator(".summary")).to_contain_text(f"Cycle {stopped + more}:")
    assert service.engine.load["live"] == 1
    page.locator("#pace").select_option("0")
    run.click()
    expect(page.get_by_role("heading", name="plain")).to_contain_text("ended")
    expect(place).to_have_text("cycle 39 of 39")


def test_two_modes_side_by_side(page) -> None:
    fill(page, tokens=40, mode="plain", second="tree-lookup")
    page.get_by_role("button", name="Start").click()
    expected = greedy_text(TEMPLATED, 40)
    for mode in ("plain", "tree-lookup"):
        expect(page.get_by_role("heading", name=mode)).to_contain_text("ended")
        expect(page.get_by_role("region", name=f"Text, {mode}")).to_have_text(expected)
    assert page.locator(".lane").count() == 2


def test_modes_are_described_in_the_order_of_the_lanes(page) -> None:
    described = page.locator("#mode-description")
    for modes in (("plain", "tree-lookup"), ("tree-lookup", "plain"), ("lookup", "lookup")):
        fill(page, tokens=1, mode=modes[0], second=modes[1])
        lines = described.inner_text().splitlines()
        assert [line.partition(":")[0] for line in lines] == list(dict.fromkeys(modes))


def test_stop_frees_the_decoder_and_errors_are_shown(page, served) -> None:
    _, service = served
    fill(page, tokens=900, mode="plain", pace="1000")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#place")).to_contain_text("cycle 1")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    page.wait_for_timeout(200)
    assert service.engine.load["live"] == 0
    # The tiny model's context holds fewer tokens than the field allows.
    page.get_by_label("Prompt").fill("x" * 1100)
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("tokens, at most")


def test_it_fits_a_narrow_screen_in_both_themes(page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    fill(page, tokens=12, mode="tree-lookup", second="plain")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", name="plain")).to_contain_text("ended")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    backgrounds = set()
    for theme in ("light", "dark"):
        page.locator("#theme").select_option(theme)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_every_control_has_a_name_and_shows_its_focus(page) -> None:
    names = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')]
        .filter((element) => element.checkVisibility())
        .map((element) => (element.labels?.[0]?.textContent ?? element.textContent).trim())"""
    )
    assert len(names) >= 10
    assert all(names)
    page.get_by_label("Prompt").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_two_modes_are_chosen_and_each_lane_counts_for_itself(page) -> None:
    assert page.locator("#mode").input_value() == "best-constant"
    assert page.locator("#mode-second").input_value() == "plain"
    page.get_by_label("Prompt").fill("hello hello")
    page.get_by_label("New tokens").fill("40")
    page.get_by_role("button", name="Start").click()
    lanes = [page.locator(".lane").nth(place) for place in (0, 1)]
    for lane in lanes:
        expect(lane.get_by_role("heading")).to_contain_text("ended")
        expect(lane.locator(".headline")).to_have_text(re.compile(r"^\d+\.\d\d times plain$"))
    counts = [lane.locator(".counter").inner_text() for lane in lanes]
    cycles = [int(re.match(r"cycle (\d+) of \1 · 40 tokens · \d+\.\d\d s$", c)[1]) for c in counts]
    # The constant tree needs fewer cycles than one a token.
    assert cycles[0] < cycles[1] == 39
    # More than four lines of text are seen at once.
    lines = page.evaluate(
        """() => { const text = document.querySelector('.text'), style = getComputedStyle(text);
        return text.clientHeight / parseFloat(style.lineHeight); }"""
    )
    assert lines > 6


def test_wide_trees_and_long_chains_stay_within_the_panel(page) -> None:
    for mode in ("tree:60/3/8", "tree:12/11/1"):
        # The page's own list has none so large.
        page.locator("#mode").evaluate(
            "(select, mode) => { select.add(new Option(mode, mode)); }", mode
        )
        fill(page, tokens=30, mode=mode)
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("heading", name=mode)).to_contain_text("ended")
        page.get_by_role("heading", name="How to read it").click()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        panel, zoom = page.locator(".tree"), page.locator(".zoom button")
        # Those of the page's whole width have to fit or to scroll, and all can be reached.
        size = "(e) => [e.scrollWidth, e.scrollHeight, e.clientWidth, e.clientHeight]"
        # Read in one step: the picture may be drawn anew between two.
        fits, width, height = panel.evaluate(
            f"""(panel) => {{
            const box = panel.querySelector('svg').getBoundingClientRect();
            return [({size})(panel), box.width, box.height];
            }}"""
        )
        assert width <= fits[0] + 1
        assert height <= fits[1] + 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        zoom.nth(2).click()
        zoom.nth(2).click()
        larger = panel.locator("svg").bounding_box()
        assert larger["width"] > 1.5 * width
        grown = panel.evaluate(size)
        assert grown[2:] == pytest.approx(fits[2:], abs=20)
        assert grown[0] + 1 >= larger["width"]
        zoom.nth(1).click()
        # The picture may be drawn anew a moment later.
        page.wait_for_function(
            """(width) => {
            const { width: now } = document.querySelector('.tree svg').getBoundingClientRect();
            return Math.abs(now - width) < 1e-3 * width;
            }""",
            arg=width,
        )


def test_the_policy_that_learns_beside_the_constant_tree(browser) -> None:
    decoder = tiny_decoder()
    auto = make_auto_policy(decoder.draft_head.config.draft_vocab_size)
    modes = Modes([auto_mode(auto), *standard_modes()], "auto")
    service = Service(decoder, modes, model_name=NAME)
    with serving(service) as address, opened(browser, address) as page:
        assert page.locator("#mode").input_value() == "auto"
        assert page.locator("#mode-second").input_value() == "best-constant"
        page.get_by_label("Prompt").fill("hello hello")
        page.get_by_label("New tokens").fill("60")
        page.get_by_role("button", name="Start").click()
        for mode in ("auto", "best-constant"):
            expect(page.get_by_role("heading", name=mode)).to_contain_text("ended: token limit")
            text = page.get_by_role("region", name=f"Text, {mode}")
            expect(text).to_have_text(greedy_text(TEMPLATED, 60))
        lane = page.locator(".lane").first
        last = int(re.match(r"cycle (\d+) of \1 ", lane.locator(".counter").inner_text())[1])
        # Cycles that drafted nothing are shown as well: the root alone.
        rows = set()
        for _ in range(last - 1):
            page.keyboard.press("ArrowLeft")
            tree = lane.get_by_role("img").filter(has=page.locator(".node"))
            expect(tree.locator(".node.root")).to_have_count(1)
            rows.add(tree.locator(".node").count())
        assert min(rows) >= 2
    assert auto.cost.cycles >= last
