"""The report's page in a browser: an installed Chromium, which Playwright drives.

Without one the tests are skipped; where OOD_AUDIT_TEST_BROWSER is `required`, as in CI, they fail.
"""

import csv
import io
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ood_audit.reports import paging
from ood_audit.reports.html import render
from ood_audit.reports.model import Point, Sprites
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.reports.test_html import HOSTILE, finding, image, luminance, section
from tests.reports.test_html import page as page_of

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = [(390, 844), (1280, 900), (1920, 1080)]
KINDS = ("ood", "label", "exact-duplicate", "covariate-shift", "unusual")


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
    Image.new("RGB", (64, 48), ((seed * 53) % 256, (seed * 97) % 256, (seed * 29) % 256)).save(out, "JPEG")
    return out.getvalue()


def sheet(colours: list[str]) -> bytes:
    """A sprite sheet of squares, in one row."""
    whole, out = Image.new("RGB", (64 * len(colours), 64)), io.BytesIO()
    for i, colour in enumerate(colours):
        whole.paste(colour, (64 * i, 0, 64 * i + 64, 64))
    whole.save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def uri(i: int) -> str:
    return f"file:///data/{i}.jpg"


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Forty findings of all kinds, the names of HOSTILE among them; opened from disk."""
    names = [HOSTILE[i] if i < len(HOSTILE) else f"folder {i % 3}/a picture {i:03}.jpg" for i in range(40)]
    label = lambda i: ["cat", "dog", "bird"][i % 3]  # noqa: E731

    def made(kind, numbers, **more):
        own = {"split": "test", "source": "/data/a"}, {"split": "train", "source": "/data/b"}
        return [
            finding(names[i], kind, i + 1, uri=uri(i), label=label(i), neighbours=near(i), **own[i % 2], **more)
            for i in numbers
        ]

    def near(i):
        return [image(names[(i + 1) % 40], uri=uri((i + 1) % 40)), image("<b>beside</b>.jpg", uri=uri(99))]

    sections = [
        section(
            "ood",
            (("gun",), made("ood", range(6), looks_like="gun")),
            (("owl",), made("ood", range(6, 10), looks_like="owl")),
            ((), made("ood", range(10, 14))),
        ),
        section("label", (("hat", "cat"), made("label", range(15, 21, 3))), ((), made("label", (16, 17, 19)))),
        section("exact-duplicate", ((), made("exact-duplicate", range(24, 28), twin=image("kept.jpg", uri=uri(98))))),
        section("covariate-shift", (("dog",), made("covariate-shift", range(28, 31)))),
        section("unusual", ((), made("unusual", range(31, 40)))),
    ]
    page = page_of(
        *sections,
        title=HOSTILE[2],
        classes=["cat", "dog", "bird", "hat", HOSTILE[0]],
        typical={name: [image(f"{name}{i}", uri=uri(50 + i)) for i in range(6)] for name in ("cat", "dog", "hat")},
        pictures={uri(i): picture(i) for i in range(100)},
        unreadable=[(HOSTILE[4], HOSTILE[0])],
        unreadable_count=1,
        points=[
            Point("unlisted", 0.5, 0.9, "not flagged", "cat", 600, uri(97)),
            *(Point(f"id of {names[i]}", i / 40, (i * 7 % 40) / 40, "flagged", label(i), i + 1) for i in range(40)),
        ],
        sprites=Sprites(sheet(["red", "blue"]), 64, 2, [uri(96), uri(97)]),
        next_steps=[(HOSTILE[0], f"ood-audit export '{HOSTILE[1]}'")],
        facts=[("Model", "starter")],
    )
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
        return url != report and not url.startswith(("data:image/jpeg", "blob:"))

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens the pages of a made-up report of its own, the first one first; returns it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def opened(whole, length=paging.LENGTH):
        for one in paging.split(whole, length):
            (tmp_path / paging.file_name(one.number)).write_text(render(one), encoding="utf-8")
        page = context.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield opened
    context.close()


@pytest.fixture
def page(visit):
    return visit()


def shown(page):
    """The paths of the cards that can be seen, in their order."""
    return page.evaluate(
        "[...document.querySelectorAll('.card')].filter(c => c.checkVisibility()).map(c => c.dataset.path)"
    )


def pick(page, name, text):
    """Choose the first option of a filter that begins with a text."""
    options = page.locator(f"[name={name}] option")
    page.select_option(f"[name={name}]", index=[t.startswith(text) for t in options.all_inner_texts()].index(True))


PIXEL = "(where) => [...document.querySelector(where).getContext('2d').getImageData(5, 5, 1, 1).data].slice(0, 3)"


def marks(page):
    """What was decided, by path."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.card[data-mark]')]"
        ".map(c => [c.dataset.path, c.dataset.mark]))"
    )


