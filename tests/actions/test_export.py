"""`export`: exact names, one list for each purpose, and never half of one."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import ood_audit
from ood_audit.actions import export as library
from ood_audit.actions.datasets.write import FORMATS
from ood_audit.commands import export as thin
from ood_audit.images.sources import file_uri
from tests.conftest import EXAMPLES, ROOT, run_cli
from tests.helpers.findings import write_findings

IMAGES = EXAMPLES / "images"
FOUND: dict[str, str | list[str]] = {
    "cup/img_0001.jpg": ["ood", "label"],
    "cup/img_0008.jpg": "covariate-shift",
    "chair/img_0005.jpg": "exact-duplicate",
    "chair/img_0008.jpg": "near-duplicate",
    "chair/img_9999.jpg": "unreadable",
}
HOSTILE = [
    b"caf\xe9.jpg",
    b"\xff\xfe.jpg",
    b"-rf.jpg",
    b'it\'s "x".jpg',
    b" blanks .jpg",
    b"100%41.jpg",
    b"=1+1.jpg",
    b"a,b.jpg",
    b"back\\slash.jpg",
    "日本.jpg".encode(),
]
BROKEN = [b"new\nline.jpg", b"carriage\rreturn.jpg"]


@pytest.fixture(scope="module")
def found(example_store, tmp_path_factory):
    """The example store with findings; read only."""
    store = Path(shutil.copytree(example_store, tmp_path_factory.mktemp("found") / "store"))
    write_findings(store, FOUND)
    return store


@pytest.fixture
def hostile(tmp_path, encoder, monkeypatch):
    """Pictures with hostile names, embedded: (folder, store). One more, airplane/a.jpg, has no finding."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in [b"a.jpg", *HOSTILE, *BROKEN]:
        shutil.copy(IMAGES / "cup" / "img_0001.jpg", os.path.join(folder, os.fsdecode(name)))
    ood_audit.embed(folder, store=tmp_path / "store", device="cpu")
    return folder, tmp_path / "store"


