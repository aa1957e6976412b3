"""Labelled images: registered, listed and removed by the command line, and used without any tuned prompts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.classes import labelled, prompts
from ood_audit.classes.labelled import Labelled, apart_from
from ood_audit.classes.vocabulary import Vocabulary, read_vocabulary
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke

CLASSES = EXAMPLES / "classes.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures of each of two classes."""
    root = tmp_path_factory.mktemp("own") / "labelled"
    for name in ("airplane", "sunflower"):
        (root / name).mkdir(parents=True)
        for source in sorted((EXAMPLES / "images" / name).glob("*.jpg"))[:3]:
            shutil.copy(source, root / name)
    return root


@pytest.fixture(scope="module")
def registered(example_store, folder, tmp_path_factory):
    """A store with these registered. Read only: copy it to change it."""
    store = Path(shutil.copytree(example_store, tmp_path_factory.mktemp("registered") / "store"))
    done = invoke("labels", "add", folder, "--store", store)
    assert done.returncode == 0, done.stderr
    assert f"registered 6 labelled images of 2 classes from {folder}" in done.stderr
    (row,) = json.loads(invoke("labels", "list", "--store", store, "--format", "json").stdout)
    assert (row["source"], row["kind"], row["images"], row["classes"]) == (str(folder), "folder", 6, 2)
    return store


@pytest.fixture
def store(registered, tmp_path):
    return Path(shutil.copytree(registered, tmp_path / "store"))


def loaded(store, classes=CLASSES):
    vocabulary = classes if isinstance(classes, Vocabulary) else read_vocabulary(classes)
    notes: list[str] = []
    return labelled.load(ood_audit.open_store(store), vocabulary, notes.append), notes


def test_registered_images_are_found_again(store, folder):
    own, notes = loaded(store)
    names = read_vocabulary(CLASSES).names
    assert sorted(names[k] for k in own.labels) == ["airplane"] * 3 + ["sunflower"] * 3
    assert own.held_out.tolist() == list(range(6))
    np.testing.assert_allclose(np.linalg.norm(own.features, axis=1), 1, atol=1e-6)
    # They are under audit as well, so that none is to be its own reference.
    paths = dict(ood_audit.open_store(store).query("SELECT image_id, path FROM images").rows)
    assert sorted(paths[i] for i in own.image_ids) == sorted(
        path.relative_to(folder).as_posix() for path in folder.glob("*/*")
    )
    assert notes == []


