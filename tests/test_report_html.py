"""The HTML report, parsed as a browser would parse it."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from ood_audit.reports.html import Page, number, render

VOID = {"meta", "img", "input", "link", "br", "hr"}
HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    '" onmouseover="alert(1)" x=\'.png',
    "</script><script>alert(1)</script>.jpg",
    "</style></title><!--.jpg",
    "line\nfeed\r\nand\rreturn\ttab.jpg",
    "photo\u202egpj.exe",
    "\u2066isolate\u2069\x1b[31mred\x85.jpg",
    "{{ 7 * 7 }}{% raw %}&amp;&#13;.jpg",
]


class Parsed(HTMLParser):
    """The elements in order, with their attributes and their own text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(html.replace("\r\n", "\n").replace("\r", "\n"))  # as the HTML standard does
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is given twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]] += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]

    def text(self, tag: str, **attributes: str) -> list[str]:
        return [
            " ".join(text.split())
            for (t, a), text in zip(self.elements, self.texts, strict=True)
            if t == tag and attributes.items() <= a.items()
        ]

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(tag, list(attributes)) for tag, attributes in self.elements]


def row(rank: int = 1, **changes):
    values = {
        "rank": rank,
        "path": f"a/{rank}.jpg",
        "folder": "a",
        "uri": f"file:///data/a/{rank}.jpg",
        "ood_score": -0.3 - rank / 100,
        "delta_energy": 0.3 + rank / 100,
        "energy": -3.5,
        "max_cosine": 0.25,
        "label": "cat",
        "label_2": "dog",
        "margin": 0.0123,
        "width": 640,
        "height": 480,
        "thumbnail": b"RIFF\x00webp",
    }
    return values | changes


def page(**changes) -> Page:
    values: dict[str, Any] = {
        "title": "latest",
        "created": "2025-11-03T14:05:11+00:00",
        "facts": [("Images", "707"), ("Score", "ΔEnergy, τ = 1")],
        "rows": [row(1), row(2, label="dog"), row(3)],
        "histogram": [(-0.5, -0.4, 600), (-0.4, -0.3, 104), (-0.3, -0.2, 3)],
        "cut": -0.33,
        "scored": 707,
        "unreadable": [("b/bad.jpg", "truncated")],
        "unreadable_count": 1,
    }
    return Page(**(values | changes))


