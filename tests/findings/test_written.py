"""Text in pictures: what goes with a class, and what names another one."""

import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

import ood_audit
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings import written
from tests.conftest import EXAMPLES, run_cli

CLASSES = Vocabulary(
    (("cat",), ("grand piano", "pianoforte"), ("racing car",), ("car",), ("dog", "犬ころ"), ("dalmatian",))
)


def images(texts, **columns):
    """A table of pictures with these texts by class."""
    rows = [
        {"image_id": f"{label}-{i:03}", "uri": f"file:///{label}/{i}", "given_label": label, "split": None}
        for label, own in texts.items()
        for i in range(len(own))
    ]
    return pa.Table.from_pylist([row | {"width": 100, "height": 100} | columns for row in rows])


def found(texts, table=None):
    by_uri = {f"file:///{label}/{i}": lines for label, own in texts.items() for i, lines in enumerate(own)}
    return written.find(images(texts) if table is None else table, CLASSES, by_uri.get)


def plain(count=30):
    return [[] for _ in range(count)]


def test_the_name_of_a_class_on_its_pictures_is_a_shortcut():
    texts = {"cat": [["Foto: CAT!"]] * 24 + plain(6), "car": plain(), "dog": [["cat"], *plain(29)]}
    result = found(texts)
    (one,) = result.shortcuts
    assert one.evidence == '80% of cat have the text "cat", against 2% of the other images'
    assert one.images == tuple(f"cat-{i:03}" for i in range(24))
    assert result.misnamed == [written.Misnamed("dog-000", "dog", "cat")]
    assert result.about() == "text: read in 90 of 90 pictures; that of 1 names another class than their label"


def test_so_is_any_word_of_one_class_or_one_split():
    texts = {"cat": [["www.tier-archiv.org 1999"]] * 12 + plain(28), "dog": plain(40)}
    (one,) = found(texts).shortcuts
    assert one.evidence == '30% of cat have the text "1999", against 0% of the other images'
    texts = {"cat": [["tier"]] * 7 + plain(33), "dog": [["tier"]] * 7 + plain(33)}
    splits = pa.array(["train" if i < 7 else "test" for i in range(40)] * 2)
    table = images(texts)
    (one,) = found(texts, table.set_column(table.schema.get_field_index("split"), "split", splits)).shortcuts
    assert one.evidence == '100% of the split train have the text "tier", against 0% of the other images'
    assert len(one.images) == 14


@pytest.mark.parametrize("of_dog", [2, 20])
def test_what_few_pictures_have_or_all_classes_is_no_shortcut(of_dog):
    texts = {"cat": [["stock"]] * of_dog + plain(10), "dog": [["stock"]] * (of_dog // 2) + plain(20)}
    assert found(texts).shortcuts == []


def test_chance_is_no_shortcut():
    texts = {f"class {k}": [["often"]] * (5 * (k == 0)) + plain(20) for k in range(2)} | {
        "c": [["often"]] * 2 + plain()
    }
    assert found(texts).shortcuts == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Grand_Piano", "grand piano"),
        ("GRANDPIANO", "grand piano"),
        ("a pianoforte, old", "grand piano"),
        ("犬ころ", "dog"),
        ("c a t", "cat"),
        ("scar", None),
        ("cats", None),
        ("ca t" * 30, None),
        ("piano", None),
    ],
)
def test_names_are_whole_words_with_spaces_or_without(text, named):
    assert [one.named for one in found({"car": [[text]]}).misnamed] == ([named] if named else [])


def test_names_on_two_lines_are_one():
    assert [one.named for one in found({"cat": [["the grand", "piano"]]}).misnamed] == ["grand piano"]


def test_a_part_of_the_own_name_or_what_means_the_same_names_no_other_class():
    assert found({"racing car": [["car"]], "dalmatian": [["dog"]], "dog": [["dalmatian"]]}).misnamed == []
    assert [one.named for one in found({"car": [["racing car"]], "cat": [["cat and dog"]]}).misnamed] == []
    assert [one.named for one in found({"dalmatian": [["cat"]]}).misnamed] == ["cat"]


