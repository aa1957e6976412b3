# mypy: disable-error-code="no-any-return"
"""The HTML report, parsed as a browser would parse it."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from zlib import crc32

import pytest

from ood_audit.reports import cards, paging
from ood_audit.reports.charts import number
from ood_audit.reports.html import render
from ood_audit.reports.model import Finding, Group, Image, Kind, Page, Point, Scored, Section, Sprites

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
        self._parts: list[str] = []  # the pieces of text in order, with the elements that they are in
        self._owners: list[int] = []
        self._around: list[list[int]] = []
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
            self._parts.append(data)
            self._owners.append(self._open[-1])
            self._around.append(list(self._open))

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]

    def text(self, tag: str, **attributes: str) -> list[str]:
        return [
            " ".join(text.split())
            for (t, a), text in zip(self.elements, self.texts, strict=True)
            if t == tag and attributes.items() <= a.items()
        ]

    def whole_text(self, i: int) -> str:
        """The text of an element with that of the elements inside of it, in order."""
        inside = [self._parts[j] for j in range(len(self._parts)) if self._owners[j] == i or i in self._around[j]]
        return " ".join("".join(inside).split())

    @property
    def data(self) -> dict[str, Any]:
        """The block of JSON."""
        (place,) = [i for i, (_, a) in enumerate(self.elements) if a.get("id") == "data"]
        data: dict[str, Any] = json.loads(self.texts[place])
        return data

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(tag, list(attributes)) for tag, attributes in self.elements]


CLASSES = ("cat", "dog", "hat", "bird")


def image(path: str = "a/1.jpg", **changes) -> Image:
    values = {
        "image_id": f"id of {path}",
        "uri": "file:///data/x.jpg",
        "path": path,
        "content_hash": f"{crc32(path.encode()):08x}",
    }
    return Image(**{**values, "width": 640, "height": 480, "size_bytes": 23_456, **changes})


def scored(rank: int = 1, **changes) -> Scored:
    values: dict[str, Any] = {
        "rank": rank,
        "ood_score": -0.3 - rank / 100,
        "delta_energy": 0.3 + rank / 100,
        "energy": -3.5,
        "max_cosine": 0.25,
        "label": "cat",
        "label_2": "dog",
        "margin": 0.0123,
        "given": "hat",
        "p_value": 1 / 241,
        "p_distance": 0.3,
        "classes": [("cat", 0.25), ("dog", 0.2), ("hat", -0.1)],
    }
    return Scored(**{**values, **changes})


def finding(path: str = "a/1.jpg", kind: Kind = "ood", rank: int = 1, **changes) -> Finding:
    """A finding of a kind about an image; `changes` are those of the finding, of its figures, or of its image."""
    own = {name: value for name, value in changes.items() if name in Finding.__dataclass_fields__}
    figures = {name: value for name, value in changes.items() if name in Scored.__dataclass_fields__}
    about = {name: value for name, value in changes.items() if name in Image.__dataclass_fields__}
    more: dict[str, Any] = {}
    if kind == "label":
        more["probabilities"] = (0.97, 0.004)
    if "duplicate" in kind:
        more["twin"] = image("kept.jpg")
    found = Finding(kind, image(path, **about), 0.9, scored(rank, **figures), **more)
    return replace(found, **own)


def section(kind: Kind, *groups: tuple[tuple[str, ...], Sequence[Finding]]) -> Section:
    made = [Group(name, len(findings), list(findings)) for name, findings in groups]
    return Section(kind, sum(group.count for group in made), made)


def page(*sections: Section, **changes) -> Page:
    values: dict[str, Any] = {
        "name": "latest",
        "title": "images",
        "created": "2025-11-03T14:05:11+00:00",
        "store": "/data/.ood-audit",
        "doubt": "",
        "scored": 707,
        "calibration": 240,
        "calibrated_by": "labelled images",
        "sections": list(sections),
        "unreadable": [],
        "unreadable_count": 0,
        "classes": list(CLASSES),
        "histogram": [(-0.5, -0.4, 600), (-0.4, -0.3, 104), (-0.3, -0.2, 3)],
        "cut": -0.33,
    }
    made = {**values, **changes}
    if "pictures" not in made:
        uris = {f.image.uri for s in sections for g in s.groups for f in g.findings} | {"file:///data/x.jpg"}
        made["pictures"] = dict.fromkeys(uris, b"\xff\xd8\x00jpeg")
    return Page(**made)


def only(*findings: Finding, name: tuple[str, ...] = (), **changes) -> Page:
    """A page of findings of one kind in one group."""
    return page(section(findings[0].kind, (name, findings)), **changes)


def whole(**changes) -> Page:
    """A page with findings of every kind."""
    near = [image("a/2.jpg"), image("b/near.jpg", uri="file:///data/near.jpg")]
    values: dict[str, Any] = {
        "unreadable": [("b/bad.jpg", "truncated")],
        "unreadable_count": 1,
        "typical": {"cat": [image("cat/1.jpg", uri="file:///data/cat.jpg")], "hat": [image("hat/1.jpg")]},
        "facts": [("Score", "ΔEnergy, τ = 1")],
        "notes": ["A note."],
        "next_steps": [("List the flagged:", "ood-audit export --flagged --format paths")],
        "points": [
            Point("other", 0.0, 0.0, "not flagged", "cat"),
            Point("more", 1.0, 1.0, "other finding", "dog", 700, "file:///data/more.jpg"),
            Point("id of a/1.jpg", 0.5, 0.5, "flagged", "cat"),
        ],
        "sprites": Sprites(b"RIFF sheet", 64, 1, ["file:///data/more.jpg"]),
        "pictures": {f"file:///data/{name}.jpg": f"RIFF {name}".encode() for name in ("x", "near", "cat")},
    }
    alike = [finding(f"a/{i}.jpg", rank=i, looks_like="gun", neighbours=near) for i in (1, 2, 3)]
    return page(
        section("ood", (("gun",), alike), ((), [finding("a/4.jpg", rank=4)])),
        section("label", (("hat", "cat"), [finding("cat/7.jpg", "label", 40)])),
        section("exact-duplicate", ((), [finding("d/1.jpg", "exact-duplicate", 50)])),
        section("near-duplicate", ((), [finding("d/2.jpg", "near-duplicate", 51)])),
        section("covariate-shift", (("cat",), [finding("e/1.jpg", "covariate-shift", 60)])),
        section("unusual", ((), [finding("f/1.jpg", "unusual", 70)])),
        **{**values, **changes},
    )


def cards_of(parsed: Parsed) -> list[dict[str, str]]:
    return [a for a in parsed.find("li") if "data-path" in a]


def said(parsed: Parsed) -> list[str]:
    """The sentences of the cards, with all that is inside of them."""
    return inside(parsed, "p", "say")


def inside(parsed: Parsed, tag: str, kind: str = "") -> list[str]:
    found = []
    for i, (name, attributes) in enumerate(parsed.elements):
        if name == tag and attributes.get("class", "") == kind and attributes.get("id") != "details-say":
            found.append(parsed.whole_text(i))
    return found


def counts_of(parsed: Parsed) -> list[str]:
    """The line of counts."""
    return [
        parsed.whole_text(i)
        for i, (tag, attributes) in enumerate(parsed.elements)
        if tag == "a" and attributes.get("href", "").startswith("#")
    ]


# Each puts a name where names are shown.
PLACES: dict[str, Callable[[str], Page]] = {
    "path": lambda name: only(finding(name)),
    "label": lambda name: only(finding(label=name, given=None)),
    "label_2": lambda name: only(finding(label_2=name)),
    "given label": lambda name: only(finding(given=name)),
    "class": lambda name: only(finding(given=name, label=name), classes=[name], typical={name: [image()]}),
    "title": lambda name: page(title=name),
    "fact": lambda name: page(facts=[(name, name)], notes=[name]),
    "unreadable": lambda name: page(unreadable=[(name, name)], unreadable_count=1),
    "group": lambda name: only(finding(looks_like=name), name=(name,)),
    "pair": lambda name: only(finding(kind="label", given=name, label=name), name=(name, name)),
    "style": lambda name: only(finding(kind="covariate-shift", label=name), name=(name,)),
    "neighbour": lambda name: only(finding(neighbours=[image(name, uri="file:///n.jpg")])),
    "bar": lambda name: only(finding(classes=[(name, 0.5)])),
    "twin": lambda name: only(finding(kind="exact-duplicate", twin=image(name))),
    "next step": lambda name: page(next_steps=[(name, name)]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(place: str, name: str):
    hostile, harmless = (
        Parsed(render(PLACES[place](name))),
        Parsed(render(PLACES[place]("a/name.jpg" if "/" in name else "name.jpg"))),
    )

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
def test_what_is_copied_and_saved_is_exact(name: str):
    html = render(only(finding(name), unreadable=[(name, "truncated")], unreadable_count=1, next_steps=[("", name)]))

    for written in (html, html.replace("\n", "\r\n")):  # also with other line ends
        assert cards_of(Parsed(written))[0]["data-path"] == name
        assert Parsed(written).find("tr")[1]["data-path"] == name
        assert [a["data-command"] for a in Parsed(written).find("code") if "data-command" in a] == [name]


def test_control_characters_are_shown():
    html = Parsed(render(only(finding("dir\n/photo\u202egpj.exe"))))

    assert html.text("bdi")[:2] == ["dir\\n/", "photo\\u202egpj.exe"]


def test_the_policy_allows_the_style_and_the_script_and_nothing_else():
    html = render(page())
    parsed = Parsed(html)

    def source(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag.split()[0]}>", html, re.DOTALL)
        assert content.strip()
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    (policy,) = parsed.find("meta", **{"http-equiv": "Content-Security-Policy"})
    directives = dict(part.strip().split(" ", 1) for part in policy["content"].split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": source('script type="module" async'),
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

    text = html.replace("file:///", "").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert not parsed.find("link")
    assert parsed.find("img")
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in parsed.find("img"))
    assert all(a["href"].startswith(("file:///", "#")) for a in parsed.find("a") if a.get("id") != "details-file")


def test_what_refers_to_an_id_finds_it():
    html = render(whole())
    ids = [a["id"] for _, a in Parsed(html).elements if "id" in a]

    assert len(ids) == len(set(ids))
    elements = Parsed(html).elements
    wanted = {i for _, a in elements for k in ("aria-labelledby", "list") for i in a.get(k, "").split()}
    wanted |= {a["href"][1:] for _, a in elements if a.get("href", "").startswith("#")}
    assert wanted | set(re.findall(r'byId\("([\w-]+)"\)', html)) <= set(ids)


def test_every_action_of_a_button_is_there():
    html = render(whole())
    script = html[html.index("const actions = {") :]
    script += html[html.index("function setUpMap") :]
    named = {a["data-does"] for a in Parsed(html).find("button") if "data-does" in a}
    assert named
    for name in named:
        assert re.search(rf'\b{name}\b[,:]|"{name}"[:\]]|actions.{name} =', script), name


def test_the_line_of_counts_has_every_kind():
    assert counts_of(Parsed(render(whole()))) == [
        "4 belong to no class",
        "1 looks mislabelled",
        "1 exact duplicate",
        "1 near duplicate",
        "1 perhaps in another style",
        "1 next most unusual",
        "1 unreadable",
        "Details",
    ]


def test_where_nothing_can_be_flagged_the_ranking_comes_first():
    parsed = Parsed(render(only(finding(kind="unusual", p_value=None), calibration=None)))
    assert counts_of(parsed)[0] == "1 most unusual"
    assert parsed.data["beside"] == ""  # so that it is what there is to review


def test_groups_have_titles_in_words():
    titles = inside(Parsed(render(whole())), "h3")

    assert [title for title in titles if title[:1].isdigit()] == [
        "3 look like gun",
        "1 other",
        "1 in hat look like cat",
        "1 image",
        "1 image",
        "1 perhaps show cat",
        "1 image",
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (finding(), "In hat, but unlike any hat; more unusual than all 240 labelled images."),
        (finding(p_value=3 / 241), "In hat, but unlike any hat; 1 in 80 labelled images is as unusual."),
        (finding(looks_like="gun"), "In hat, but looks like gun; more unusual than all 240 labelled images."),
        (
            finding(looks_like="gun", given=None),
            "Looks like gun; more unusual than all 240 labelled images.",
        ),
        (
            finding(given=None),
            "Unlike every class; the nearest is cat; more unusual than all 240 labelled images.",
        ),
        (
            finding(perhaps="cat"),
            "In hat, but unlike any hat; perhaps cat in another style; more unusual than all 240 labelled images.",
        ),
        (finding(kind="label"), "In hat, but looks like cat: 97% against less than 1%."),
        (finding(kind="exact-duplicate"), "The same file as kept.jpg."),
        (finding(kind="near-duplicate"), "The same picture as kept.jpg."),
        (finding(kind="covariate-shift"), "Perhaps cat in another style."),
        (finding(kind="unusual", p_value=None), "In hat, nearest to cat; more unusual than all other images."),
        (
            finding(kind="unusual", p_value=None, given="cat", rank=8),
            "In cat; more unusual than 98% of the images.",
        ),
        (finding(kind="unusual", p_value=None, given=None), "Nearest to cat; more unusual than all other images."),
    ],
)
def test_a_card_says_in_words_why_it_is_there(found, sentence):
    assert said(Parsed(render(only(found))))[0] == sentence


def test_numbers_stand_apart_from_the_words():
    parsed = Parsed(render(only(finding(ood_score=-6.418e-7))))

    assert parsed.data["records"][0]["facts"] == [
        ["Rank", "1 of 707"],
        ["As unusual", "less than 1 in 241"],
        ["As far from its class", "30%"],
        ["OOD score", "−6.418e−7"],
        ["ΔEnergy", "0.3100"],
        ["Energy", "−3.500"],
        ["Cosine", "0.2500"],
        ["Margin", "0.01230 before dog"],
        ["Size", "640 × 480 px, 23 kB"],
    ]
    assert "e−7" not in said(parsed)[0]


def test_without_a_runner_up_there_is_no_margin():
    facts = dict(Parsed(render(only(finding(label_2=None, margin=None)))).data["records"][0]["facts"])
    assert "Margin" not in facts and "None" not in facts.values()


def test_the_picture_of_a_card():
    thumbnail = bytes(range(256))
    parsed = Parsed(render(only(finding(), pictures={"file:///data/x.jpg": thumbnail})))

    (shown,) = parsed.find("img")
    assert base64.b64decode(shown["src"].partition(",")[2]) == thumbnail


def test_a_picture_that_was_not_made_for_want_of_room_is_not_gone():
    there = {"file:///gone.jpg": None}
    parsed = Parsed(render(only(finding(uri="file:///much.jpg"), finding("b", uri="file:///gone.jpg"), pictures=there)))

    assert [text for text in parsed.text("p") if text.startswith(("No room", "The file"))] == [
        "No room for its picture",
        "The file is gone",
    ]
    assert "1 pictures are left out" in " ".join(parsed.text("p", **{"class": "notice"}))


def test_pictures_beyond_the_room_for_them_are_left_out(monkeypatch):
    monkeypatch.setattr(cards, "_PICTURES", 8_000)
    found = [
        finding(f"{i}.jpg", uri=f"file:///{i}.jpg", neighbours=[image("n", uri="file:///n.jpg")]) for i in range(5)
    ]
    pictures = {f"file:///{i}.jpg": bytes([i]) * 1500 for i in range(5)} | {"file:///n.jpg": b"n" * 1500}
    parsed = Parsed(render(only(*found, pictures=pictures)))

    assert len(parsed.find("img")) == 4
    assert "No room for its picture" in parsed.text("p")
    assert parsed.data["records"][0]["near"] == [["n", -1]]


def test_filters_have_the_values_of_the_cards():
    labels = ["Cat", "cat", "cat\u200b"]
    parsed = Parsed(render(only(*(finding(f"{i}/1.jpg", label=label) for i, label in enumerate(labels)))))

    assert len({record["values"]["nearest"] for record in parsed.data["records"]}) == 3
    assert {"Cat (1)", "cat (1)", "cat\\u200b (1)", "0 (1)"} <= set(parsed.text("option"))
    names = {a.get("name") for a in parsed.find("select") if "data-filter" in a}
    assert names == {"nearest", "folder"}  # all have one given class, and no split or source


def test_the_filter_of_groups_has_their_names_in_words():
    options = Parsed(render(whole())).text("option")
    assert {"gun (3)", "hat that look like cat (1)"} <= set(options)
    assert not any("→" in option for option in options)


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
    assert text == "1,000,001 images with scores from 0 to 4.000; listed: 3.000 and above."


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
    parsed = Parsed(render(page(histogram=[], cut=None, scored=0)))

    assert not [tag for tag in ("svg", "table", "img") if parsed.find(tag)] and not cards_of(parsed)
    assert "Nothing was found." in parsed.text("p", **{"class": "empty"})[0]
    assert counts_of(parsed) == ["Details"]
    assert "None" not in parsed.texts


def test_readable_without_javascript():
    parsed = Parsed(render(whole()))

    hidden = [a.get("id") or a.get("class") for _, a in parsed.elements if "hidden" in a]
    assert set(hidden) == {"nothing", "flat", "progress", "map-tip", "chosen"}
    for i, (tag, _) in enumerate(parsed.elements):
        if tag in ("button", "input", "select", "form"):
            around = [parsed.elements[j] for j in [*parsed.ancestors[i], i]]
            # A dialog that is not open is not shown.
            assert any(
                t in ("dialog", "template") or "hidden" in a or "js-only" in a.get("class", "").split()
                for t, a in around
            )
    assert len(cards_of(parsed)) == len(parsed.find("img")) == 9
    assert not [a for a in cards_of(parsed) if "hidden" in a]


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


def test_the_dialog_has_what_is_known():
    data = Parsed(render(whole())).data
    first = data["records"][0]

    assert (first["kind"], first["hash"], first["uri"]) == ("ood", f"{crc32(b'a/1.jpg'):08x}", "file:///data/x.jpg")
    assert first["bars"] == [["cat", "0.2500", 100.0], ["dog", "0.2000", 80.0], ["hat", "−0.1000", 0.0]]
    assert data["classes"][first["given"]] == "hat"
    assert [data["classes"][k] for k in first["compare"]] == ["hat", "cat"]
    assert base64.b64decode(data["pictures"][data["typical"]["0"][0][1]].partition(",")[2]) == b"RIFF cat"
    listed, other = first["near"]
    assert listed == 1  # it is on the page, where it has a card of its own
    assert (other[0], base64.b64decode(data["pictures"][other[1]].partition(",")[2])) == ("b/near.jpg", b"RIFF near")
    assert first["guess"] == "gun"


def test_a_label_is_suggested_where_there_is_one():
    records = Parsed(render(whole())).data["records"]
    assert [record["suggestion"] for record in records] == ["", "", "", "", "cat", "", "", "cat", ""]


def test_a_duplicate_has_the_one_to_keep_beside_it():
    records = Parsed(render(whole())).data["records"]
    assert [record["twin"][0] for record in records if "twin" in record] == ["kept.jpg", "kept.jpg"]


def test_each_card_has_its_record():
    parsed = Parsed(render(whole()))
    records = parsed.data["records"]

    assert [a["aria-label"].partition(": ")[2] for a in cards_of(parsed)] == [a["data-path"] for a in cards_of(parsed)]
    assert [f"{crc32(a['data-path'].encode()):08x}" for a in cards_of(parsed)] == [r["hash"] for r in records]


def test_a_neighbour_of_another_source_with_the_same_path_is_another_image():
    """Two sources may each hold `a/1.jpg`; an image is known by its id."""
    other = image(image_id="other", uri="file:///more/a/1.jpg")
    second = image(image_id="second", uri="file:///second/a/1.jpg")
    first = image()
    found = [
        replace(finding(neighbours=[other, second]), image=first),
        replace(finding(neighbours=[first]), image=second),
    ]
    pictures = {i.uri: i.image_id.encode() for i in (first, second, other)}
    parsed = Parsed(render(only(*found, pictures=pictures)))

    assert parsed.data["records"][0]["near"] == [["a/1.jpg", 0], 1]
    assert parsed.data["records"][1]["near"] == [0]
    assert base64.b64decode(parsed.data["pictures"][0].partition(",")[2]) == b"other"
    assert [a["data-image"] for a in cards_of(parsed)] == ["0", "1"]


def test_an_image_with_two_findings_has_one_number():
    parsed = Parsed(render(page(section("ood", ((), [finding()])), section("label", ((), [finding(kind="label")])))))

    assert [a["data-image"] for a in cards_of(parsed)] == ["0", "0"]


def test_scores_that_are_no_numbers_break_nothing():
    strange = [("a", float("nan")), ("b", float("inf")), ("c", -0.2), ("d", -0.5)]
    points = [Point("x", float("nan"), 0.5, "flagged", None)]
    data = Parsed(render(only(finding(classes=strange), points=points))).data

    assert data["records"][0]["bars"] == [["c", "−0.2000", 0.0], ["d", "−0.5000", 0.0]]
    assert data["points"] == []


def test_the_map_draws_every_point_once_by_shape():
    parsed = Parsed(render(whole()))
    marks = {a["class"].split()[1]: a["d"] for a in parsed.find("path") if a["d"] not in ("M8 8h0", "M8 3l5 9h-10z")}

    assert {name: path.count("M") for name, path in marks.items()} == {
        "not-flagged": 1,
        "other-finding": 1,
        "flagged": 1,
    }
    # x, y, kind, how unusual, the record that it opens, the nearest class, and its small picture.
    assert parsed.data["points"] == [[14, 14, 0, 0, -1, 0, -1], [586, 386, 1, 3, -1, 1, 0], [300, 200, 2, 0, 0, 0, -1]]
    assert marks["other-finding"] == "M586 386h0"
    assert marks["flagged"].endswith("z")  # a triangle: its shape differs too, not only its colour
    assert "1 not flagged, 1 other finding, 1 flagged" in parsed.text("desc", id="map-text")[0]


def test_without_places_there_is_no_map():
    assert not Parsed(render(page())).find("svg", id="map")


def test_a_group_that_is_cut_says_so():
    cut = Section("ood", 7, [Group((), 7, [finding()])])
    assert "6 more are on no page; `ood-audit export` lists them." in Parsed(render(page(cut))).text("p")


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


def test_filters_by_split_and_source():
    images = [
        image("1.jpg", split="train", source="/data/a"),
        image("2.jpg", split="test", source="/data/a"),
        image("3.jpg", source="/data/b"),
    ]
    data = Parsed(render(only(*(replace(finding(), image=one) for one in images))))

    options = data.text("option")
    assert {"train (1)", "test (1)", "/data/a (2)", "/data/b (1)"} <= set(options)
    assert [record["values"]["split"] for record in data.data["records"]] == [0, 1, None]
    assert [record["values"]["source"] for record in data.data["records"]] == [0, 0, 1]


def test_a_picture_of_a_card_that_is_typical_too_is_there_once():
    shown = image("cat/1.jpg", uri="file:///data/cat.jpg")
    found = replace(finding(kind="unusual"), image=shown)
    html = render(only(found, typical={"cat": [shown]}, pictures={shown.uri: b"RIFF cat"}))

    assert html.count(base64.b64encode(b"RIFF cat").decode()) == 1
    assert Parsed(html).data["typical"] == {"0": [0]}


def test_orders_are_made_beforehand():
    paths = ["b/2.jpg", "a/10.jpg", "A/9.jpg"]
    found = [replace(finding(path, rank=i, given=path[0]), severity=i / 10) for i, path in enumerate(paths)]
    orders = Parsed(render(only(*found))).data["orders"]

    assert orders == {"severity": [2, 1, 0], "class": [1, 2, 0], "folder": [2, 1, 0]}  # 9 before 10


def test_a_long_report_is_split_into_pages():
    whole = page(
        section("ood", (("gun",), [finding(f"{i}.jpg", rank=i) for i in range(3)])),
        section("unusual", ((), [finding(f"{i}.jpg", "unusual", rank=i) for i in range(3, 7)])),
        points=[Point(f"id of {i}.jpg", 0.5, 0.5, "not flagged", "cat") for i in range(9)],
        typical={"cat": [image()], "bird": [image()]},
    )
    pages = paging.split(whole, 2)

    assert [[f.image.path for f in paging.findings(one)] for one in pages] == [
        ["0.jpg", "1.jpg"],
        ["2.jpg", "3.jpg"],
        ["4.jpg", "5.jpg"],
        ["6.jpg"],
    ]
    assert [(one.number, one.pages) for one in pages] == [(k, 4) for k in range(1, 5)]
    # Each map has what is listed on its page, and what is listed on none.
    assert [[p.image_id[6] for p in one.points] for one in pages] == [[*"0178"], [*"2378"], [*"4578"], [*"678"]]
    assert all(list(one.typical) == ["cat"] for one in pages)  # bird is nowhere on it
    first, second = (Parsed(render(one)) for one in pages[:2])
    assert "1 more are on other pages." in first.text("p")
    links = [a["href"] for a in first.find("a") if a.get("href", "").startswith("report")]
    assert links == ["report-2.html#unusual", *["report-2.html", "report-3.html", "report-4.html"] * 2]
    assert second.find("a", href="report.html")
    assert paging.split(page(points=[]), 2) == [page(points=[])]
