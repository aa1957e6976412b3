import json
import time
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ood_audit.classes import class_lists, vocabulary
from ood_audit.classes.vocabulary import (
    Vocabulary,
    check_templates,
    choose,
    from_folders,
    read_vocabulary,
    template_set,
)
from ood_audit.errors import UsageError
from ood_audit.names import key, near
from tests.helpers.made import make_store


def write(tmp_path, content):
    path = tmp_path / "classes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_comments_synonyms_and_windows_files(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf# animals\r\n cat | house  cat|kitty # pets\r\n\r\nC#\r\n\xc3\xa9clair\r\n")
    assert read_vocabulary(path).classes == (("cat", "house cat", "kitty"), ("C#",), ("éclair",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("cat\ndog\nCat\n", "line 3: 'Cat' is already in line 1 as 'cat'; remove one"),
        ("air plane\ndog\nair_plane\n", "line 3: 'air_plane' is already in line 1 as 'air plane'"),
        ("t-shirt\nT  shirt\n", "line 2: 'T shirt' is already in line 1 as 't-shirt'"),
        ("\u00e9clair\ne\u0301clair\n", "line 2: .* is already in line 1"),
        ("cat|feline\ndog\nfeline\n", "line 3: 'feline' is already in line 1"),
        ("cat|cat\n", "line 1: 'cat' is already in line 1"),
        ("cat\ndog||wolf\n", "line 2: an empty name"),
        (b"cat\ncaf\xe9\n", "line 2: not UTF-8"),
        (b"cat\nd\0g\n", "line 2: a null byte"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "line 3: a null byte"),
        ("cat\ndog\n".encode("utf-16-le"), "line 1: a null byte"),
        ("cat\n" + "x" * 10_000_000, "line 2: a name of 10,000,000 letters; write one class a line"),
        ("cat\nn99999999\n", "line 2: WordNet 3.0 has no noun n99999999; write the name of the class"),
        ("", "names no class"),
        ("# nothing\n\n", "names no class"),
    ],
)
def test_refuses_with_the_line(tmp_path, content, complaint):
    with pytest.raises(UsageError, match=complaint):
        read_vocabulary(write(tmp_path, content))


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_vocabulary(tmp_path / "nowhere.txt")


def test_features_average_templates_and_synonyms():
    vectors = {
        "a cat": [1, 0],
        "the cat": [0, 1],
        "a kitty": [1, 0],
        "the kitty": [1, 0],
        "a dog": [0, 1],
        "the dog": [0, 1],
    }
    vocabulary = Vocabulary((("cat", "kitty"), ("dog",)), ("a {}", "the {}"))
    got = vocabulary.features(lambda texts: np.array([vectors[text] for text in texts], np.float32))
    np.testing.assert_allclose(got, [np.array([3, 1]) / np.sqrt(10), [0, 1]], rtol=1e-6)


def test_identity_depends_on_names_and_templates():
    one = Vocabulary((("cat",), ("dog",)))
    assert one.id == Vocabulary((("cat",), ("dog",))).id
    assert len({one.id, Vocabulary((("cat", "dog"),)).id, Vocabulary(one.classes, ("{}",)).id}) == 3


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_templates_need_one_place(template):
    with pytest.raises(UsageError, match="once"):
        check_templates([template])


def test_names_with_braces_and_percent_are_literal():
    vocabulary = Vocabulary((("100% {cotton}",),), ("a {}.",))
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    vocabulary.features(encode)
    assert seen == ["a 100% {cotton}."]


def test_template_sets_of_open_clip():
    assert len(template_set("openai-imagenet")) == 80
    assert "itap of a {}." in template_set("simple")


@pytest.mark.parametrize(
    "name", ["air_plane", "Air-Plane", " AIR \t plane ", "air\u00a0plane", "air__plane", "air\u2010plane"]
)
def test_one_key_for_names(name):
    assert key(name) == "air plane"
    planes = Vocabulary((("cat",), ("air_plane", "jet")))
    assert planes.position(name) == planes.class_of(f"x/{name}") == planes.class_of(f"{name}/2021") == 1