def wait_for_mark(page, path, mark):
    """Wait until a card shows what was decided in a dialog, which tells of its closing a moment later."""
    page.wait_for_function(
        "([path, mark]) => [...document.querySelectorAll('.card')]"
        ".some(card => card.dataset.path === path && card.dataset.mark === mark)",
        arg=[path, mark],
    )


def at(page):
    """The path of the card that has the focus."""
    return page.evaluate("document.activeElement.dataset.path")


def saved(page) -> list[dict[str, str]]:
    """The decisions that Finish downloads."""
    with page.expect_download() as download:
        page.click("#progress [data-does=finish]")
    assert download.value.suggested_filename == "decisions.csv"
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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
def test_pictures_come_first_and_everything_fits_the_window(visit, width, height, scheme):
    page = visit(width, height, scheme)
    first = page.locator(".card .thumb").first.bounding_box()
    assert first["y"] < 320 and first["y"] + first["height"] < height  # the first picture is on the first screen
    page.locator(".filters summary").click()
    page.locator(".counts a", has_text="Details").click()
    assert page.is_visible("#map") and page.is_visible(".chart")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing is cut off on the right either, unless it can be scrolled to.
    beyond = page.evaluate(
        "width => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && "
        "e.getBoundingClientRect().right > width + 1 && !e.closest('.counts, .scroll, .path, .offscreen, svg'))"
        ".map(e => e.outerHTML.slice(0, 80))",
        width,
    )
    assert beyond == []
    page.locator(".card .thumb").first.click()
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
    assert page.evaluate("document.querySelector('.details-picture img').getBoundingClientRect().top") >= 0


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
    page.locator(".counts a", has_text="Details").click()
    page.locator("[name=numbers]").check()
    page.keyboard.press("n")
    page.keyboard.press("k")
    everywhere = ("h1", ".counts a", ".lead", ".tools label", ".group-head h3", ".steps p", ".command code", "footer")
    in_cards = (".card .say", ".card .say strong", ".card .numbers", ".card .path bdi", ".actions button", ".primary")
    for selector in (*everywhere, *in_cards):
        assert contrast(page, selector) >= 4.5, selector
    page.click("#theme")  # auto, then light, whatever the system says
    page.wait_for_timeout(50)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)"


def test_the_line_of_counts_filters(page):
    everything = shown(page)
    page.click(".counts [data-kind=label]")
    of_kind = shown(page)
    assert 0 < len(of_kind) < len(everything)
    assert [kind for kind in KINDS if page.is_visible(f"#{kind}")] == ["label"]
    assert page.inner_text("#shown") == str(len(of_kind))
    page.click(".counts [data-kind=label]")
    assert shown(page) == everything


