"""The split of an image: by its folders, and as the user says."""

import shutil

import pytest

import ood_audit
from ood_audit.errors import UsageError
from ood_audit.images.splits import named, of_folders
from tests.conftest import EXAMPLES, run_cli

PICTURE = EXAMPLES / "images" / "airplane" / "img_0001.jpg"


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


def lay(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PICTURE, folder / name)
    return folder


def splits(store):
    rows = ood_audit.open_store(store).query("SELECT path, split FROM images ORDER BY ALL").rows
    return dict(rows)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val2017", "val"),
        ("valid", "val"),
        ("dev", "val"),
        ("test_set", "test"),
        ("trainer", None),
        ("images", None),
        ("cat", None),
    ],
)
def test_names_of_splits(name, split):
    assert named(name) == split


def test_a_train_beside_a_car_is_a_train():
    assert of_folders(["train", "car", "bus"], "photos") == {}
    assert of_folders(["train/cat", "val/cat", "cat"], "photos") == {"train/cat": "train", "val/cat": "val"}
    assert of_folders(["images/train", "images/val", ""], "x") == {"images/train": "train", "images/val": "val"}
    assert of_folders(["cat/train", "cat/test"], "x") == {"cat/train": "train", "cat/test": "test"}
    assert of_folders(["", "cat"], "test") == {"": "test", "cat": "test"}
    assert of_folders(["val/train/a", "train/b"], "x") == {"val/train/a": "val", "train/b": "train"}  # the outermost


def test_folders_say_the_split_and_not_the_class(tmp_path):
    data = lay(tmp_path / "data", "train/cat/1.jpg", "train/dog/2.jpg", "valid/cat/3.jpg", "extra/cat/4.jpg")
    store = ood_audit.embed(data, store=tmp_path / "store", device="cpu").store
    assert splits(tmp_path / "store") == {
        "train/cat/1.jpg": "train",
        "train/dog/2.jpg": "train",
        "valid/cat/3.jpg": "val",
        "extra/cat/4.jpg": None,
    }
    from ood_audit.classes.vocabulary import Vocabulary

    vocabulary = Vocabulary((("cat",), ("dog",)))
    folders = store.query("SELECT folder FROM images ORDER BY path").rows
    assert [vocabulary.class_of(folder) for (folder,) in folders] == [0, 0, 1, 0]


def test_a_given_split_overrules_folders_and_needs_no_embedding(tmp_path, monkeypatch):
    data = lay(tmp_path / "data", "train/1.jpg", "val/2.jpg", "more/3.jpg")
    result = ood_audit.embed(data, splits={"test": data / "more"}, store=tmp_path / "store", device="cpu")
    assert result.counts["added"] == 3
    assert set(splits(tmp_path / "store").values()) == {"train", "val", "test"}

    def fail(*args, **options):
        raise AssertionError("nothing is to be embedded")

    monkeypatch.setattr("ood_audit.embedding.local.embed_images", fail)
    again = ood_audit.embed(data, splits=[("holdout", data / "val")], store=tmp_path / "store", device="cpu")
    assert +again.counts == {"relabelled": 1, "unchanged": 2}
    assert splits(tmp_path / "store")["val/2.jpg"] == "holdout"
    kept = ood_audit.embed(data, store=tmp_path / "store", device="cpu")  # it is not forgotten
    assert +kept.counts == {"unchanged": 3}
    assert kept.store.query("SELECT count(DISTINCT image_id), count(*) FROM images").rows == [(3, 3)]


def test_the_command_takes_splits_alone(tmp_path):
    lay(tmp_path, "a/1.jpg", "b/2.jpg")
    done = run_cli("embed", "--split", "train=a", "--split", "test=b", "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(splits(tmp_path / "store").items()) == [("1.jpg", "train"), ("2.jpg", "test")]
    for given, said in ((("--split", "train"), "NAME=SOURCE"), ((), "SOURCE")):
        failed = run_cli("embed", *given, "--store", "store", cwd=tmp_path)
        assert failed.returncode == 2
        assert said in failed.stderr


def test_a_source_holds_one_split(tmp_path):
    lay(tmp_path, "a/1.jpg")
    with pytest.raises(UsageError, match="train and as test"):
        ood_audit.embed([], splits=[("train", tmp_path / "a"), ("test", tmp_path / "a")], store=tmp_path / "store")