def test_key_of_unicode_and_of_nothing():
    composed = "\u00e9clair"
    assert key(unicodedata.normalize("NFD", composed)) == key(composed) == composed
    assert key("STRASSE") == key("stra\u00dfe")
    assert key("\ufeffca\u200bt\u00ad") == key("Cat\u200e") == "cat"
    assert (key("_"), key("-"), key(" ")) == ("_", "-", "")
    assert Vocabulary(((composed,),)).class_of(unicodedata.normalize("NFD", composed)) == 0


def test_near_names():
    known = ["airplane", "electric guitar", "dalmatian", "chair", "horse", "box"]
    close = {
        "airplanes": "airplane",
        "air_plane": "airplane",
        "guitar": "electric guitar",
        "dalmation": "dalmatian",
        "chari": "chair",
        "boxes": "box",
        "\uff42\uff4f\uff58": "box",  # wide letters
        "box.": "box",
        "b\u00f3x": "box",
        "air\u2013plane": "airplane",
    }
    assert near([*close, "house", "cup", "fox", "zebra"], known) == close


TWO = [("cat",), ("electric guitar",)]


@pytest.mark.parametrize(
    ("name", "content", "ids", "form"),
    [
        ("c.txt", "cat\nelectric guitar\n", "", "one a line"),
        ("c.txt", "cat\r\nelectric guitar\r\n".encode("utf-16"), "", "one a line"),
        ("c.txt", "0 cat\n1 electric guitar\n", "01", "a number and a name a line"),
        ("c.txt", "1: cat\n7: electric guitar\n", "17", "a number and a name a line"),
        ("c.txt", "cat 0\nelectric guitar 1\n", "01", "a name and a number a line"),
        ("c.txt", "['cat', 'electric guitar']", "", "a YAML list"),
        ("c.txt", "index,name\n0,cat\n1,electric guitar\n", "01", "CSV, column name"),
        ("c.json", '["cat", "electric  guitar"]', "", "a JSON list"),
        ("c.json", '{"3": "cat", "1": "electric guitar"}', "31", "a JSON object, number: name"),
        ("c.json", '{"cat": 3, "electric guitar": 1}', "31", "a JSON object"),
        ("c.json", '{"id2label": {"0": "cat", "1": "electric guitar"}}', "01", "id2label of JSON, number: name"),
        ("c.json", '{"categories": [{"id": 1, "name": "cat"}, {"id": 9, "name": "electric guitar"}]}', "19", None),
        ("c.yaml", "path: x\nnc: 2\nnames: [cat, electric guitar]\n", "", "names of YAML"),
        ("c.yaml", "names:\n  0: cat\n  1: electric guitar\n", "01", "names of YAML, number: name"),
        ("c.yml", "- cat\n- electric guitar\n", "", "a YAML list"),
        ("c.csv", "index,name\n0,cat\n1,electric guitar\n", "01", "CSV, column name"),
        ("c.csv", "0,cat\n1,electric guitar\n", "01", "CSV without a header"),
        ("c.csv", "cat\nelectric guitar\n", "", "CSV without a header"),
        ("c.csv", "Class;extra\ncat;x\nelectric guitar;y\n", "", "CSV, column Class"),
        ("c.tsv", "label\tname\n5\tcat\n6\telectric guitar\n", "56", "CSV, column name"),
        ("c.txt", "[0] cat\n[1] electric guitar\n", "01", "a number and a name a line"),
        ("c.txt", "0 - cat\n1 - electric guitar\n", "01", "a number and a name a line"),
        ("c.txt", "0=cat\n1 = electric guitar\n", "01", "a number and a name a line"),
        ("c.txt", "001.cat\n002.electric_guitar\n", "12", "a number and a name a line"),
        ("c.txt", "1 001.cat\n2 002.electric_guitar\n", "12", "a number and a name a line"),
        ("c.txt", '0: "cat"\n1: "electric guitar"\n', "01", "a number and a name a line"),
        ("c.txt", "cat: 0\nelectric guitar: 1\n", "01", "a name and a number a line"),
        ("c.txt", "- cat\n- electric guitar\n", "", "one a line"),
        ("c.txt", '"cat"\n"electric guitar"\n', "", "one a line"),
        ("c.txt", "'cat',\n'electric guitar'\n", "", "one a line"),
        ("c.py", "NAMES = ['cat',\n  'electric guitar']  # two\nx = [1, 2]\n", "", "a Python list"),
        ("c.py", "SIZES = [64]\nclasses = (\n  'cat',  # or [kitty]\n  'electric guitar',\n)\n", "", "a Python list"),
        (
            "c.py",
            "_base_ = ['a.py']\nd = dict(\n  meta=dict(classes=('cat', 'electric guitar'), n=2),\n)\n",
            "",
            "a Python list",
        ),
        ("c.py", "class D:\n  META = {'classes': ('cat', 'electric guitar'), 'sizes': [1]}\n", "", "a Python list"),
        ("c.py", "labels = None\nclasses = 2\nf(names=('cat', 'electric guitar'))\n", "", "a Python list"),
        ("c.py", "x = 3\nNAMES: list[str] = ['cat', 'electric guitar']\n", "", "a Python list"),
        ("c.toml", 'sizes = [640, 480]\nnames = ["cat", "electric guitar"]\n', "", "a TOML list"),
        ("c.jsonl", '{"id": 4, "name": "cat"}\n{"id": 2, "name": "electric guitar"}\n', "42", "JSON lines"),
        (
            "c.pbtxt",
            'item {\n id: 1\n name: "cat"\n}\nitem { name: "x" display_name: "electric guitar" id: 2 }',
            "12",
            None,
        ),
        ("c.json", '{"features": {"label": {"names": ["cat", "electric guitar"]}}}', "", "names of JSON"),
        ("c.json", '{"classes": {"cat": {"id": 3}, "electric guitar": {"id": 1}}}', "31", "classes of JSON"),
        ("c.yaml", "cat:\nelectric guitar:\n", "", "a YAML object"),
    ],
)
def test_the_usual_forms_of_class_lists(tmp_path, name, content, ids, form):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_vocabulary(path)
    assert [tuple(map(key, names)) for names in found.classes] == TWO
    assert found.ids == tuple(ids)
    assert class_lists.read(path).form == form or form is None


