"""The report's page in a browser: an installed Chromium, which Playwright drives.

Without one the tests are skipped; where OOD_AUDIT_TEST_BROWSER is `required`, as in CI, they fail.
"""

import io
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image

from ood_audit.reports.html import render
from tests.test_report_html import HOSTILE, copy, known, label_issue, luminance, whole

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = [(390, 844), (1280, 900)]
BESIDE = "<b>beside</b>.jpg"  # a neighbour that is not listed
TABS = ("ood", "labels", "duplicates", "unreadable")


@pytest.fixture(scope="session")
def browser():
    executable = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if executable is None:
        missing = f"no Chromium is installed (looked for {', '.join(CHROMIUM)})"
        if os.environ.get("OOD_AUDIT_TEST_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without its sandbox, which a container run by root does not allow: it only opens this page.
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), ((seed * 53) % 256, (seed * 97) % 256, (seed * 29) % 256)).save(out, "WEBP")
    return out.getvalue()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Forty listed images, eighteen of them flagged, and the names of HOSTILE among them; opened from disk."""
    rows = []
    for i in range(40):
        name = HOSTILE[i] if i < len(HOSTILE) else f"folder {i % 3}/a picture with quite a long name {i:03}.jpg"
        kind = ["stop sign", "wrench", "owl"][i % 3]
        given = {"path": name, "label": ["cat", "dog", HOSTILE[0]][i % 3], "thumbnail": picture(i)}
        shift = "semantic" if i < 12 else "covariate" if i < 18 else "in-distribution"
        near = [(i + 1) % 40, {"path": BESIDE, "thumbnail": picture(99)}]
        more = {"image_id": f"id{i}", "flagged": i < 18, "shift": shift, "cluster": kind if i < 18 else None}
        rows.append(known(i + 1, **given, **more, neighbours=near, xy=(i / 40, (i * 7 % 40) / 40)))
    wrong = [label_issue(image_id=f"l{i}", path=f"label {i}.jpg", thumbnail=picture(i)) for i in range(3)]
    wrong.append(label_issue(image_id="l9", path=HOSTILE[2], evidence=HOSTILE[3], suggestion=HOSTILE[0]))
    double = [[copy(f"d{i}/large.jpg", True, thumbnail=picture(i)), copy(f"d{i}/{HOSTILE[1]}")] for i in range(15)]
    page = whole(rows=rows, findings=wrong, duplicates=double, unreadable=[(HOSTILE[4], HOSTILE[0])])
    page = replace(page, title=HOSTILE[2], next_steps=[(HOSTILE[0], f"ood-audit export '{HOSTILE[1]}'")])
    path = tmp_path_factory.mktemp("page") / "report #1.html"
    path.write_text(render(page), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, report):
    """Opens the page; in the end nothing may have been complained of, fetched, or asked of the person."""
    noise: list[str] = []
    contexts = []

    def opened(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: noise.append(f"alert: {dialog.message}"))
        page.on("request", lambda request: noise.append(request.url) if is_foreign(request.url) else None)
        page.goto(report)
        return page

    def is_foreign(url: str) -> bool:
        return url != report and not url.startswith("data:image/webp")

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


@pytest.fixture
def page(visit):
    return visit()


def shown(page, panel="ood"):
    """The paths of the cards that can be seen, in their order."""
    return page.evaluate(
        "panel => [...document.querySelectorAll(`#${panel} .card`)].filter(c => c.checkVisibility())"
        ".map(c => c.dataset.path)",
        panel,
    )


def wait_until(page, condition: str) -> None:
    """Playwright's own way to wait needs `eval`, which the page forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never: {condition}"
        page.wait_for_timeout(20)


