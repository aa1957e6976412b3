# mypy: disable-error-code="no-any-return"
"""The HTML report, parsed as a browser would parse it."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from ood_audit.reports import cards
from ood_audit.reports.charts import number
from ood_audit.reports.html import Page, Summary, render

VOID = {"meta", "img", "input", "link", "br", "hr"}  # in HTML; in SVG elements close themselves
HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    '" onmouseover="alert(1)" x=\'.png',
    "</script><script>alert(1)</script>.jpg",
    "</style></title><!--.jpg",
    "line\nfeed\r\nand\rreturn\ttab.jpg",
    "photo\u202egpj.exe",
    "\u2066isolate\u2069\x1b[31mred\x85.jpg",
    "{{ 7 * 7 }}{% raw %}&amp;&#13;.jpg",
    "<!--<script>\u2028\u2029\\u003c.jpg",
]


class Parsed(HTMLParser):
    """The elements in order, with their attributes and their own text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.ancestors: list[list[int]] = []
        self._open: list[int] = []
        self.feed(html.replace("\r\n", "\n").replace("\r", "\n"))  # as the HTML standard does
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is given twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")
        self.ancestors.append(list(self._open))
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
    def data(self) -> dict[str, Any]:
        """The block of JSON."""
        (place,) = [i for i, (_, a) in enumerate(self.elements) if a.get("id") == "data"]
        data: dict[str, Any] = json.loads(self.texts[place])
        return data

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


def label_issue(**changes) -> dict[str, Any]:
    values = {
        "image_id": "m1",
        "path": "cat/7.jpg",
        "uri": "file:///data/cat/7.jpg",
        "kind": "label",
        "severity": 0.93,
        "evidence": "It looks like a dog.",
        "suggestion": "dog",
        "given_label": "cat",
        "thumbnail": b"RIFF\x00label",
    }
    return values | changes


def copy(path: str, keep: bool = False, kind: str = "near", **changes) -> dict[str, Any]:
    values = {"path": path, "keep": keep, "kind": kind, "width": 300, "height": 200, "size_bytes": 23_456}
    return values | {"uri": "file:///data/x.jpg", "thumbnail": b"RIFF\x00copy"} | changes


def known(rank: int = 1, **changes) -> dict[str, Any]:
    """A row of which everything is known."""
    return row(
        rank,
        **{
            "image_id": f"id{rank}",
            "given_label": "hat",
            "flagged": True,
            "p_value": 0.0012,
            "shift": "semantic",
            "cluster": "stop sign",
            "neighbours": [1, {"path": "b/near.jpg", "thumbnail": b"RIFF\x00near"}],
            "top_classes": [("dog", 0.2), ("cat", 0.25), ("bird", 0.1)],
            "xy": (0.25, 0.5),
            **changes,
        },
    )


def whole(**changes) -> Page:
    """A page of which everything is known."""
    values: dict[str, Any] = {
        "rows": [known(1), known(2, flagged=False, shift="in-distribution", cluster=None), row(3, image_id="id3")],
        "summary": Summary(
            flagged=41,
            semantic=30,
            covariate=17,
            flagged_covariate=11,
            false_alarms=2.06,
        ),
        "findings": [
            label_issue(),
            label_issue(image_id="id1", path="a/1.jpg", kind="ood", evidence="It fits no class.", suggestion=""),
        ],
        "duplicates": [
            [copy("d/small.jpg"), copy("d/large.jpg", keep=True)],
            [copy("e/1.jpg", True, "exact"), copy("e/2.jpg", kind="exact"), copy("e/3.jpg", kind="exact")],
        ],
        "map_points": [(0.0, 0.0, "in-distribution", -1), (1.0, 1.0, "label", -1), (0.5, 0.5, "flagged", 0)],
        "next_steps": [("List the flagged:", "ood-audit export --flagged --format paths")],
    }
    return page(**(values | changes))