def test_filters_can_be_combined_and_searched(page):
    everything = shown(page)
    page.fill("[name=text]", "FOLDER 1")
    of_folder = shown(page)
    assert of_folder == [path for path in everything if "folder 1" in path] != []
    page.click(".filters summary")
    pick(page, "nearest", "dog (")
    page.fill("[name=text]", "owl")  # the name of a group
    assert shown(page) == [path for i, path in enumerate(everything[6:10], 6) if i % 3 == 1]
    page.fill("[name=text]", "")
    page.select_option("[name=nearest]", "")
    pick(page, "group", "gun (")
    assert shown(page) == everything[:6]
    page.select_option("[name=group]", "")
    pick(page, "folder", "folder 2 (")
    assert all("folder 2" in path for path in shown(page)) and len(shown(page)) == 7
    page.select_option("[name=folder]", "")
    pick(page, "split", "train (")
    pick(page, "source", "/data/a (")
    assert shown(page) == []
    pick(page, "source", "/data/b (")
    assert shown(page)[:5] == everything[1:10:2] and page.inner_text("#shown") == str(len(shown(page))) == "18"
    page.fill("[name=text]", "no such path")
    assert shown(page) == [] and page.is_visible("#nothing")


def test_sorting_keeps_every_card(page):
    grouped = shown(page)
    page.click(".filters summary")
    page.select_option("[name=sort]", "folder")
    in_folders = [path for path in shown(page) if path.startswith("folder")]
    assert in_folders == sorted(in_folders) and sorted(shown(page)) == sorted(grouped)
    page.keyboard.press("Escape")
    page.select_option("[name=sort]", "severity")
    numbers = [path[-7:-4] for path in shown(page) if "picture" in path]
    assert numbers == sorted(numbers)  # all are of one severity: by their rank
    page.select_option("[name=sort]", "group")
    assert shown(page) == grouped


def test_the_size_of_the_pictures_and_what_is_below_them(page):
    def height():
        return page.locator(".card .thumb").first.bounding_box()["height"]

    assert height() == 220
    for size in ("120", "480"):
        page.fill("[name=size]", size)
        assert height() == float(size)
    assert page.is_visible(".card .say") and not page.is_visible(".card .numbers")
    page.check("[name=numbers]")
    assert page.is_visible(".card .numbers")
    page.check("[name=bare]")
    assert not page.is_visible(".card .say") and not page.is_visible(".card .numbers")
    page.reload()
    assert height() == 480 and page.is_checked("[name=bare]")  # as it was left


def test_the_dialog_compares(page):
    page.click(".counts [data-kind=label]")
    page.locator("#label .thumb").first.click()
    assert page.is_visible("#details[open]")
    text = page.inner_text("#details")
    assert page.inner_text("#details-say") == "In hat, but looks like cat: 97% against less than 1%."
    for part in ("In this class: hat", "Nearest class: cat", "Nearest classes", "Most like it in the folder"):
        assert part in text
    assert page.locator("#details-typical .strip").count() == 2
    assert page.locator("#details-typical img").count() == 12
    widths = page.evaluate(
        "[...document.querySelectorAll('.bars > div')].map(line => [line.querySelector('dt').textContent, "
        "line.querySelector('.bar').getBoundingClientRect().width, line.className])"
    )
    assert [name for name, _, _ in widths] == ["cat", "dog", "hat"]
    assert widths[0][1] > widths[1][1] > widths[2][1] and widths[2][2] == "given"
    assert not page.is_visible("#details-facts")
    page.click("#details-numbers summary")
    assert "ΔEnergy" in page.inner_text("#details-facts")
    before = page.inner_text("#details-title")
    page.locator("#details-near button").click()  # the neighbour is on the page
    assert page.inner_text("#details-title") != before
    page.keyboard.press("Escape")
    assert not page.is_visible("#details")


def test_a_duplicate_is_beside_the_one_to_keep(page):
    page.click(".counts [data-kind=exact-duplicate]")
    page.locator("#exact-duplicate .thumb").first.click()
    captions = page.locator(".details-picture figcaption")
    assert captions.nth(1).inner_text() == "kept: kept.jpg"
    colours = [
        page.evaluate(
            """async (i) => {
                const image = document.querySelectorAll(".details-picture img")[i];
                await image.decode();
                const context = new OffscreenCanvas(64, 48).getContext("2d");
                context.drawImage(image, 0, 0);
                return [...context.getImageData(5, 5, 1, 1).data].slice(0, 3);
            }""",
            i,
        )
        for i in range(2)
    ]
    wait_until(page, "document.querySelector('.difference').width === 64")
    differences = [abs(one - other) for one, other in zip(*colours, strict=True)]
    assert page.evaluate(PIXEL, ".difference") == [min(4 * value, 255) for value in differences]
    assert captions.nth(2).inner_text() == f"difference, 4 × as strong: {sum(differences) / 7.65:.1f}% on average"