def test_a_report_flags_by_registered_images_alone(store):
    done = invoke("report", "--store", store, "--labels", CLASSES, "--no-auto", "--false-alarms", "0.2", "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "at a false alarm rate of 0.2, by 6 labelled images" in done.stderr
    assert not list((store / "prompts").glob("*"))
    opened = ood_audit.open_store(store)
    assert opened.query("SELECT count(p_value) FROM report").rows == [(81,)]
    assert opened.query("SELECT count(distance) FROM scores").rows == [(81,)]  # to the class prototypes


def test_scores_are_made_anew_when_images_are_registered_or_removed(store, folder):
    first = ood_audit.score(store, labels=CLASSES, settings=ScoreSettings(auto=False))
    assert ood_audit.score(store, labels=CLASSES, settings=ScoreSettings(auto=False)).reused
    assert invoke("labels", "remove", folder, "--store", store).returncode == 0
    second = ood_audit.score(store, labels=CLASSES, settings=ScoreSettings(auto=False))
    assert not second.reused
    assert second.path != first.path
    assert not any((store / "labelled").iterdir())
    assert folder.is_dir()  # the files are left alone
    again = invoke("labels", "remove", folder, "--store", store)
    assert again.returncode == 2
    assert "registered are: none yet" in again.stderr


def test_a_file_labels_images_of_the_store(store, folder, tmp_path):
    name = sorted((folder / "airplane").iterdir())[0].name
    (tmp_path / "own.csv").write_text(f"path,label\nchair/img_0027.jpg,chair\nairplane/{name},chair\n")
    done = invoke("labels", "add", tmp_path / "own.csv", "--store", store)
    assert done.returncode == 0, done.stderr
    listed = json.loads(invoke("labels", "list", "--store", store, "--format", "json").stdout)
    assert [(row["kind"], row["images"]) for row in listed] == [("folder", 6), ("file", 2)]
    own, _ = loaded(store)
    counts = np.bincount(own.labels, minlength=8)
    names = read_vocabulary(CLASSES).names
    # The picture of an airplane has the label that it was given last, and is one image.
    assert {names[k]: int(n) for k, n in enumerate(counts) if n} == {"airplane": 2, "sunflower": 3, "chair": 2}


def test_classes_that_the_vocabulary_lacks_are_left_out_and_told(store):
    own, notes = loaded(store, Vocabulary((("airplanes",), ("sunflower",))))
    assert own.labels.tolist() == [1, 1, 1]
    assert notes == [
        "warning: 3 labelled images are left out, as the vocabulary lacks their classes: airplane; 'airplane' is close "
        "to 'airplanes'"
    ]
    assert loaded(store, Vocabulary((("cat",),)))[0] is None


def test_to_register_again_replaces(store, folder, tmp_path):
    changed = Path(shutil.copytree(folder, tmp_path / "labelled"))
    assert invoke("labels", "add", changed, "--store", store).returncode == 0
    shutil.rmtree(changed / "sunflower")
    assert invoke("labels", "add", changed, "--store", store).returncode == 0
    assert [own.images for own in labelled.registered(ood_audit.open_store(store))] == [6, 3]


def test_tune_takes_registered_images_and_registers_what_it_is_given(store, folder):
    quick = ("--store", store, "--labels", CLASSES, "--epochs", "1", "--no-prototypes")
    done = invoke("tune", *quick, "--name", "own")
    assert done.returncode == 0, done.stderr
    assert "from 6 labelled images of 2 classes" in done.stderr
    assert invoke("labels", "remove", folder, "--store", store).returncode == 0
    again = invoke("tune", *quick, "--name", "given", "--from", folder)
    assert again.returncode == 0, again.stderr
    assert [own.images for own in labelled.registered(ood_audit.open_store(store))] == [6]
    opened = ood_audit.open_store(store)
    found = prompts.choose(opened, read_vocabulary(CLASSES), "given")
    assert found is not None
    # What the prompts were trained on does not calibrate them.
    own, _ = loaded(store)
    assert len(apart_from(own, found.labelled).held_out) == len(found.labelled.held_out) < 6


def test_what_prompts_were_trained_on_is_not_held_out():
    features = np.eye(4, dtype=np.float32)
    registered = Labelled(features, np.arange(4), [""] * 4, np.arange(4))
    rounded = features[[2, 0]] + np.float32(1e-4)
    trained = Labelled(rounded, np.array([2, 0]), ["", ""], np.array([1]))
    assert apart_from(registered, trained).held_out.tolist() == [0, 1, 3]
    assert apart_from(registered, Labelled(rounded, np.array([2, 0]), ["", ""], np.arange(2))) is registered


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no folder or file of labelled images"),
        ("path,label\nno/such.jpg,cat\n", "name 1 image that the store has no features of"),
        ("path\nchair/img_0027.jpg\n", "missing: label"),
        ("path,label\nchair/img_0027.jpg,a\nchair/img_0027.jpg,b\n", "'a' in line 2 and 'b' in line 3"),
    ],
)
def test_what_cannot_be_registered(example_store, tmp_path, content, complaint):
    source = tmp_path / "own.csv"
    if content is not None:
        source.write_text(content)
    done = invoke("labels", "add", source, "--store", example_store)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_pictures_outside_of_class_folders_are_refused(store, folder, tmp_path):
    shutil.copy(next((folder / "airplane").iterdir()), tmp_path / "loose.jpg")
    (tmp_path / "pictures").mkdir()
    shutil.move(tmp_path / "loose.jpg", tmp_path / "pictures")
    done = invoke("labels", "add", tmp_path / "pictures", "--store", store)
    assert done.returncode == 2
    assert "holds 1 images outside of any folder" in done.stderr


def test_damaged_files_are_named(store):
    (path,) = (store / "labelled").glob("*.parquet")
    path.write_bytes(b"PAR1")
    done = invoke("report", "--store", store, "--labels", CLASSES, "--no-auto")
    assert done.returncode == 1
    assert f"{path.name} is damaged; register the images again" in done.stderr
    (recipe,) = (store / "labelled").glob("*.json")
    recipe.write_text("{}")
    assert "is damaged; delete it" in invoke("labels", "list", "--store", store).stderr