# Each puts a name where names are shown.
PLACES: dict[str, Callable[[str], Page]] = {
    "path": lambda name: page(rows=[row(path=name)]),
    "label": lambda name: page(rows=[row(label=name)]),
    "label_2": lambda name: page(rows=[row(label_2=name)]),
    "title": lambda name: page(title=name),
    "fact": lambda name: page(facts=[(name, name)]),
    "unreadable": lambda name: page(unreadable=[(name, name)]),
    "given label": lambda name: whole(rows=[known(given_label=name, neighbours=[])]),
    "cluster": lambda name: whole(rows=[known(cluster=name, neighbours=[])]),
    "shift": lambda name: whole(rows=[known(shift=name, neighbours=[])]),
    "neighbour": lambda name: whole(rows=[known(neighbours=[{"path": name, "thumbnail": None}])]),
    "top class": lambda name: whole(rows=[known(top_classes=[(name, 0.5)], neighbours=[])]),
    "label issue": lambda name: whole(
        findings=[label_issue(path=name, evidence=name, suggestion=name, given_label=name)]
    ),
    "evidence": lambda name: whole(findings=[label_issue(image_id="id1", kind="ood", evidence=name)]),
    "duplicate": lambda name: whole(duplicates=[[copy(name, True), copy(name, kind=name)]]),
    "kind on the map": lambda name: whole(map_points=[(0.5, 0.5, name, -1)]),
    "next step": lambda name: whole(next_steps=[(name, name)]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(place: str, name: str):
    hostile, harmless = Parsed(render(PLACES[place](name))), Parsed(render(PLACES[place]("name.jpg")))

    assert hostile.shape == harmless.shape
    exact = ("data-path", "data-command")
    shown = hostile.texts + [v for _, a in hostile.elements for k, v in a.items() if k not in exact]
    assert all(c.isprintable() or c == "\n" for text in shown for c in text)
    in_json = json.dumps(hostile.data, ensure_ascii=False)
    assert all(c.isprintable() for c in in_json)
    html = render(PLACES[place](name))
    block = html[html.index('id="data">') + 10 : html.rindex("</script>")]
    assert block.isascii() and not set("<>&") & set(block)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_copied_path_is_exact(name: str):
    html = render(page(rows=[row(path=name)], unreadable=[(name, "truncated")]))

    assert Parsed(html).find("li")[0]["data-path"] == name
    assert Parsed(html).find("tr")[1]["data-path"] == name
    assert Parsed(html.replace("\n", "\r\n")).find("li")[0]["data-path"] == name  # written with other line ends


@pytest.mark.parametrize("name", HOSTILE)
def test_what_else_is_copied_is_exact(name: str):
    html = render(
        whole(findings=[label_issue(path=name)], duplicates=[[copy(name, True)]], next_steps=[("", name)], rows=[])
    )

    assert [a["data-path"] for a in Parsed(html).find("li") if "data-path" in a] == [name, name]
    assert [a["data-command"] for a in Parsed(html).find("code") if "data-command" in a] == [name]


def test_control_characters_are_shown():
    html = Parsed(render(page(rows=[row(path="dir\n/photo\u202egpj.exe")])))

    assert html.text("bdi")[:2] == ["dir\\n/", "photo\\u202egpj.exe"]


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
        "require-trusted-types-for": "'script'",  # no text becomes HTML, whatever the script does
        "trusted-types": "'none'",
    }
    tags = [tag for tag, _ in parsed.elements]
    assert tags.index("style") > [a.get("http-equiv") for _, a in parsed.elements].index("Content-Security-Policy")
    assert not [k for _, attributes in parsed.elements for k in attributes if k == "style" or k.startswith("on")]


def test_nothing_is_loaded():
    html = render(whole())
    parsed = Parsed(html)

    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html.replace("file:///", ""))
    assert not parsed.find("link")
    assert parsed.find("img")
    assert all(a["src"].startswith("data:image/webp;base64,") for a in parsed.find("img"))
    assert all(a["href"].startswith(("file:///", "#")) for a in parsed.find("a") if a.get("id") != "details-file")


def test_what_refers_to_an_id_finds_it():
    html = render(whole())
    ids = [a["id"] for _, a in Parsed(html).elements if "id" in a]

    assert len(ids) == len(set(ids))
    elements = Parsed(html).elements
    wanted = {i for _, a in elements for k in ("aria-labelledby", "aria-controls") for i in a.get(k, "").split()}
    wanted |= {a["href"][1:] for _, a in elements if a.get("href", "").startswith("#")}
    assert wanted | set(re.findall(r'byId\("([\w-]+)"\)', html)) <= set(ids)