def test_the_same_picture_has_no_difference(open_page):
    found = finding(kind="exact-duplicate", uri=uri(1), twin=image("kept.jpg", uri=uri(2)))
    page = open_page(
        page_of(section("exact-duplicate", ((), [found])), pictures=dict.fromkeys([uri(1), uri(2)], picture(1)))
    )
    page.locator(".card .thumb").click()
    wait_until(page, "document.querySelectorAll('.details-picture figcaption')[2].textContent === 'no difference'")
    assert page.evaluate(PIXEL, ".difference") == [0, 0, 0]


@pytest.mark.parametrize("in_dialog", [False, True])
def test_deciding_by_keys(page, in_dialog):
    paths = shown(page)
    page.keyboard.press("n")
    assert at(page) == paths[0]
    if in_dialog:
        page.keyboard.press(" ")
        assert page.is_visible("#details[open]")
    page.keyboard.press("k")
    page.keyboard.press("r")  # it has gone on to the next one
    assert marks(page) == {paths[0]: "✓ keep", paths[1]: "✕ remove"}
    page.keyboard.press("l")
    assert page.input_value("#naming-label") == ""  # nothing is suggested where the class is unknown
    page.keyboard.type("dog")
    page.keyboard.press("Enter")
    wait_for_mark(page, paths[2], "→ dog")
    page.keyboard.press("c")
    assert page.input_value("#naming-label") == "gun"  # what its group looks like
    page.keyboard.press("Enter")
    wait_for_mark(page, paths[3], "→ gun")
    page.keyboard.press("p")
    page.keyboard.press("p")
    page.keyboard.press("n")
    page.keyboard.press("u")
    assert list(marks(page)) == paths[:3]
    if in_dialog:
        assert page.inner_text("#details-place").startswith("4 of")  # where the decision was taken back
        page.keyboard.press(" ")
        assert not page.is_visible("#details")
    assert page.inner_text("#progress span") == "3 of 26 reviewed"
    rows = saved(page)
    assert [(row["path"], row["kind"], row["decision"], row["label"]) for row in rows] == [
        (paths[0], "ood", "keep", ""),
        (paths[1], "ood", "remove", ""),
        (paths[2], "ood", "relabel", "dog"),
    ]
    assert all(row["content_hash"] and row["when"].endswith("Z") and row["uri"] == uri(i) for i, row in enumerate(rows))


def test_a_suggested_label_is_filled_in_and_completed(page):
    page.click(".counts [data-kind=label]")
    page.keyboard.press("n")
    page.keyboard.press("l")
    assert page.input_value("#naming-label") == "cat"
    assert page.get_attribute("#naming-label", "list") == "classes"
    assert page.locator("#classes option").count() == 5
    page.keyboard.press("Escape")
    assert marks(page) == {}


def test_what_is_reviewed_is_kept_and_left_out(page):
    page.keyboard.press("n")
    page.keyboard.press("k")
    decided = marks(page)
    page.reload()
    assert marks(page) == decided and page.is_visible("#progress")
    page.click(".filters summary")
    page.select_option("[name=state]", "open")
    assert set(decided).isdisjoint(shown(page))
    page.select_option("[name=state]", "done")
    assert shown(page) == list(decided)


def test_a_group_is_decided_at_once(page):
    paths = shown(page)
    page.locator("[data-does=remove-group]").first.click()
    assert marks(page) == dict.fromkeys(paths[:6], "✕ remove")
    page.locator("[data-does=keep-group]").first.click()  # nothing of it is open
    assert marks(page) == dict.fromkeys(paths[:6], "✕ remove")
    page.keyboard.press("u")
    assert marks(page) == {}