def exported(*arguments: object) -> bytes:
    """What the real command line writes, as bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "ood_audit", "export", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OOD_AUDIT_STORE": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (["--flagged"], ["cup/img_0001.jpg"]),
        (["--shifted"], ["cup/img_0008.jpg"]),
        (["--duplicates"], ["chair/img_0005.jpg", "chair/img_0008.jpg"]),
        (["--label-issues"], ["cup/img_0001.jpg"]),
        (["--kind", "ood", "--kind", "exact-duplicate"], ["cup/img_0001.jpg", "chair/img_0005.jpg"]),
        (["--flagged", "--shifted", "--duplicates", "--label-issues", "--unreadable"], list(FOUND)),
    ],
)
def test_paths_of_each_selection_the_worst_first(found, options, paths):
    done = run_cli("export", *options, "--store", found)
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(IMAGES / path) for path in paths])
    assert done.stderr == f"images found: {len(paths)}\n"


def test_keep_list_is_every_readable_image_but_those_found(found):
    done = run_cli("export", "--flagged", "--shifted", "--duplicates", "--format", "keep-list", "--store", found)
    gone = {str(IMAGES / path) for path in FOUND}
    assert done.stdout.splitlines() == sorted(str(p) for p in IMAGES.rglob("*.jpg") if str(p) not in gone)
    assert done.stderr == "images to keep: 77\n"  # of 82, without 4 found and 1 unreadable


def test_csv_has_a_row_a_finding(found):
    done = run_cli("export", "--flagged", "--shifted", "--label-issues", "--format", "csv", "--store", found)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["path"], row["kind"], row["severity"]) for row in rows] == [
        (str(IMAGES / "cup/img_0001.jpg"), "label", "0.9"),
        (str(IMAGES / "cup/img_0001.jpg"), "ood", "0.9"),
        (str(IMAGES / "cup/img_0008.jpg"), "covariate-shift", "0.899"),
    ]
    assert {(row["evidence"], row["suggestion"]) for row in rows[:1]} == {("It's label.", "a remedy")}
    assert [row["uri"] for row in rows] == [file_uri(row["path"]) for row in rows]
    assert done.stderr == "findings: 3\n"


def test_another_report(found, tmp_path):
    store = shutil.copytree(found, tmp_path / "store")
    write_findings(store, {"cup/img_0011.jpg": "ood"}, report="mine")
    done = run_cli("export", "--flagged", "--report", "mine", "--store", store)
    assert done.stdout == f"{IMAGES / 'cup/img_0011.jpg'}\n"
    done = run_cli("export", "--flagged", "--report", "yours", "--store", store)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no report yours with findings; there are: latest, mine\n"


def test_hostile_names_are_exact(hostile, tmp_path):
    folder, store = hostile
    every = [os.path.join(os.fsencode(folder), name) for name in [*HOSTILE, *BROKEN]]
    text = [path for (path,) in ood_audit.open_store(store).query("SELECT path FROM images").rows if path != "a.jpg"]
    write_findings(store, dict.fromkeys(text, "ood"))
    assert sorted(exported("--flagged", "--null", "--store", store).split(b"\0")) == sorted([b"", *every])
    for format in ("paths", "keep-list"):
        kind = "--flagged" if format == "paths" else "--label-issues"
        done = run_cli("export", kind, "--format", format, "--store", store, "--output", tmp_path / "list")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert f"2 of {len(every) + (format == 'keep-list')} names hold a line break, the first" in done.stderr
        assert "carriage\\rreturn.jpg: use --null" in done.stderr
        assert not [path for path in tmp_path.iterdir() if "list" in path.name]
    table = list(
        csv.DictReader(io.StringIO(exported("--flagged", "--format", "csv", "--store", store).decode(), newline=""))
    )
    assert sorted(row["uri"] for row in table) == sorted(file_uri(os.fsdecode(path)) for path in every)
    assert {f"{folder}/new\nline.jpg", f"{folder}/caf\\xe9.jpg", f"{folder}/=1+1.jpg"} <= {row["path"] for row in table}


def test_names_without_line_breaks_need_no_null(hostile):
    folder, store = hostile
    found = {"new\nline.jpg": "ood", "carriage\rreturn.jpg": "ood"}
    write_findings(store, found)  # so that the keep-list is without them
    lines = exported("--flagged", "--format", "keep-list", "--store", store).split(b"\n")
    assert sorted(lines) == sorted([b"", *(os.path.join(os.fsencode(folder), name) for name in [b"a.jpg", *HOSTILE])])


def test_a_keep_list_can_be_embedded(hostile, tmp_path):
    """The very same images: by name, also where the name is no text."""
    _, store = hostile
    write_findings(store, {"new\nline.jpg": "ood", "carriage\rreturn.jpg": "ood"})
    with (tmp_path / "keep.txt").open("wb") as out:
        assert library.export(store, out=out, kinds=["ood"], format="keep-list").lines == 1 + len(HOSTILE)
    ood_audit.embed(tmp_path / "keep.txt", store=tmp_path / "kept", device="cpu")
    sql = "SELECT image_id, content_hash FROM images WHERE status = 'ok'"
    kept, all_of_them = (set(ood_audit.open_store(path).query(sql).rows) for path in (tmp_path / "kept", store))
    assert kept < all_of_them
    assert len(kept) == 1 + len(HOSTILE)


def test_findings_about_what_has_changed_since_are_left_out(hostile):
    folder, store = hostile
    write_findings(store, {"a.jpg": "ood", "-rf.jpg": "ood", "a,b.jpg": "ood"})
    shutil.copy(IMAGES / "chair" / "img_0005.jpg", folder / "-rf.jpg")
    (folder / "a,b.jpg").unlink()
    ood_audit.embed(folder, store=store, device="cpu")
    done = run_cli("export", "--flagged", "--store", store)
    assert (done.returncode, done.stdout) == (0, f"{folder}/a.jpg\n")
    assert "images found: 1\n" in done.stderr
    assert "findings left out, as their image was changed or removed after the report: 2; run" in done.stderr
    ood_audit.embed(folder, store=store, device="cpu")
    assert run_cli("export", "--flagged", "--store", store).stdout == f"{folder}/a.jpg\n"


def test_output_is_written_in_one_piece(found, tmp_path, monkeypatch):
    target = tmp_path / "list.txt"
    target.write_text("old")
    done = run_cli("export", "--flagged", "--store", found, "--output", target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"images found: 1, in {target}\n")
    assert target.read_text().count("\n") == 1

    def dies(*arguments):
        yield (file_uri("/a"),)
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "_stream", dies)
    before = target.read_text()
    with pytest.raises(click.Abort):
        thin.command.main(["--flagged", "--store", str(found), "--output", str(target)], standalone_mode=False)
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "select findings: --flagged"),
        (["--format", "keep-list"], "select findings: --flagged"),
        (["--flagged", "--format", "csv", "--null"], "--null is for paths and keep-lists"),
        (["--flagged", "--output", "."], "--output . is not a regular file"),
        (["--flagged", "--output", "/dev/null"], "--output /dev/null is not a regular file"),
        (["--flagged", "--output", "nowhere/list"], "there is no such folder"),
        (["--kind", "dup"], "Invalid value for '--kind'"),
    ],
)
def test_wrong_usage_is_one_line(found, arguments, message):
    done = run_cli("export", *arguments, "--store", found, cwd=found)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert message in done.stderr


def test_without_findings_there_is_nothing_to_keep_or_to_drop(example_store):
    done = run_cli("export", "--flagged", "--format", "keep-list", "--store", example_store)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there are no findings to act on yet: run `ood-audit report`\n"


def test_a_selection_that_finds_nothing_keeps_all(found, tmp_path):
    store = shutil.copytree(found, tmp_path / "store")
    write_findings(store, {"cup/img_0001.jpg": "ood"})
    assert exported("--label-issues", "--store", store) == b""
    assert exported("--label-issues", "--format", "keep-list", "--store", store).count(b"\n") == 81


def test_a_reader_that_has_enough_is_no_error(found):
    command = f"{sys.executable} -m ood_audit export --unreadable --format keep-list --store '{found}' | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr.replace("images to keep: 81\n", "")) == (f"{IMAGES}/airplane/img_0001.jpg\n", "")


def test_the_command_offers_what_the_library_has():
    (option,) = [option for option in thin.command.params if option.name == "format"]
    assert isinstance(option.type, click.Choice)
    assert {*option.type.choices} == {*library.FORMATS, *FORMATS}