@pytest.mark.parametrize(
    ("content", "last"), [("cat, mouse, a b", "a b"), ("cat;mouse;a, b", "a, b"), ('cat\tmouse\t"a, b"', "a, b")]
)
def test_names_in_one_line(tmp_path, content, last):
    assert read_vocabulary(write(tmp_path, content)).names == ["cat", "mouse", last]


def test_folders_that_are_numbered_are_those_of_the_names(tmp_path):
    """As those of CUB and Caltech-256: `001.cat`."""
    found = from_folders(stored(tmp_path, "001.cat", "002.electric_guitar")).vocabulary
    assert found is not None and (found.names, found.ids) == (["cat", "electric guitar"], ("1", "2"))
    assert [found.class_of(name) for name in ("001.cat", "cat", "x/002.electric_guitar", "002.cat")] == [0, 0, 1, None]
    listed = Vocabulary((("cat",), ("dog",)))
    assert (listed.class_of("17_dog"), listed.class_of("17"), listed.class_of("001.mouse")) == (1, None, None)
    own = from_folders(stored(tmp_path / "own", "2-seater", "3-wheeler")).vocabulary
    assert own is not None and own.names == ["2-seater", "3-wheeler"]
    same = from_folders(stored(tmp_path / "same", "1-cat", "2-cat")).vocabulary  # the numbers tell them apart
    assert same is not None and same.names == ["1-cat", "2-cat"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("0: 747 jet\n1: 101 dalmatians\n2: 3 wheeler\n", ["747 jet", "101 dalmatians", "3 wheeler"]),
        ("1: 1 euro coin\n2: 2 euro coin\n", ["1 euro coin", "2 euro coin"]),
        ("0,737 plane\n1,747 plane\n", ["737 plane", "747 plane"]),
        ("Hummer SUV 2000, 0\nAudi S4 2012, 1\n", ["Hummer SUV 2000", "Audi S4 2012"]),
        ("x = [tall]\ny = short\n", ["x = [tall]", "y = short"]),
        ("<unk>\ncat\n", ["<unk>", "cat"]),
        ("- sign\n+ sign\n", ["- sign", "+ sign"]),
        ("item { id: 1 name: 'dog\\'s {red} bed' }\nitem { id: 2 name: \"cat\" }\n", ["dog's {red} bed", "cat"]),
    ],
)
def test_only_what_counts_the_names_is_taken_off(tmp_path, content, names):
    assert read_vocabulary(write(tmp_path, content)).names == names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", '{"cat": {"names": ["kitty"]}, "dog": {"colour": 1}}'),
        ("c.json", '{"version": {"id": 3}, "license": ""}'),
        ("c.toml", 'sizes = [640, 480]\nothers = ["cat"]\n'),
        ("c.py", "classes = [cat, dog]\n"),
        ("c.py", "_base_ = ['a.py', 'b.py']\n"),
        ("c.py", "sizes = [1, 2]\nothers = ['cat']\n"),
        ("c.txt", "<classes><name>cat</name></classes>"),
    ],
)
def test_what_is_no_list_of_classes_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=r"holds no list|holds a list|is XML"):
        read_vocabulary(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["2 door car\n4 door car\n", "boeing 737\nboeing 747\n", "formula 1\nformula 2\n", "0\n", "747\n"]
)
def test_numbers_that_belong_to_a_name_stay(tmp_path, content):
    assert read_vocabulary(write(tmp_path, content)).names == content.splitlines()