def test_counts_add_up():
    parsed = Parsed(render(page()))

    assert len([a for a in parsed.find("li") if "data-path" in a]) == 3
    assert parsed.text("b", id="ood-shown") == ["3"]
    assert parsed.text("option")[:3] == ["all (3)", "cat (2)", "dog (1)"]
    in_class = [
        sum(a.get("data-class") == option["value"] for a in parsed.find("li")) for option in parsed.find("option")
    ]
    assert in_class[1:3] == [2, 1]
    bars = [text for text in parsed.text("title") if "image" in text]
    assert bars == ["−0.5000 to −0.4000: 600 images", "−0.4000 to −0.3000: 104 images", "−0.3000 to −0.2000: 3 images"]
    assert "707 images" in parsed.text("p", **{"class": "lead"})[1]


def test_classes_that_differ_in_case_or_invisibly_stay_apart():
    labels = ["Cat", "cat", "cat\u200b"]
    parsed = Parsed(render(page(rows=[row(i, label=label) for i, label in enumerate(labels, 1)])))

    assert len({a["data-class"] for a in parsed.find("li") if "data-class" in a}) == 3
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

    assert not [tag for tag in ("svg", "form", "ol", "table", "li", "img") if parsed.find(tag)]
    assert "No image has a score." in parsed.text("p")
    empty = parsed.text("p", **{"class": "empty"})
    assert [text.partition(".")[0] for text in empty] == [
        "No image is listed",
        "This report has not compared labels",
        "This report has not looked for duplicates",
        "Every file could be read",
    ]
    assert "ood-audit report" in parsed.text("code")  # what would fill them
    assert [text.rpartition(" ")[2] for text in tab_texts(parsed)] == ["0", "0", "0", "0"]


def test_what_was_looked_for_and_not_found():
    empty = Parsed(render(page(findings=[], duplicates=[]))).text("p", **{"class": "empty"})

    assert [text.partition(":")[0] for text in empty] == ["No label issue was found", "No duplicate was found"]


def tab_texts(parsed: Parsed) -> list[str]:
    """Name and count of each tab."""
    tabs = [i for i, (_, a) in enumerate(parsed.elements) if a.get("id", "").startswith("tab-")]
    return [" ".join("".join(parsed.texts[i : i + 2]).split()) for i in tabs]  # the count is the element inside


def test_one_image():
    parsed = Parsed(render(page(rows=[row()], scored=1, histogram=[(-0.31, -0.31, 1)], cut=-0.31)))

    assert "of 1 image, the 1 that fit" in parsed.text("p", **{"class": "lead"})[1]
    assert parsed.text("title")[-1] == "−0.3100 to −0.3100: 1 image"