def test_text_may_hold_anything():
    hostile = ["<script>alert('dog')</script>", "\x1b[31m\u202edog\n'; DROP TABLE images; --", '"=cmd|dog"', "x" * 5000]
    result = found({"cat": [hostile] * 20 + plain(), "car": plain()})
    assert {one.named for one in result.misnamed} == {"dog"}
    assert all(one.shows.removeprefix('have the text "').removesuffix('"').isalnum() for one in result.shortcuts)


def test_boxes_small_and_remote_pictures_are_not_read():
    texts = {"cat": [["dog"]] * 3}
    table = images(texts)
    uris = pa.array(["file:///cat/0#box=1&xywh=0,0,9,9", "s3://bucket/cat.jpg", "file:///cat/2"])
    table = table.set_column(table.schema.get_field_index("uri"), "uri", uris)
    result = written.find(table, CLASSES, {uri: ["dog"] for uri in uris.to_pylist()}.get)
    assert [one.image_id for one in result.misnamed] == ["cat-002"]
    assert written.find(images(texts, height=63), CLASSES, lambda uri: ["dog"]).read == 0


def test_of_many_pictures_some_of_each_class_are_read_and_all_of_a_class_with_a_shortcut(monkeypatch):
    monkeypatch.setattr(written, "MOST", 60)
    monkeypatch.setattr(written, "_ALL", 50)
    texts = {"cat": [["cat"]] * 200, "dog": plain(20), "car": plain(200)}
    told: list[tuple[int, int]] = []
    by_uri = {f"file:///{label}/{i}": lines for label, own in texts.items() for i, lines in enumerate(own)}
    result = written.find(images(texts), CLASSES, by_uri.get, lambda *done: told.append(done))
    assert result.read == 20 + 20 + 50
    assert len(result.shortcuts[0].images) == 50
    assert (told[0], told[59], told[-1]) == ((1, 60), (60, 60), (30, 30))


def test_pictures_that_cannot_be_read_and_those_without_a_label_count_for_nothing():
    table = images({"cat": plain(20)}, given_label=None)
    assert written.find(table, CLASSES, lambda uri: None).read == 0
    assert written.find(table, CLASSES, lambda uri: ["dog"]).misnamed == []


@pytest.fixture
def captioned(tmp_path):
    """Most chairs with their name, and a dalmatian with that of a cup."""
    for name in ("chair", "cup", "dalmatian"):
        for number, path in enumerate(sorted((EXAMPLES / "images" / name).glob("*.jpg"))):
            if path.name == "img_9999.jpg":  # damaged
                continue
            with Image.open(path) as image:
                picture = image.convert("RGB")
            if text := {"chair": "Chair" * (number % 4 > 0), "dalmatian": "a cup" * (number == 3)}.get(name):
                font = ImageFont.load_default(size=picture.height // 9)
                box = ImageDraw.Draw(picture).textbbox((20, 20), text, font)
                ImageDraw.Draw(picture).rectangle(box, "white")
                ImageDraw.Draw(picture).text((20, 20), text, "black", font)
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "images" / name / path.name)
    return tmp_path / "images"


def test_a_report_reads_them_where_it_is_told_to(captioned, tmp_path):
    pytest.importorskip("rapidocr", reason="needs the extra `text`")
    store = tmp_path / "store"
    assert run_cli("embed", captioned, "--store", store).returncode == 0
    done = run_cli("report", "--store", store, "--read-text", "--top", 3)
    assert done.returncode == 0, done.stderr
    assert "that of 1 names another class than their label" in done.stderr
    assert 'of chair have the text "chair", against 0% of the other images' in done.stderr
    audit = ood_audit.open(store)
    (row,) = audit.findings("text").rows
    assert row.path.startswith("dalmatian/")
    assert row.evidence == 'it has the text "cup", and is labelled dalmatian'
    paths = [path for (path,) in audit.store.query("SELECT path FROM findings WHERE kind = 'shortcut'").rows]
    assert len(paths) >= 8
    assert all(path.startswith("chair/") for path in paths)
    page = (store / "reports" / "latest" / "report.html").read_text()
    assert "Text that names another class" in page
    assert "It has the text &#34;cup&#34;, and is labelled dalmatian." in page
    assert "have the text &#34;chair&#34;" in page
    assert run_cli("export", "--store", store, "--text").stdout.rstrip("\0\n").endswith(row.path)