def test_other_keys(page):
    paths = shown(page)
    page.keyboard.press("?")
    assert page.is_visible("#help[open]")
    page.keyboard.press("k")  # decides nothing
    page.keyboard.press("Escape")
    assert marks(page) == {}
    page.keyboard.press("n")
    page.keyboard.press("ArrowRight")
    assert at(page) == paths[1]
    page.keyboard.press("ArrowDown")
    assert at(page) not in paths[:2]
    page.keyboard.press("/")
    page.keyboard.type("k")  # into the search
    assert page.input_value("[name=text]") == "k" and marks(page) == {}


def test_the_dialog_keeps_the_focus(page):
    paths = shown(page)
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "details-title"
    for _ in range(12):  # the focus stays inside of it, or with the browser
        page.keyboard.press("Tab")
        inside = "document.activeElement === document.body || !!document.activeElement.closest('#details')"
        assert page.evaluate(inside)
    page.click("#details [data-does=next]")
    page.keyboard.press("Escape")
    page.wait_for_function("path => document.activeElement.dataset.path === path", arg=paths[1], timeout=10_000)


def test_paths_and_commands_are_copied_exactly(page):
    page.click(".filters summary")
    with copied(page) as texts:
        page.click("[data-does=copy-shown]")
    assert texts == ["\n".join(shown(page))]
    page.locator(".counts a", has_text="Details").click()
    with copied(page) as texts:
        page.click("[data-does=copy-command]")
    assert texts == [f"ood-audit export '{HOSTILE[1]}'"]
    page.locator(".card .thumb").nth(4).click()  # a name with line ends
    with copied(page) as texts:
        page.click("[data-does=copy-path]")
    assert texts == [HOSTILE[4]]


def test_the_map_opens_zooms_and_colours(page):
    page.locator(".counts a", has_text="Details").click()
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#map-tip")
    page.keyboard.press("Enter")
    assert page.is_visible("#details[open]")
    page.keyboard.press("Escape")
    before = page.get_attribute("#map", "viewBox")
    page.click("[data-does=zoom-in]")
    assert float(page.get_attribute("#map", "viewBox").split()[2]) < float(before.split()[2])
    page.click("[data-does=zoom-out]")
    assert page.get_attribute("#map", "viewBox") == before
    page.select_option("#map-colour", "class")
    assert page.locator("#map-colours path").count() == 3  # one for each class
    assert page.inner_text("#map-legend").split() == ["cat", "15", "dog", "13", "bird", "13"]
    page.select_option("#map-colour", "score")
    assert [line.strip() for line in page.locator("#map-legend li").all_inner_texts()] == [
        "the most unusual 1% 8",
        "the next 4% 28",
        "the next 15% 4",
        "all others 1",
    ]
    page.select_option("#map-colour", "kind")
    assert page.locator("#map-colours path").count() == 0 and "flagged" in page.inner_text("#map-legend")


def on_map(page, x: float, y: float) -> tuple[float, float]:
    """Where a place on the map is in the window."""
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    left, top, width, height = (float(value) for value in page.get_attribute("#map", "viewBox").split())
    return box["x"] + (14 + 572 * x - left) / width * box["width"], box["y"] + (14 + 372 * y - top) / height * box[
        "height"
    ]


def test_a_mark_that_is_not_listed_shows_its_small_picture(page):
    page.locator(".counts a", has_text="Details").click()
    page.mouse.move(*on_map(page, 0.5, 0.9))
    assert page.inner_text("#map-tip").split("\n")[0] == "not flagged"
    blue = "([red, , blue]) => red < 9 && blue > 246"  # as near as a JPEG comes to it; it is the second of the sheet
    wait_until(page, f"({blue})(({PIXEL})('#map-tip canvas'))")
    page.mouse.click(*on_map(page, 0.5, 0.9))
    assert not page.is_visible("#details")