# Each puts a name where names are shown.
PLACES: dict[str, Callable[[str], Page]] = {
    "path": lambda name: page(rows=[row(path=name)]),
    "label": lambda name: page(rows=[row(label=name)]),
    "label_2": lambda name: page(rows=[row(label_2=name)]),
    "title": lambda name: page(title=name),
    "fact": lambda name: page(facts=[(name, name)]),
    "unreadable": lambda name: page(unreadable=[(name, name)]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(place: str, name: str):
    hostile, harmless = Parsed(render(PLACES[place](name))), Parsed(render(PLACES[place]("name.jpg")))

    assert hostile.shape == harmless.shape
    shown = hostile.texts + [v for _, a in hostile.elements for k, v in a.items() if k != "data-path"]
    assert all(c.isprintable() or c == "\n" for text in shown for c in text)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_copied_path_is_exact(name: str):
    html = render(page(rows=[row(path=name)], unreadable=[(name, "truncated")]))

    assert Parsed(html).find("li")[0]["data-path"] == name
    assert Parsed(html).find("tr")[1]["data-path"] == name
    assert Parsed(html.replace("\n", "\r\n")).find("li")[0]["data-path"] == name  # written with other line ends


def test_control_characters_are_shown():
    html = Parsed(render(page(rows=[row(path="dir\n/photo\u202egpj.exe")])))

    assert html.text("bdi")[-2:] == ["dir\\n/", "photo\\u202egpj.exe"]


def test_the_policy_allows_the_style_and_the_script_and_nothing_else():
    html = render(page())
    parsed = Parsed(html)

    def source(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert content.strip()
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    (policy,) = parsed.find("meta", **{"http-equiv": "Content-Security-Policy"})
    directives = dict(part.strip().split(" ", 1) for part in policy["content"].split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": source("script"),
        "style-src": source("style"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    tags = [tag for tag, _ in parsed.elements]
    assert tags.index("style") > [a.get("http-equiv") for _, a in parsed.elements].index("Content-Security-Policy")
    assert not [k for _, attributes in parsed.elements for k in attributes if k == "style" or k.startswith("on")]


def test_nothing_is_loaded():
    html = render(page())
    parsed = Parsed(html)

    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html.replace("file:///", ""))
    assert not parsed.find("link")
    assert all(a["src"].startswith("data:image/webp;base64,") for a in parsed.find("img"))
    assert all(a["href"].startswith("file:///") for a in parsed.find("a"))


def test_what_refers_to_an_id_finds_it():
    html = render(page())
    ids = [a["id"] for _, a in Parsed(html).elements if "id" in a]

    assert len(ids) == len(set(ids))
    wanted = {i for _, a in Parsed(html).elements for i in a.get("aria-labelledby", "").split()}
    assert wanted | set(re.findall(r'byId\("([\w-]+)"\)', html)) <= set(ids)


def test_counts_add_up():
    parsed = Parsed(render(page()))

    assert len(parsed.find("li")) == 3
    assert parsed.text("b", id="shown") == ["3"]
    assert parsed.text("option")[:3] == ["all (3)", "cat (2)", "dog (1)"]
    in_class = [sum(a["data-class"] == option["value"] for a in parsed.find("li")) for option in parsed.find("option")]
    assert in_class[1:3] == [2, 1]
    bars = [text for text in parsed.text("title") if "image" in text]
    assert bars == ["−0.5000 to −0.4000: 600 images", "−0.4000 to −0.3000: 104 images", "−0.3000 to −0.2000: 3 images"]
    assert "707 images" in parsed.text("p", **{"class": "lead"})[0]


def test_classes_that_differ_in_case_or_invisibly_stay_apart():
    labels = ["Cat", "cat", "cat\u200b"]
    parsed = Parsed(render(page(rows=[row(i, label=label) for i, label in enumerate(labels, 1)])))

    assert len({a["data-class"] for a in parsed.find("li")}) == 3
    assert {"Cat (1)", "cat (1)", "cat\\u200b (1)"} <= set(parsed.text("option"))


def test_the_histogram_is_drawn_to_scale():
    parsed = Parsed(render(page(scored=1_000_001, histogram=[(0.0, 1.0, 1_000_000), (1.0, 4.0, 1)], cut=3.0)))
    tall, small = parsed.find("rect", **{"class": "bar"})
    (cut,) = parsed.find("line", **{"class": "cut"})
    (listed,) = parsed.find("rect", **{"class": "listed"})

    assert (tall["x"], tall["width"], small["x"], small["width"]) == ("0.000%", "25.000%", "25.000%", "75.000%")
    assert float(tall["y"]) + float(tall["height"]) == float(small["y"]) + float(small["height"]) == float(cut["y2"])
    assert float(small["height"]) >= 2  # one image of a million is seen
    assert (cut["x1"], cut["x2"], listed["x"], listed["width"]) == ("75.000%", "75.000%", "75.000%", "25.000%")
    assert parsed.text("text", **{"class": "cut-label"}) == ["listed: 3.000 and above"]
    assert {"0", "1", "2", "3", "4"} <= set(parsed.text("text"))  # the ticks of x
    assert "500,000" in parsed.text("text")
    (text,) = parsed.text("desc")
    assert text.startswith("1,000,001 images with scores from 0 to 4.000. The cut is at 3.000: 3 images")


@pytest.mark.parametrize(
    ("histogram", "cut", "bars"),
    [
        ([(0.5, 0.5, 9)], 0.5, 1),
        ([(0.0, 0.0, 9)], 0.0, 1),
        ([(-0.25, -0.25, 9), (-0.25, -0.25, 0)], -0.25, 1),
        ([(0.0, 1.0, 9)], None, 1),
        ([(0.0, 1.0, 0)], 0.5, 0),
        ([(-1e-7, 0.0, 4), (0.0, 1e-7, 5)], 1e-7, 2),
        ([(-5e4, 0.0, 4), (0.0, 5e4, 5)], -5e4, 2),
        ([(0.0, 1.0, 9)], 1.5, 1),
        ([(12345.678, 12345.679, 9)], 12345.6785, 1),
    ],
)
def test_any_histogram_fits_its_frame(histogram, cut, bars):
    parsed = Parsed(render(page(histogram=histogram, cut=cut)))
    rects = parsed.find("rect", **{"class": "bar"})

    assert len(rects) == bars
    assert len(parsed.find("line", **{"class": "cut"})) == (cut is not None)
    for rect in rects + parsed.find("rect", **{"class": "listed"}):
        x, width = float(rect["x"].rstrip("%")), float(rect["width"].rstrip("%"))
        assert x >= 0 and width >= 0 and x + width <= 100.001
        assert 24 <= float(rect["y"]) < 164
    for rect in rects:
        assert float(rect["width"].rstrip("%")) > 1
    assert 2 <= len(parsed.find("text")) <= 16


def test_nothing_to_show():
    parsed = Parsed(render(page(rows=[], histogram=[], cut=None, scored=0, unreadable=[], unreadable_count=0)))

    assert not [tag for tag in ("svg", "form", "ol", "details", "li") if parsed.find(tag)]
    assert {"No image is listed.", "No image has a score."} <= set(parsed.text("p"))


def test_one_image():
    parsed = Parsed(render(page(rows=[row()], scored=1, histogram=[(-0.31, -0.31, 1)], cut=-0.31)))

    assert "of 1 image, the 1 that fit" in parsed.text("p", **{"class": "lead"})[0]
    assert parsed.text("title")[-1] == "−0.3100 to −0.3100: 1 image"


def test_a_card_tells_what_is_known():
    thumbnail = bytes(range(256))
    whole = Parsed(render(page(rows=[row(thumbnail=thumbnail)])))
    bare = Parsed(render(page(rows=[row(thumbnail=None, label_2=None, margin=None)])))

    (image,) = whole.find("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == thumbnail
    assert (image["loading"], image["decoding"]) == ("lazy", "async")
    assert whole.text("dt")[-2:] == ["Nearest class", "Runner-up"]
    assert whole.text("dd")[-2:] == ["cat", "dog"]
    assert {"cosine 0.2500", "margin 0.01230", "−0.3100", "ΔEnergy 0.3100"} <= set(whole.text("span"))
    assert not bare.find("img") and not bare.find("a")
    assert "The file is gone" in bare.text("p")
    assert bare.text("dt")[-1] == "Nearest class"
    assert not [text for text in bare.text("span") if "margin" in text]
    assert "None" not in bare.texts


def test_unreadable_files_beyond_those_listed_are_counted():
    listed = [(f"{i}.jpg", "truncated") for i in range(200)]

    cropped = Parsed(render(page(unreadable=listed, unreadable_count=1234)))
    whole = Parsed(render(page(unreadable=listed, unreadable_count=200)))

    assert cropped.text("summary") == ["1,234 unreadable files"]
    assert "The first 200 are listed here." in cropped.text("p")
    assert len(cropped.find("tr")) == 1 + 200
    assert "The first 200 are listed here." not in whole.text("p")


def test_readable_without_javascript():
    parsed = Parsed(render(page()))

    assert [a["id"] for _, a in parsed.elements if "hidden" in a] == ["nothing"]
    for control in [*parsed.find("button"), *parsed.find("form")]:
        inside = control.get("id") == "copy-all"  # of the form
        assert inside or "js-only" in control["class"].split()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.5, "0.5000"),
        (-0.0123456, "−0.01235"),
        (0.99996, "1.000"),
        (-12.3456, "−12.35"),
        (12345.6, "12346"),
        (1.23456e-7, "1.235e−7"),
        (-6.54321e12, "−6.543e12"),
        (float("nan"), "nan"),
    ],
)
def test_four_significant_digits(value: float, text: str):
    assert number(value) == text