@contextmanager
def copied(page):
    """A list that gets what is copied meanwhile: the clipboard of a browser without a screen is not to be relied on."""
    page.evaluate(
        "() => { window.copied = []; navigator.clipboard.writeText = async (text) => { window.copied.push(text); }; }"
    )
    texts: list[str] = []
    yield texts
    wait_until(page, "window.copied.length > 0")
    texts += page.evaluate("window.copied")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_section_fits_the_window(visit, width, height, scheme):
    page = visit(width, height, scheme)
    assert len(shown(page)) == 40
    for tab in TABS:
        page.click(f"#tab-{tab}")
        assert page.is_visible(f"#{tab}") and page.locator(".findings:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Nothing is cut off on the right either, unless it can be scrolled to.
        beyond = page.evaluate(
            "([panel, width]) => [...document.querySelectorAll(`#${panel} *`)].filter(e => e.checkVisibility() "
            "&& e.getBoundingClientRect().right > width + 1 && !e.closest('.chips, .scroll, .path, .offscreen'))"
            ".map(e => e.outerHTML.slice(0, 80))",
            [tab, width],
        )
        assert beyond == []
    page.click("#tab-ood")
    page.locator("#cards .thumb").first.click()
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height


def contrast(page, selector: str) -> float:
    """Of the text of the first such element with what is behind it."""
    colours = page.evaluate(
        """selector => {
            const element = [...document.querySelectorAll(selector)].find(e => e.checkVisibility());
            let ground = element;
            while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
            const hex = (n) => Number(n).toString(16).padStart(2, "0");
            return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]
                .map((colour) => "#" + colour.match(/\\d+/g).slice(0, 3).map(hex).join(""));
        }""",
        selector,
    )
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(visit, scheme):
    page = visit(scheme=scheme)
    dark = luminance("#1c1c1c")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = luminance("#" + "".join(f"{int(n):02x}" for n in ground[4:-1].split(",")))
    assert (brightness < 2 * dark) == (scheme == "dark")
    everywhere = ("h1", ".lead", ".tile dt", ".tile b", ".tile.first b", ".steps p", ".chip", ".command code", "footer")
    in_cards = (
        ".card .score",
        ".card .tag.flag",
        ".card .first",
        ".card .path bdi",
        ".card button",
        ".card .small span",
    )
    for selector in (*everywhere, *in_cards):
        assert contrast(page, selector) >= 4.5, selector
    page.click("#theme")  # auto, then light, whatever the system says
    page.wait_for_timeout(50)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)"


def test_filters_can_be_combined(page):
    everything = shown(page)
    page.fill("#ood [name=text]", "FOLDER 1")
    of_folder = shown(page)
    assert of_folder == [path for path in everything if "folder 1" in path] != []
    page.select_option("#ood [name=label]", label="dog (13)")
    assert shown(page) == [path for i, path in enumerate(everything) if i % 3 == 1 and "folder 1" in path]
    page.fill("#ood [name=text]", "")
    page.select_option("#ood [name=label]", "")
    page.select_option("#ood [name=show]", "flagged")
    assert shown(page) == everything[:18]
    page.select_option("#ood [name=show]", "covariate")
    assert shown(page) == everything[12:18]
    page.select_option("#ood [name=show]", "")
    page.click(".chip:has-text('wrench')")
    assert shown(page) == everything[1:18:3]
    assert page.inner_text("#ood-shown") == "6"
    page.click(".chip:has-text('wrench')")
    assert shown(page) == everything
    page.fill("#ood [name=text]", "no such path")
    assert shown(page) == [] and page.is_visible("#ood .nothing")
    assert page.is_disabled("#ood [data-does=copy-shown]")


def test_sorting_keeps_every_image(page):
    by_rank = shown(page)
    page.select_option("#ood [name=sort]", "group")
    by_group = [by_rank[i] for first in (2, 0, 1) for i in range(first, 18, 3)] + by_rank[18:]  # owl, stop sign, wrench
    assert shown(page) == by_group
    page.select_option("#ood [name=sort]", "path")
    in_folders = [path for path in shown(page) if path.startswith("folder")]
    assert in_folders == sorted(in_folders) and sorted(shown(page)) == sorted(by_rank)
    page.select_option("#ood [name=sort]", "rank")
    assert shown(page) == by_rank


def test_the_dialog_opens_by_click_and_says_what_is_known(page):
    page.locator("#cards .thumb").nth(20).click()
    assert page.is_visible("#details[open]")
    assert page.inner_text("#details-place") == "21 of 40"
    text = page.inner_text("#details")
    for part in ("folder 2/a picture with quite a long name 020.jpg", "in distribution", "Nearest classes", "0.2500"):
        assert part in text
    assert page.locator("#details-classes .bar").count() == 3
    assert page.locator("#details-near li").count() == 2
    assert BESIDE in text
    page.locator("#details-near button").click()  # the neighbour is on the page
    assert "name 021.jpg" in page.inner_text("#details-title")
    page.keyboard.press("Escape")
    assert not page.is_visible("#details")