def test_lists_with_wordnet_ids(tmp_path):
    assert read_vocabulary(write(tmp_path, "n02691156\nn02084071\n")).names == ["airplane", "dog"]
    words = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn02084071 dog, crane\n"
    found = read_vocabulary(write(tmp_path, words))
    assert found.classes == (
        ("tench", "Tinca tinca"),
        ("crane (wading bird)",),
        ("crane (lifting device)",),
        ("dog",),  # whose synonym is another class
    )
    assert [found.class_of(name) for name in ("n03126707", "N02012849", "train/n02084071", "n02691156")] == [
        2,
        1,
        3,
        None,
    ]
    (tmp_path / "keras.json").write_text(json.dumps({"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}))
    assert read_vocabulary(tmp_path / "keras.json").names == ["crane (wading bird)", "crane (lifting device)"]


def test_folders_of_wordnet_ids_and_numbers_match_names():
    found = Vocabulary((("aeroplane",), ("dog",)), ids=("7", ""))
    assert found.class_of("n02691156") == 0
    assert found.class_of("dog/7") == 1  # a name says more than a number
    assert found.class_of("train/7") == 0
    assert found.class_of("7/x") is None
    assert found.position("7") == 0


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("c.json", "", "names no class"),
        ("c.json", "{", "is no JSON"),
        ("c.txt", "<names><name>cat</name></names>", "is XML or HTML, which is not read"),
        ("c.json", "[" * 100_000, "nested too deeply"),
        ("c.json", "[[], 1]", "entry 1: .* is no name"),
        ("c.json", "[true]", "entry 1: True is no name"),
        ("c.json", '{"a": {"b": 1}}', "its keys are a; write names"),
        ("c.json", '{"cat": 0, "cat": 1}', "the key 'cat': 'cat' is already in the key 'cat'; remove one"),
        ("c.json", '"cat"', "holds no list of classes"),
        ("c.yaml", "names: [cat", "is no YAML"),
        ("c.yaml", "names: data.names", "holds no list of classes"),
        (
            "c.yaml",
            "a: &a [x]\nb: &b [*a,*a]\nnames: !!python/object/apply:os.system [ls, [*b]]",
            "entry 2: .* is no name",
        ),
        ("c.yaml", "&a [*a]", "nested too deeply"),
        ("c.csv", "id,x,y\n1,a,b\n", r"needs a column of names called name \(it has: id, x, y\)"),
        ("c.csv", "cat,dog,x\nb,c,d\n", "has 3 columns and no header"),
        ("c.csv", "id,name\n1,cat\n2,\n", "line 3: no name in column 2"),
        ("c.csv", "name\n" + "x" * 200_000, "line 2: .*field larger"),
    ],
)
def test_lists_that_can_not_be_read(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=complaint) as error:
        read_vocabulary(tmp_path / name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_hundred_thousand_names_are_read_in_seconds(tmp_path):
    names = [f"thing number {i}" for i in range(100_000)]
    started = time.process_time()
    assert read_vocabulary(write(tmp_path, "\n".join(names))).names == names
    (tmp_path / "c.yaml").write_text("names:\n" + "\n".join(f"  {i}: {name}" for i, name in enumerate(names)))
    assert len(read_vocabulary(tmp_path / "c.yaml").names) == 100_000
    assert time.process_time() - started < 60


def fake() -> Any:
    return FakeEncoder()


def stored(tmp_path, *folders):
    features = np.eye(len(folders), 4, dtype=np.float32) + 0.1
    store = make_store(tmp_path / "store", features, [f"{f}/1.jpg" for f in folders], Vocabulary((("x",),)), features)
    (store.root / "current.json").unlink()
    return store


@pytest.mark.parametrize(
    ("folders", "classes", "splits", "without"),
    [
        (["train/cat", "train/big_dog", "val/cat"], ["big dog", "cat"], ["train", "val"], 0),
        (["cat/train", "cat/test", "dog/train", "dog/test"], ["cat", "dog"], ["test", "train"], 0),
        (["train/n02691156/images", "train/n02084071/images", "val/images"], ["dog", "airplane"], None, 1),
        (["bus", "car", "train"], ["bus", "car", "train"], [], 0),  # the vehicle
        (["images/cat", "images/dog"], ["cat", "dog"], ["images"], 0),
        (["train", "val", "test"], None, ["test", "train", "val"], 3),
        (["train2017", "val2017", "extra"], None, ["train2017", "val2017"], 2),
        (["trainset/cat", "Test_Images/cat", "valid-data/dog"], ["cat", "dog"], None, 0),
        (["unlabeled", "images_train/cat", "images_test/dog"], ["cat", "dog"], None, 1),
    ],
)
def test_splits_name_no_class(tmp_path, folders, classes, splits, without):
    found = from_folders(stored(tmp_path, *folders))
    assert (found.vocabulary and found.vocabulary.names) == classes
    assert found.without == without
    if splits is not None:
        assert found.splits == splits
    if found.vocabulary is not None:
        assert found.vocabulary.class_of("train/zebra") is None


def told(store, labels, templates=None):
    notes: list[str] = []
    return choose(store, labels, templates, notes.append), notes


def test_what_was_understood_is_said(tmp_path):
    store = stored(tmp_path, "train/cat", "train/dog", "val/dog")
    _, notes = told(store, None)
    assert notes == ["vocabulary: the 2 folder names beside train, val: cat, dog; give a list with `labels=FILE`"]
    path = write(tmp_path, "0 cat\n1 dogs\n")
    chosen, notes = told(store, path)
    assert notes == [
        "vocabulary: 2 classes from classes.txt (a number and a name a line): cat, dogs",
        "2 folders match no class: 'dog' is close to 'dogs'; rename the folder, or add its name to the list after |",
    ]
    assert told(store, ["cat", "dog"])[1] == ["vocabulary: 2 classes given by name: cat, dog"]
    vocabulary.cached_features(store, chosen, fake)
    store.set_current(vocabulary=chosen.id)
    again, notes = told(store, None)
    assert again == chosen
    assert notes[0] == "vocabulary: the 2 classes last used with this store: cat, dogs"
    with pytest.raises(UsageError, match="entry 2: 'CAT' is already in entry 1 as 'cat'"):
        told(store, ["cat", "CAT"])
    with pytest.raises(UsageError, match="entry 2: an empty name"):
        told(store, ["cat", " "])


def test_folders_that_are_numbers_are_those_of_the_list(tmp_path):
    _, notes = told(stored(tmp_path, "train/7", "train/9"), write(tmp_path, "7: cat\n9: dog\n"))
    assert notes[1] == "folders that are numbers are the classes with these numbers in the list: 7 is cat"


def test_splits_alone_are_refused(tmp_path):
    with pytest.raises(UsageError, match="the folders test, train name no classes; give a list"):
        told(stored(tmp_path, "train", "test"), None)


def test_a_list_of_splits_is_doubted_and_one_with_a_name_of_a_split_is_not(tmp_path):
    store, labels = stored(tmp_path, "cat"), tmp_path / "labels.txt"
    labels.write_text("train\nval\ntest\n")
    assert "warning: the class names are those of splits (train, val, test)" in told(store, labels)[1][1]
    labels.write_text("train\nbus\n")
    assert len(told(store, labels)[1]) == 1


def test_splits_of_one_class_are_refused_by_its_name(tmp_path):
    with pytest.raises(UsageError, match="the folders name fewer than two classes: only cat; give a list"):
        told(stored(tmp_path, "train/cat", "test/cat"), None)


def test_bare_numbers_are_doubted(tmp_path):
    _, notes = told(stored(tmp_path, "0", "1"), None)
    assert "warning: 2 of the class names are bare numbers (0, 1), which say nothing" in notes[1]
    _, notes = told(stored(tmp_path / "other", "n99999999", "n02084071"), None)
    assert "warning: WordNet 3.0 has no noun n99999999" in notes[1]


class _FakeEncoder:
    """A text tower of eight tokens, of which two are for both ends: a word is a token."""

    def __init__(self):
        self.texts: list[str] = []

    def tokenize(self, texts):
        import torch

        words = [(text.split(" ") + [""] * 8)[:6] for text in texts]
        return torch.tensor([[1, *(hash(word) % 2**31 for word in own), 2] for own in words])

    def encode_texts(self, texts):
        self.texts += texts
        return np.ones((len(texts), 4), np.float32)


FakeEncoder: Any = _FakeEncoder


def test_names_that_differ_past_the_context_are_refused(tmp_path):
    store = stored(tmp_path, "x")
    long = Vocabulary(
        (("one two three four five six seven",), ("cat",), ("one two three four five six eight",)), ("{}",)
    )
    with pytest.raises(
        UsageError, match=r"'one two .* seven' and 'one .* eight' are the same to this model, which reads"
    ):
        vocabulary.cached_features(store, long, fake)
    assert not list(store.vocabularies.glob(f"{long.id}*"))
    fine = replace(long, classes=(*long.classes[:2], ("seven two three",)))
    assert vocabulary.cached_features(store, fine, fake).shape == (3, 4)


def test_the_starter_refuses_names_beyond_its_context(encoder, tmp_path):
    head = "a very long name of a thing " * 8
    with pytest.raises(UsageError, match="reads the first 32 tokens"):
        vocabulary.cached_features(
            stored(tmp_path, "x"), Vocabulary(((head + "cat",), (head + "dog",))), lambda: encoder
        )


def test_underscores_are_spoken_as_spaces():
    encoder = FakeEncoder()
    Vocabulary((("air_plane",),)).features(encoder.encode_texts)
    assert encoder.texts == ["a photo of a air plane."]