def test_an_area_of_the_map_is_reviewed(page):
    everything = shown(page)
    page.locator(".counts a", has_text="Details").click()
    page.click("[data-does=lasso]")
    corners = [(-0.02, -0.02), (0.245, -0.02), (0.245, 1.02), (-0.02, 1.02)]  # the first ten are further to the left
    page.mouse.move(*on_map(page, *corners[0]))
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*on_map(page, *corner), steps=3)
    page.mouse.up()
    assert shown(page) == everything[:10]
    assert page.inner_text("#chosen").startswith("10 findings of an area")
    page.keyboard.press("n")
    page.keyboard.press("k")
    assert at(page) == everything[1]
    page.click("#chosen")
    assert shown(page) == everything and not page.is_visible("#chosen")


def test_an_area_of_the_map_is_drawn_by_keys(page):
    everything = shown(page)
    page.locator(".counts a", has_text="Details").click()
    page.focus("[data-does=lasso]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "map"
    page.keyboard.press("Enter")
    assert "three corners" in page.inner_text("#toast")
    way = (("ArrowUp", 30), ("ArrowLeft", 40), (" ", 1), ("ArrowDown", 40), (" ", 1))  # the left edge, in the middle
    for key, times in (*way, ("ArrowRight", 8), (" ", 1), ("ArrowUp", 40), (" ", 1), ("Enter", 1)):
        for _ in range(times):
            page.keyboard.press(key)
    chosen = shown(page)
    assert 5 <= len(chosen) < 15 and chosen == everything[: len(chosen)]
    page.click("#chosen")
    page.click("[data-does=lasso]")
    page.keyboard.press("Escape")
    assert page.get_attribute("[data-does=lasso]", "aria-pressed") == "false"
    assert shown(page) == everything


def test_a_box_is_shown_in_its_picture(open_page):
    own = "file:///data/1.jpg#box=7&xywh=1,2,30,40"
    found = [finding("1.jpg#box=7", uri=own), finding("2.jpg", rank=2, uri=uri(2))]
    report = page_of(section("ood", ((), found)))
    assert paging.wanted(report) == [own, uri(2), f"{own}&in=picture"]
    pictures = {name: picture(i) for i, name in enumerate(paging.wanted(report))}
    page = open_page(replace(report, pictures=pictures))
    page.locator(".card .thumb").first.click()
    captions = page.locator("#details-picture figcaption").all_inner_texts()
    assert captions == ["in its picture"]
    assert page.locator("#details-picture img").count() == 2
    page.keyboard.press("n")
    assert page.locator("#details-picture img").count() == 1


def test_the_map_is_moved_by_dragging(page):
    page.locator(".counts a", has_text="Details").click()
    page.click("[data-does=zoom-in]")
    before = page.get_attribute("#map", "viewBox")
    x, y = on_map(page, 0.5, 0.5)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=3)
    page.mouse.up()
    after = page.get_attribute("#map", "viewBox")
    assert float(after.split()[0]) > float(before.split()[0]) and after.split()[2:] == before.split()[2:]
    assert not page.is_visible("#details")


def long_report(count: int):
    found = [finding(f"{i:03}.jpg", rank=i + 1, uri=uri(i), severity=i / count) for i in range(count)]
    return page_of(section("ood", ((), found)), pictures={uri(i): picture(i) for i in range(count)})


def test_more_cards_come_as_they_are_reached(open_page):
    page = open_page(long_report(400))
    assert page.inner_text("#shown") == "400"
    assert 50 < len(shown(page)) < 400  # the others are not on the page yet
    page.locator(".card").last.scroll_into_view_if_needed()
    wait_until(page, "document.querySelectorAll('.card').length > 100")
    page.click(".filters summary")
    page.select_option("[name=sort]", "severity")
    assert shown(page)[0] == "399.jpg"
    page.select_option("[name=sort]", "group")
    page.fill("[name=text]", "377")
    assert shown(page) == ["377.jpg"]
    page.fill("[name=text]", "")
    page.locator("[data-does=remove-group]").click()  # those that are not on the page yet, too
    assert len(saved(page)) == 400
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(shown(page)) == 400