def test_a_card_tells_what_is_known():
    thumbnail = bytes(range(256))
    whole = Parsed(render(page(rows=[row(thumbnail=thumbnail)])))
    bare = Parsed(render(page(rows=[row(thumbnail=None, label_2=None, margin=None)])))

    (image,) = whole.find("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == thumbnail
    assert (image["loading"], image["decoding"]) == ("lazy", "async")
    assert "Given label" not in whole.text("dt")
    assert whole.text("dt")[-2:] == ["Nearest class", "Runner-up"]
    assert whole.text("dd")[-2:] == ["cat", "dog"]
    assert {"cosine 0.2500", "margin 0.01230", "−0.3100", "ΔEnergy 0.3100"} <= set(whole.text("span"))
    assert not bare.find("img") and not bare.find("a", **{"class": "thumb"})
    assert "The file is gone" in bare.text("p")
    assert bare.text("dt")[-1] == "Nearest class"
    assert not [text for text in bare.text("span") if "margin" in text]
    assert "None" not in bare.texts


def test_unreadable_files_beyond_those_listed_are_counted():
    listed = [(f"{i}.jpg", "truncated") for i in range(200)]

    cropped = Parsed(render(page(unreadable=listed, unreadable_count=1234)))
    whole = Parsed(render(page(unreadable=listed, unreadable_count=200)))

    assert tab_texts(cropped)[3].split() == ["Unreadable", "1,234"]
    assert "The first 200 are listed here." in cropped.text("p")
    assert len(cropped.find("tr")) == 1 + 200
    assert "The first 200 are listed here." not in whole.text("p")


def test_readable_without_javascript():
    parsed = Parsed(render(whole()))

    hidden = [a.get("id") or a.get("class") for _, a in parsed.elements if "hidden" in a]
    assert set(hidden) == {"nothing", "selection", "map-tip"}
    for i, (tag, _) in enumerate(parsed.elements):
        if tag in ("button", "input", "select", "form"):
            around = [parsed.elements[j] for j in [*parsed.ancestors[i], i]]
            # A dialog that is not open is not shown.
            assert any(
                t in ("dialog", "template") or "hidden" in a or "js-only" in a.get("class", "").split()
                for t, a in around
            )
    listed = [a for a in parsed.find("li") if "data-path" in a]
    assert len(listed) == 3 + 1 + 5 and not [a for a in listed if "hidden" in a]
    assert len(parsed.find("img")) == 9


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


def test_the_figures_of_the_summary_add_up():
    parsed = Parsed(render(whole()))

    assert tile_texts(parsed) == {
        "Images scored": ["707", "of 708 files found"],  # with the one below
        "Unreadable": ["1", "not scored", "Show"],
        "Flagged": ["41", "30 semantic + 11 covariate shift", "Show"],
        "Covariate shift": ["17", "known classes in another style, 11 of them flagged"],
        "Expected false alarms": ["2.1", "estimate", "of the 41 flagged"],
        "Label issues": ["1", "in another class than they look like", "Show"],
        "Superfluous copies": ["3", "in 2 clusters of duplicates", "Show"],
    }
    assert tab_texts(parsed) == ["Out of distribution 41", "Label issues 1", "Duplicates 3", "Unreadable 1"]
    lead = parsed.text("p", **{"class": "lead"})[1]
    assert "1 of the 41 flagged are among them" in lead


def tile_texts(parsed: Parsed) -> dict[str, list[str]]:
    tiles: dict[str, list[str]] = {}
    for i, (tag, attributes) in enumerate(parsed.elements):
        if tag == "div" and attributes.get("class", "").split()[:1] == ["tile"]:
            inside = [j for j, around in enumerate(parsed.ancestors) if i in around]
            term, *rest = [text for j in inside if (text := " ".join(parsed.texts[j].split()))]
            tiles[term] = rest
    return tiles


def test_what_is_not_known_is_not_shown():
    assert list(tile_texts(Parsed(render(page())))) == ["Images scored", "Unreadable"]
    assert "None" not in Parsed(render(page())).texts


def test_figures_that_are_given_go_before_those_counted_here():
    parsed = Parsed(render(whole(summary=Summary(label_issues=900, duplicate_clusters=50, superfluous_copies=70))))

    assert tile_texts(parsed)["Label issues"][0] == "900"
    assert tile_texts(parsed)["Superfluous copies"][:2] == ["70", "in 50 clusters of duplicates"]
    assert "The first 1 of 900 are on this page" in " ".join(parsed.text("p", **{"class": "notice"}))


def test_next_steps_are_commands_to_copy():
    parsed = Parsed(render(whole()))

    assert "List the flagged:" in parsed.text("p")
    assert parsed.text("code", **{"data-command": "ood-audit export --flagged --format paths"}) == [
        "ood-audit export --flagged --format paths"
    ]


def test_the_dialog_has_what_is_known():
    data = Parsed(render(whole())).data
    first, _, third = data["records"][:3]

    assert dict(first["facts"]) == {
        "OOD score": "−0.3100",
        "p-value": "0.001200",
        "Shift": "semantic shift",
        "Looks like": "stop sign",
        "Given label": "hat",
        "Nearest class": "cat (cosine 0.2500)",
        "Runner-up": "dog (margin 0.01230)",
        "ΔEnergy": "0.3100",
        "Energy": "−3.500",
        "Size": "640 × 480 px",
    }
    assert first["evidence"] == ["It fits no class."]
    assert first["classes"] == [["cat", "0.2500", 100.0], ["dog", "0.2000", 80.0], ["bird", "0.1000", 40.0]]
    assert first["near"] == [1, ["b/near.jpg", 0]]
    assert base64.b64decode(data["pictures"][0].partition(",")[2]) == b"RIFF\x00near"
    assert len(data["pictures"]) == 1  # both rows have it as a neighbour
    assert [term for term, _ in third["facts"]] == [
        "OOD score",
        "Nearest class",
        "Runner-up",
        "ΔEnergy",
        "Energy",
        "Size",
    ]
    assert set(third) == {"facts"}


def test_each_card_has_its_record():
    parsed = Parsed(render(whole()))
    records = parsed.data["records"]
    shown = [a for a in parsed.find("li") if "data-record" in a]

    assert [int(a["data-record"]) for a in shown] == list(range(len(records)))
    by_path = {a["data-path"]: dict(records[int(a["data-record"])]["facts"]) for a in shown}
    assert by_path["a/2.jpg"]["OOD score"] == "−0.3200"
    assert by_path["cat/7.jpg"]["Suggested label"] == "dog"
    assert by_path["d/large.jpg"]["Copy"] == "the one to keep"
    assert by_path["e/3.jpg"]["Copy"] == "exact copy"


def test_a_neighbour_that_is_listed_is_not_embedded_again():
    near = {"path": "a/2.jpg", "thumbnail": b"RIFF\x00again"}
    data = Parsed(render(page(rows=[row(1, neighbours=[near, 2]), row(2), row(3)]))).data

    assert data["records"][0]["near"] == [1, 2]
    assert data["pictures"] == []


def test_a_neighbour_of_another_source_with_the_same_path_is_another_image():
    """Two sources may each hold `a/1.jpg`; an image is known by its id."""
    other = {"image_id": "other", "path": "a/1.jpg", "uri": "file:///more/a/1.jpg", "thumbnail": b"RIFF\x00other"}
    second = {"image_id": "id2", "path": "a/1.jpg", "uri": "file:///more/a/1.jpg", "thumbnail": b"RIFF\x00second"}
    rows = [row(1, image_id="id1", neighbours=[other, second]), row(2, **second, neighbours=[{**second, **row(1)}])]
    rows[1]["neighbours"][0]["image_id"] = "id1"
    parsed = Parsed(render(page(rows=rows)))

    assert parsed.data["records"][0]["near"] == [["a/1.jpg", 0], 1]
    assert parsed.data["records"][1]["near"] == [0]
    assert base64.b64decode(parsed.data["pictures"][0].partition(",")[2]) == b"RIFF\x00other"
    assert [a["data-image"] for a in parsed.find("li") if "data-image" in a] == ["0", "1"]  # to be copied, both


def test_an_image_in_two_lists_has_one_number():
    parsed = Parsed(render(page(rows=[row(1, image_id="m1")], findings=[label_issue(), label_issue(image_id="m2")])))

    assert [a["data-image"] for a in parsed.find("li") if "data-image" in a] == ["0", "0", "1"]


def test_the_nearest_class_has_the_similarity_of_its_bar():
    best = [("cat", 0.31), ("dog", 0.25)]
    data = Parsed(render(page(rows=[row(top_classes=best, measure="similarity")]))).data

    assert dict(data["records"][0]["facts"])["Nearest class"] == "cat (similarity 0.3100)"


def test_a_picture_that_was_not_made_for_want_of_room_is_not_gone():
    parsed = Parsed(render(page(rows=[row(thumbnail=b""), row(2, thumbnail=None)])))

    assert [text for text in parsed.text("p") if text.startswith(("No room", "The file"))] == [
        "No room for its picture",
        "The file is gone",
    ]
    assert "1 picture is left out" in " ".join(parsed.text("p", **{"class": "notice"}))


def test_scores_that_are_no_numbers_break_nothing():
    strange = [("a", float("nan")), ("b", float("inf")), ("c", -0.2), ("d", -0.5)]
    data = Parsed(render(page(rows=[row(top_classes=strange)], map_points=[(float("nan"), 0.5, "flagged", 0)]))).data

    assert data["records"][0]["classes"] == [["c", "−0.2000", 0.0], ["d", "−0.5000", 0.0]]
    assert data["points"] == []


def test_the_map_draws_every_point_once_by_shape():
    parsed = Parsed(render(whole()))
    marks = {a["class"].split()[1]: a["d"] for a in parsed.find("path") if a["d"] not in ("M8 8h0", "M8 3l5 9h-10z")}

    # Row 0 is in the sample, row 1 is added; row 2 has no place.
    assert {name: path.count("M") for name, path in marks.items()} == {
        "not-flagged": 2,
        "other-finding": 1,
        "flagged": 1,
    }
    assert parsed.data["points"] == [[14, 14, 0, -1], [586, 386, 1, -1], [300, 200, 2, 0], [157, 200, 0, 1]]
    assert marks["other-finding"] == "M586 386h0"
    assert marks["flagged"].endswith("z")  # a triangle: its shape differs too, not only its colour
    text = parsed.text("desc", id="map-text")[0]
    assert "4 images" in text and "2 not flagged, 1 other finding, 1 flagged" in text


def test_without_places_there_is_no_map():
    assert not Parsed(render(page())).find("svg", id="map")


def test_label_issues_show_given_and_suggested():
    parsed = Parsed(
        render(
            page(
                rows=[row(image_id="known", given_label="hat")],
                findings=[label_issue(), label_issue(image_id="known", given_label=None, thumbnail=None)],
            )
        )
    )

    assert parsed.text("span", **{"class": "given"})[1:] == ["cat", "hat"]  # after the one of the explanation
    assert parsed.text("strong")[1:] == ["dog", "dog"]
    assert len(parsed.find("img")) == 3  # the second has that of the row


def test_the_copy_to_keep_comes_first_and_is_marked():
    parsed = Parsed(render(whole()))
    copies = [a for a in parsed.find("li") if a.get("data-path", "")[:2] in ("d/", "e/")]

    assert [a["data-path"] for a in copies] == ["d/large.jpg", "d/small.jpg", "e/1.jpg", "e/2.jpg", "e/3.jpg"]
    assert [a["class"].split()[1] for a in copies] == ["keep", "superfluous", "keep", "superfluous", "superfluous"]
    assert parsed.text("span", **{"class": "tag good"}) == ["✓ keep", "✓ keep"]
    assert {"300 × 200 px · 23 kB", "near copy", "exact copy"} <= set(parsed.text("span"))
    assert [text.split()[0] for text in parsed.text("h3")[:2]] == ["Cluster", "Cluster"]


def test_groups_are_offered_as_filters():
    rows = [known(i, cluster=name) for i, name in enumerate(["owl", "stop sign", "stop sign", None, "Owl"], 1)]
    parsed = Parsed(render(whole(rows=rows)))
    chips = parsed.find("button", **{"class": "chip"})

    assert [chip["title"] for chip in chips] == [
        "2 images look like: stop sign",
        "1 image looks like: owl",
        "1 image looks like: Owl",
    ]
    for chip, count in zip(chips, (2, 1, 1), strict=True):
        assert sum(a.get("data-group") == chip["data-group"] for a in parsed.find("li")) == count


def test_long_lists_are_cut_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(cards, "LIMIT", 3)
    parsed = Parsed(
        render(
            page(
                rows=[row(i, neighbours=[0, 6]) for i in range(1, 8)],
                findings=[label_issue() for _ in range(5)],
                duplicates=[[copy("1", True), copy("2")], [copy("3", True), copy("4")]],
                map_points=[(0.5, 0.5, "flagged", 6)],
            )
        )
    )

    assert len([a for a in parsed.find("li") if "data-path" in a]) == 3 + 3 + 2
    assert [text.partition(" are on")[0] for text in parsed.text("p", **{"class": "notice"})] == [
        "The first 3 of 7",
        "The first 3 of 5",
        "The first 1 of 2",
    ]
    assert parsed.data["records"][0]["near"] == [0, ["a/7.jpg", 0]]
    assert [point[3] for point in parsed.data["points"]] == [-1]


def test_pictures_beyond_the_room_for_them_are_left_out(monkeypatch):
    monkeypatch.setattr(cards, "_PICTURES", 8_000)
    noise = [bytes([i]) * 1500 for i in range(7)]
    rows = [row(i, thumbnail=noise[i], neighbours=[{"path": "x", "thumbnail": noise[6]}]) for i in range(1, 6)]
    html = render(page(rows=rows))
    parsed = Parsed(html)

    assert len(parsed.find("img")) == 4
    assert "No room for its picture" in parsed.text("p")
    assert parsed.data["records"][0]["near"] == [["x", -1]]
    assert "pictures are left out" in " ".join(parsed.text("p", **{"class": "notice"}))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_meets_wcag_aa(theme: int):
    """4.5 for text, 3 for marks and the edges of controls: success criteria 1.4.3 and 1.4.11."""
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", render(page()))
    colours = {name: pair[theme] for name, *pair in found}

    def contrast(one: str, other: str) -> float:
        low, high = sorted([luminance(colours[one]), luminance(colours[other])])
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "surface", "sunken", "chosen"):
        for text in ("text", "muted", "accent", "ood", "good"):
            assert contrast(text, ground) >= 4.5, (text, ground)
        for mark in ("edge", "bar"):
            assert contrast(mark, ground) >= 3, (mark, ground)