def test_the_dialog_by_keyboard(page):
    paths = shown(page)
    for key in ("j", "ArrowRight", "k", "j", "j"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert page.is_visible("#details[open]")
    assert page.evaluate("document.activeElement.id") == "details-title"
    assert page.inner_text("#details-place") == "3 of 40"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#details-place") == "4 of 40"
    for _ in range(12):  # the focus stays inside of it, or with the browser
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('#details')"
        assert page.evaluate(inside)
    page.keyboard.press("Escape")
    assert not page.is_visible("#details")
    # Where one was; the event of the closing comes after it.
    page.wait_for_function("path => document.activeElement.dataset.path === path", arg=paths[3], timeout=10_000)


def test_selected_paths_are_copied_exactly(page):
    paths = shown(page)
    page.locator("#cards .select").nth(4).check()  # a name with line ends
    page.locator("#cards .select").nth(6).check()
    page.locator("#cards .select").nth(8).click(modifiers=["Shift"])
    assert page.inner_text("#selected") == "4"
    with copied(page) as texts:
        page.click("[data-does=copy-selected]")
    assert texts == ["\n".join([paths[4], *paths[6:9]])]
    assert "Copied 4 paths" in page.inner_text("#toast")
    page.click("[data-does=clear]")
    assert not page.is_visible("#selection")


def test_shown_paths_commands_and_copies_are_copied(page):
    page.fill("#ood [name=text]", "folder 0")
    with copied(page) as texts:
        page.click("#ood-copy")
    assert texts == ["\n".join(shown(page))]
    with copied(page) as texts:
        page.click("[data-does=copy-command]")
    assert texts == [f"ood-audit export '{HOSTILE[1]}'"]
    page.click("#tab-duplicates")
    with copied(page) as texts:
        page.click("#duplicates-copy")
    assert texts == ["\n".join(f"d{i}/{HOSTILE[1]}" for i in range(15))]  # never the ones to keep


def test_two_images_of_one_path_are_two_and_each_has_its_own_longest_bar(browser, tmp_path):
    """Of two sources: both paths are copied; and each dialog's first bar is the card's nearest class."""
    best = {"cat": [("cat", 0.4), ("dog", 0.3)], "dog": [("dog", 0.5), ("cat", 0.1)]}
    rows = [
        known(i + 1, path="a/1.jpg", label=label, top_classes=best[label], neighbours=[])
        for i, label in enumerate(["cat", "dog"])
    ]
    path = tmp_path / "report.html"
    path.write_text(render(whole(rows=rows, map_points=[])), encoding="utf-8")
    page = browser.new_page()
    try:
        page.goto(path.as_uri())
        with copied(page) as texts:
            page.click("#ood-copy")
        assert texts == ["a/1.jpg\na/1.jpg"]
        for card, label in zip(page.query_selector_all("#cards .card"), best, strict=True):
            card.query_selector("[data-does=details]").click()
            bars = page.evaluate(
                "[...document.querySelectorAll('#details-classes .bars > div')].map(line => [line.querySelector('dt')"
                ".textContent, line.querySelector('.bar').getBoundingClientRect().width])"
            )
            assert max(bars, key=lambda bar: bar[1])[0] == bars[0][0] == label
            page.keyboard.press("Escape")
    finally:
        page.close()


def test_tabs_by_keyboard(page):
    page.focus("#tab-ood")
    for key, tab in (
        ("ArrowRight", "labels"),
        ("End", "unreadable"),
        ("ArrowRight", "ood"),
        ("ArrowLeft", "unreadable"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
        assert [t for t in TABS if page.is_visible(f"#{t}")] == [tab]
    page.keyboard.press("Home")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"


def test_the_map_opens_what_is_pointed_at(page):
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#map-tip")
    page.keyboard.press("Enter")
    assert page.inner_text("#details-place") == "1 of 40"
    page.keyboard.press("Escape")
    page.locator("#map").scroll_into_view_if_needed()
    x, y = page.evaluate(
        "(() => { const p = data.points.find(p => p[3] === 30); const b = byId('map').getBoundingClientRect();"
        " const s = b.width / 600; return [b.x + p[0] * s, b.y + p[1] * s]; })()"
    )
    page.mouse.click(x, y)
    assert "name 030.jpg" in page.inner_text("#details-title")


def test_pictures_are_decoded_when_they_are_reached(page):
    lazy = page.evaluate("[...document.querySelectorAll('#cards img')].every(image => image.loading === 'lazy')")
    assert lazy
    page.locator("#cards .card").last.scroll_into_view_if_needed()
    wait_until(page, "[...document.querySelectorAll('#cards img')].at(-1).naturalWidth === 64")


def test_hostile_names_are_only_text(page):
    for tab in TABS:
        page.click(f"#tab-{tab}")
    page.click("#tab-ood")
    for i in range(len(HOSTILE)):
        page.locator("#cards .thumb").nth(i).click()
        page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('script').length") == 2  # ours, and the block of data
    attributes = (
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert page.evaluate(attributes) == []
    assert shown(page)[: len(HOSTILE)] == HOSTILE
    names = page.locator("#cards .path code")
    assert names.nth(7).inner_text() == HOSTILE[7]  # {{ 7 * 7 }} was not reckoned
    assert names.nth(5).inner_text() == "photo\\u202egpj.exe"