def test_pages_of_a_report_keep_their_decisions_together(open_page):
    first = open_page(long_report(25), length=10)
    assert shown(first) == [f"{i:03}.jpg" for i in range(10)]
    first.keyboard.press("n")
    first.keyboard.press("k")
    first.locator(".pages a", has_text="3").first.click()
    third = first
    assert shown(third) == [f"{i:03}.jpg" for i in range(20, 25)]
    assert third.inner_text(".group .notice") == "20 more are on other pages."
    third.keyboard.press("n")
    third.keyboard.press("r")
    assert marks(third) == {"020.jpg": "✕ remove"}
    assert [(row["path"], row["decision"]) for row in saved(third)] == [("020.jpg", "remove"), ("000.jpg", "keep")]
    third.locator(".pages a", has_text="1").first.click()
    assert marks(third) == {"000.jpg": "✓ keep"}
    assert third.inner_text("#progress span") == "1 of 10 reviewed on this page"


def test_pictures_are_decoded_when_they_are_reached(page):
    page.locator(".card").last.scroll_into_view_if_needed()
    wait_until(page, "[...document.querySelectorAll('.card img')].at(-1).naturalWidth === 64")


def test_hostile_names_are_only_text(page):
    for i in range(len(HOSTILE)):
        page.locator(".card .thumb").nth(i).click()
        page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('script').length") == 2  # ours, and the block of data
    attributes = (
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert page.evaluate(attributes) == []
    assert shown(page)[: len(HOSTILE)] == HOSTILE
    page.keyboard.press("n")
    page.locator("[data-does=keep-group]").first.click()
    page.locator("[data-does=keep-group]").nth(1).click()
    assert [row["path"] for row in saved(page)] == shown(page)[:10]  # exactly, through the CSV
    names = page.locator(".card .path")
    assert names.nth(7).inner_text() == HOSTILE[7]  # {{ 7 * 7 }} was not reckoned
    assert names.nth(5).inner_text() == "photo\\u202egpj.exe"


def test_a_session_from_run_to_apply_to_the_next_run(browser, tmp_path, monkeypatch):
    """By keys alone: what was decided is done, and not listed again."""
    monkeypatch.chdir(tmp_path)
    for folder in ("airplane", "sunflower"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for source in sorted((EXAMPLES / "images" / folder).iterdir())[:4]:
            shutil.copy(source, tmp_path / "images" / folder)
    first = invoke("run", "images")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == "8 images of 2 classes: airplane, sunflower"
    assert len(lines) <= 10 and lines[-1].startswith("next: ") and "ood-audit apply decisions.csv" in lines[-1]
    address = next(line for line in lines if line.startswith("page: ")).removeprefix("page: ")

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(Path(address).resolve().as_uri())
    paths = shown(page)
    assert len(paths) == 8
    for key in ("n", "r", "k", "l"):
        page.keyboard.press(key)
    page.fill("#naming-label", "sunflower")
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.click("[data-does=finish]")
    download.value.save_as(tmp_path / "decisions.csv")

    done = invoke("apply", "decisions.csv", "--to", "aside", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "images" / paths[0]).exists()
    assert (tmp_path / "aside" / "images" / paths[0]).exists()
    relabelled = (tmp_path / "labels.csv").read_text().splitlines()
    assert relabelled == ["path,label", f"{tmp_path / 'images' / paths[2]},sunflower"]

    second = invoke("run", "images")
    assert second.returncode == 0, second.stderr
    page.goto(Path(address).resolve().as_uri())
    assert set(shown(page)) == set(paths[3:])
    assert marks(page) == {}
    assert invoke("apply", "decisions.csv", "--undo").returncode == 0
    assert (tmp_path / "images" / paths[0]).exists()
    context.close()


def test_without_javascript_everything_is_there_to_read(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert page.locator(".card .thumb img").count() == page.locator(".card").count() == 35
    assert page.locator(".card .thumb img").first.bounding_box()["width"] > 100
    assert not page.is_visible("#tools") and not page.is_visible("#theme") and page.is_visible("#unreadable")
    context.close()
