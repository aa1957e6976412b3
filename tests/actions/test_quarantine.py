"""`quarantine`: whatever happens, each file is in one place, whole, and every one can be put back."""

import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import pytest

import ood_audit
from ood_audit.actions import moving
from ood_audit.actions import quarantine as library
from ood_audit.actions.quarantine import JOURNAL, quarantine, restore
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings import records
from ood_audit.images.sources import file_uri
from ood_audit.store import findings
from tests.conftest import EXAMPLES, ROOT, run_cli
from tests.helpers.findings import write_findings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
IMAGES = EXAMPLES / "images"
ONE, TWO, THREE = (f"airplane/img_000{i}.jpg" for i in (1, 2, 3))


@pytest.fixture
def audited(pictures, tmp_path, encoder, monkeypatch):
    """Six pictures, embedded: (folder, store, where a quarantine may be)."""
    warm(encoder, monkeypatch)
    ood_audit.embed(pictures, store=tmp_path / "store", device="cpu")
    return pictures, tmp_path / "store", tmp_path / "aside"


def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


def tree(folder: Path) -> dict[str, tuple[bytes | str, int]]:
    """Content and time of every file below a folder, and where each link points to."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for at, folders, names in os.walk(folder):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(at, name)))]:
            path = os.path.join(at, name)
            link = os.path.islink(path)
            with open(os.devnull if link else path, "rb") as file:
                content = os.readlink(path) if link else file.read()
            found[os.path.relpath(path, folder)] = content, os.lstat(path).st_mtime_ns
    return found


def contents(*folders: Path) -> Counter[bytes | str]:
    """The contents of all files but a quarantine's own."""
    return Counter(
        content
        for folder in folders
        for name, (content, _) in tree(folder).items()
        if name not in (JOURNAL, "quarantine.lock")
    )


def run(*arguments: object) -> tuple[int, list[dict[str, str]], list[str]]:
    """Exit code, rows and stderr lines of the real command line."""
    done = run_cli("quarantine", *arguments, "--format", "json")
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout or "[]"), done.stderr.splitlines()


def outcomes(result: library.Result) -> dict[str, str]:
    return {os.path.basename(row.path): row.outcome for row in result.outcomes}


def reasons(result: library.Result) -> str:
    return "; ".join(row.reason for row in result.outcomes)


# The commands


def test_there_and_back(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: ["ood", "label"], TWO: "ood", "sunflower/img_0002.jpg": "exact-duplicate"})
    before = tree(folder)
    dry = run(aside, "--flagged", "--store", store, "--dry-run")
    assert dry[0] == 0
    assert dry[2][0] == "images selected: 2 (2 would-move)"
    assert (tree(folder), aside.exists()) == (before, False)

    code, rows, said = run(aside, "--flagged", "--store", store)
    assert (code, said[0]) == (0, "images selected: 2 (2 moved)")
    assert [{**row, "outcome": "would-move"} for row in rows] == dry[1]
    assert [row["path"] for row in rows] == [str(folder / ONE), str(folder / TWO)]
    assert [row["to"] for row in rows] == [str(aside / "pictures" / ONE), str(aside / "pictures" / TWO)]
    assert [row["kinds"] for row in rows] == ["ood", "ood"]
    for row in rows:
        assert (Path(row["to"]).read_bytes(), os.stat(row["to"]).st_mtime_ns) == before[
            os.path.relpath(row["path"], folder)
        ]
    assert set(tree(folder)) == set(before) - {ONE, TWO}

    code, rows, said = run(aside, "--flagged", "--duplicates", "--store", store)  # once more, and one more
    assert (code, said[0]) == (0, "images selected: 3 (2 already-there, 1 moved)")

    code, rows, said = run(aside, "--undo", "--dry-run")
    assert (code, said[0]) == (0, "images in the quarantine: 3 (3 would-restore)")
    assert len(tree(folder)) == 3
    code, rows, said = run(aside, "--undo")
    assert (code, said) == (0, ["images in the quarantine: 3 (3 restored)"])
    assert tree(folder) == before
    assert sorted(path.name for path in aside.iterdir()) in ([JOURNAL], [JOURNAL, "quarantine.lock"])
    assert run(aside, "--undo") == (0, [], ["images in the quarantine: 0"])
    again = ood_audit.embed(folder, store=store, device="cpu")
    assert dict(+again.counts) == {"unchanged": 6}


def test_formats(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    answers = {
        f: run_cli("quarantine", aside, "--flagged", "--dry-run", "--store", store, "--format", f).stdout
        for f in ("table", "csv", "jsonl")
    }
    assert answers["table"].splitlines()[0].split() == ["outcome", "path", "to", "kinds", "reason"]
    (row,) = csv.DictReader(io.StringIO(answers["csv"]))
    assert row == json.loads(answers["jsonl"])
    assert row == {
        "outcome": "would-move",
        "path": str(folder / ONE),
        "to": str(aside / "pictures" / ONE),
        "kinds": "ood",
        "reason": "",
        "uri": file_uri(str(folder / ONE)),
    }


def test_what_is_left_is_said_and_fails(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood", TWO: "ood"})
    (folder / TWO).write_bytes((folder / TWO).read_bytes() + b"x")
    code, rows, said = run(aside, "--flagged", "--store", store)
    assert code == 1
    assert {row["path"]: row["outcome"] for row in rows} == {str(folder / ONE): "moved", str(folder / TWO): "left"}
    assert "changed since it was embedded" in rows[1]["reason"]
    assert said[0] == "images selected: 2 (1 left, 1 moved)"
    assert said[-1] == "error: left where they are: 1 of 2 images, for the reasons above"
    (folder / ONE).write_bytes(b"new")
    code, rows, said = run(aside, "--undo")
    assert (code, [row["outcome"] for row in rows]) == (1, ["left"])
    assert said[0] == "images in the quarantine: 1 (1 left)"
    assert (folder / ONE).read_bytes() == b"new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q"], "select findings: --flagged"),
        (["q", "--undo", "--flagged"], "leave out the options"),
        (["q", "--undo", "--report", "latest"], "leave out the options"),
        (["q", "--undo"], "q is not a quarantine: it has no quarantine.jsonl"),
        (["pictures/aside", "--flagged"], "pictures, where `ood-audit embed` would find the images again"),
        (["pictures", "--flagged"], "pictures, where `ood-audit embed` would find the images again"),
        ([".", "--flagged"], "contains the embedded"),
        (["store/aside", "--flagged"], "is inside the store"),
        (["file", "--flagged"], "file is a file"),
        (["link", "--flagged"], "pictures, where `ood-audit embed` would find the images again"),
    ],
)
def test_wrong_usage_is_one_line_and_changes_nothing(audited, tmp_path, arguments, message):
    _folder, store, _aside = audited
    write_findings(store, {ONE: "ood"})
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("pictures")
    before = tree(tmp_path)
    done = run_cli("quarantine", *arguments, "--store", store, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert message in done.stderr
    assert tree(tmp_path) == before


def test_a_hidden_folder_in_the_source_is_fine(audited):
    folder, store, _ = audited
    write_findings(store, {ONE: "ood"})
    assert outcomes(quarantine(folder / ".aside" / "first", store, kinds=["ood"])) == {"img_0001.jpg": "moved"}
    again = ood_audit.embed(folder, store=store, device="cpu")
    assert dict(+again.counts) == {"unchanged": 5, "removed": 1}


def test_nothing_found_makes_no_folder(audited):
    _folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    assert quarantine(aside, store, kinds=["label"]).outcomes == []
    assert not aside.exists()


# Names


def test_hostile_names(tmp_path, encoder, monkeypatch):
    warm(encoder, monkeypatch)
    folder, store, aside = tmp_path / "in", tmp_path / "store", tmp_path / "it's \n aside"
    names = [
        *("new\nline.jpg", "carriage\rreturn.jpg", 'it\'s "x".jpg', "-rf.jpg", "--undo", " blanks .jpg", "a/b c/-.jpg"),
        *(
            "100%41.jpg",
            "%2e%2e%2f.jpg",
            "back\\slash.jpg",
            "=1+1.jpg",
            "日本.jpg",
            "x" * 251 + ".jpg",
            JOURNAL + ".jpg",
        ),
        *(os.fsdecode(raw) for raw in (b"caf\xe9.jpg", b"\xff\xfe\n/\xe9.jpg")),
    ]
    for name in names:
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        shutil.copy(IMAGES / "cup" / "img_0001.jpg", os.path.join(folder, name))
    before = tree(folder)
    ood_audit.embed(folder, store=store, device="cpu")
    found = [path for (path,) in ood_audit.open_store(store).query("SELECT path FROM images").rows]
    write_findings(store, dict.fromkeys(found, "ood"))
    result = quarantine(aside, store, kinds=["ood"])
    assert result.counts == {"moved": len(names)}, reasons(result)
    assert tree(aside / "in") == before  # name by name, byte by byte
    assert {row.uri for row in result.outcomes} == {file_uri(os.path.join(folder, name)) for name in names}
    assert all(json.loads(line) for line in (aside / JOURNAL).read_bytes().splitlines())
    done = run_cli("quarantine", aside, "--undo")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(names) + 2
    assert all(line.isprintable() for line in [*done.stdout.splitlines(), *done.stderr.splitlines()])
    assert tree(folder) == before


def test_same_names_in_two_sources_stay_apart(tmp_path, encoder, monkeypatch):
    """Also below folders of the same name, and beside what has nothing to do with it."""
    warm(encoder, monkeypatch)
    aside, store = tmp_path / "aside", tmp_path / "store"
    sources = [tmp_path / "a" / "train", tmp_path / "b" / "train", tmp_path / "c" / "train"]
    for number, source in enumerate(sources, start=1):
        (source / "cup").mkdir(parents=True)
        shutil.copy(IMAGES / "airplane" / f"img_000{number}.jpg", source / "cup" / f"{max(number, 2)}.jpg")
    before = tree(tmp_path / "a"), tree(tmp_path / "b"), tree(tmp_path / "c")
    ood_audit.embed(sources, store=store, device="cpu")
    opened = ood_audit.open_store(store)
    sql = "SELECT image_id, uri, path FROM images"
    rows = [findings.Finding(i, uri, path, "ood", 0.5, "", "", "latest") for i, uri, path in opened.query(sql).rows]
    records.write(opened.reports / "latest" / findings.FILE, rows, generation=opened.generation)
    (aside / "train").mkdir(parents=True)
    (aside / "train" / "cup").symlink_to(tmp_path)  # would lead out of the quarantine
    (aside / "train-2").write_text("mine")
    dry = quarantine(aside, store, kinds=["ood"], dry_run=True)
    result = quarantine(aside, store, kinds=["ood"])
    assert [row.to for row in dry.outcomes] == [row.to for row in result.outcomes]
    assert [os.path.relpath(row.to, aside) for row in result.outcomes] == [
        *("train-3/cup/2.jpg", "train-4/cup/2.jpg", "train-5/cup/3.jpg")
    ]
    assert (aside / "train-2").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert restore(aside).counts == {"restored": 3}
    assert (tree(tmp_path / "a"), tree(tmp_path / "b"), tree(tmp_path / "c")) == before


def test_images_of_lists_and_of_their_own(tmp_path, pictures, encoder, monkeypatch):
    """Sources that are no folders: a list with paths beside it and elsewhere, and a single file."""
    warm(encoder, monkeypatch)
    (tmp_path / "lists").mkdir()
    shutil.copy(pictures / ONE, tmp_path / "lists" / "near.jpg")
    shutil.copy(pictures / ONE, tmp_path / "single.jpg")
    (tmp_path / "lists" / "all.txt").write_text(f"near.jpg\n{pictures / TWO}\n")
    store, aside = tmp_path / "store", tmp_path / "aside"
    ood_audit.embed([tmp_path / "lists" / "all.txt", tmp_path / "single.jpg"], store=store, device="cpu")
    write_findings(store, dict.fromkeys(["near.jpg", str(pictures / TWO), "single.jpg"], "ood"))
    before = tree(tmp_path / "lists"), tree(pictures), (tmp_path / "single.jpg").read_bytes()
    result = quarantine(aside, store, kinds=["ood"])
    assert sorted(os.path.relpath(row.to, aside) for row in result.outcomes) == sorted(
        ["lists/near.jpg", f"{tmp_path.name}/single.jpg", "root" + str(pictures / TWO)]
    )
    assert restore(aside).counts == {"restored": 3}
    assert before == (tree(tmp_path / "lists"), tree(pictures), (tmp_path / "single.jpg").read_bytes())


# What is left alone


def test_a_file_that_is_not_as_it_was_is_left(audited):
    folder, store, aside = audited
    paths = [path for (path,) in ood_audit.open_store(store).query("SELECT path FROM images ORDER BY path").rows]
    write_findings(store, dict.fromkeys(paths, "ood"))
    touched, same_size, longer, gone, folder_now, fine = (folder / path for path in paths)
    os.utime(touched, ns=(1, 1))
    info = same_size.stat()
    same_size.write_bytes(same_size.read_bytes()[:-1] + b"?")
    os.utime(same_size, ns=(info.st_atime_ns, info.st_mtime_ns))
    longer.write_bytes(longer.read_bytes() + b"?")
    gone.unlink()
    folder_now.unlink()
    folder_now.mkdir()
    before = contents(folder)
    for dry_run in (True, False):
        result = quarantine(aside, store, kinds=["ood"], dry_run=dry_run)
        assert [row.outcome for row in result.outcomes] == ["left"] * 5 + ["would-move" if dry_run else "moved"]
        assert [row.reason.partition(";")[0] for row in result.outcomes] == [
            *["it changed since it was embedded"] * 3,
            "no such file any more",
            "not a regular file",
            "",
        ]
    assert contents(folder, aside) == before
    assert not fine.exists()


def test_unreadable_images(tmp_path, encoder, monkeypatch):
    """Empty ones, broken ones, links to nothing; but not what can be read by now."""
    warm(encoder, monkeypatch)
    folder, store, aside = tmp_path / "in", tmp_path / "store", tmp_path / "aside"
    folder.mkdir()
    shutil.copy(IMAGES / ONE, folder / "fine.jpg")
    (folder / "empty.jpg").touch()
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "filled.jpg").symlink_to("later")
    ood_audit.embed(folder, store=store, device="cpu")
    names = ["empty.jpg", "broken.jpg", "dangling.jpg", "filled.jpg"]
    write_findings(store, dict.fromkeys(names, "unreadable"))
    (folder / "later").write_bytes(b"x")
    before = tree(folder)
    result = quarantine(aside, store, kinds=["unreadable"])
    assert outcomes(result) == {**dict.fromkeys(names, "moved"), "filled.jpg": "left"}
    assert os.readlink(aside / "in" / "dangling.jpg") == "nowhere"
    assert restore(aside).counts == {"restored": 3}
    assert tree(folder) == before


def test_links_are_moved_and_not_what_they_point_to(tmp_path, encoder, monkeypatch):
    warm(encoder, monkeypatch)
    folder, store, aside = tmp_path / "in", tmp_path / "store", tmp_path / "aside"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    shutil.copy(IMAGES / ONE, tmp_path / "elsewhere" / "real.jpg")
    shutil.copy(IMAGES / TWO, folder / "fine.jpg")
    (folder / "a_link.jpg").symlink_to("../elsewhere/real.jpg")
    ood_audit.embed(folder, store=store, device="cpu")
    write_findings(store, {"a_link.jpg": "ood"})
    before = tree(folder)
    assert outcomes(quarantine(aside, store, kinds=["ood"])) == {"a_link.jpg": "moved"}
    assert (tmp_path / "elsewhere" / "real.jpg").read_bytes() == (IMAGES / ONE).read_bytes()
    assert os.readlink(aside / "in" / "a_link.jpg") == "../elsewhere/real.jpg"
    assert restore(aside).counts == {"restored": 1}
    assert tree(folder) == before


@pytest.mark.parametrize("by", ["a link", "a linked folder"])
def test_the_only_file_behind_two_names_is_no_duplicate(tmp_path, encoder, monkeypatch, by):
    """To move the "copy" would take the one to keep away."""
    warm(encoder, monkeypatch)
    real, other, store, aside = tmp_path / "real", tmp_path / "z", tmp_path / "store", tmp_path / "aside"
    real.mkdir()
    other.mkdir()
    shutil.copy(IMAGES / ONE, real / "one.jpg")
    shutil.copy(IMAGES / TWO, other / "two.jpg")
    if by == "a link":
        (other / "same.jpg").symlink_to(real / "one.jpg")
    else:
        (other / "same").symlink_to(real)
    ood_audit.embed([real, other], store=store, device="cpu")
    alias = "same.jpg" if by == "a link" else "same/one.jpg"
    write_findings(store, {"one.jpg": "exact-duplicate"})
    result = quarantine(aside, store, kinds=["exact-duplicate"])
    assert (outcomes(result), f"{other / alias}, is the same file by a link" in reasons(result)) == (
        {"one.jpg": "left"},
        True,
    )
    write_findings(store, {"one.jpg": "ood", alias: "ood"})  # both of them, each for itself: once
    result = quarantine(aside, store, kinds=["ood"])
    assert sorted(row.outcome for row in result.outcomes) == (
        ["moved", "moved"] if by == "a link" else ["left", "moved"]
    )
    assert restore(aside).counts["left"] == 0
    assert (other / alias).read_bytes() == (real / "one.jpg").read_bytes() == (IMAGES / ONE).read_bytes()


def test_hard_links_are_copies_like_others(audited):
    folder, store, aside = audited
    os.link(folder / ONE, folder / "again.jpg")
    ood_audit.embed(folder, store=store, device="cpu")
    write_findings(store, {"again.jpg": "exact-duplicate"})
    assert quarantine(aside, store, kinds=["exact-duplicate"]).counts == {"moved": 1}
    assert (folder / ONE).read_bytes() == (aside / "pictures" / "again.jpg").read_bytes()


def test_findings_older_than_the_image_are_passed_over(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    shutil.copy(IMAGES / "cup" / "img_0001.jpg", folder / ONE)
    ood_audit.embed(folder, store=store, device="cpu")
    result = quarantine(aside, store, kinds=["ood"])
    assert (result.outcomes, result.outdated) == ([], 1)
    assert (folder / ONE).exists()


# Places that are taken


def test_nothing_is_overwritten_in_the_quarantine(audited):
    _folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    (aside / "pictures" / "airplane").mkdir(parents=True)
    (aside / "pictures" / ONE).write_bytes(b"somebody's")
    (result,) = quarantine(aside, store, kinds=["ood"]).outcomes
    assert (result.outcome, result.to) == ("moved", str(aside / "pictures-2" / ONE))
    assert (aside / "pictures" / ONE).read_bytes() == b"somebody's"


def test_nothing_is_overwritten_on_the_way_back(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood", TWO: "ood"})
    before = tree(folder)
    quarantine(aside, store, kinds=["ood"])
    for occupy in (Path.mkdir, lambda path: path.write_bytes(b"new"), lambda path: path.symlink_to("nowhere")):
        occupy(folder / ONE)
        there = {name: file for name, file in tree(folder).items() if name != TWO}
        assert outcomes(restore(aside, dry_run=True))["img_0001.jpg"] == "left"
        result = restore(aside)
        assert outcomes(result)["img_0001.jpg"] == "left"
        assert "another file has its place" in reasons(result)
        assert {name: file for name, file in tree(folder).items() if name != TWO} == there
        assert (aside / "pictures" / ONE).exists()
        shutil.rmtree(folder / ONE) if (folder / ONE).is_dir() else (folder / ONE).unlink()
    shutil.rmtree(folder / "airplane")  # and with no folder to go to, that is made
    (folder / "airplane").write_bytes(b"a file")
    assert restore(aside).counts == {"left": 1}
    (folder / "airplane").unlink()
    assert restore(aside).counts == {"restored": 1}
    assert tree(folder)[ONE] == before[ONE]


def test_a_name_taken_at_the_last_moment(audited, monkeypatch):
    """Between the look and the move: the system refuses, and the file stays."""
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})

    def move(source, target, temporary):
        os.makedirs(os.path.dirname(target))
        Path(target).write_bytes(b"quicker")
        moving.move(source, target, temporary)

    monkeypatch.setattr(library, "move", move)
    result = quarantine(aside, store, kinds=["ood"])
    assert (outcomes(result), reasons(result)) == ({"img_0001.jpg": "left"}, "another file has its place")
    assert (folder / ONE).exists()
    assert (aside / "pictures" / ONE).read_bytes() == b"quicker"


def test_the_same_name_again_and_again(audited):
    """A picture that comes back is another one: each is kept, and the place goes to the last."""
    folder, store, aside = audited
    original = (folder / ONE).read_bytes()
    pictures = [original, *((IMAGES / "cup" / f"img_00{i}.jpg").read_bytes() for i in ("08", "11"))]
    for picture in pictures:
        (folder / ONE).write_bytes(picture)
        ood_audit.embed(folder, store=store, device="cpu")
        write_findings(store, {ONE: "ood"})
        assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 1}
    assert contents(aside) == Counter(pictures)
    assert restore(aside).counts == {"restored": 1, "left": 2}
    assert (folder / ONE).read_bytes() == pictures[-1]
    (folder / ONE).unlink()
    assert restore(aside).counts == {"restored": 1, "left": 1}
    assert (folder / ONE).read_bytes() == pictures[-2]


def test_what_is_missing_in_the_quarantine_is_named(audited):
    _folder, store, aside = audited
    write_findings(store, {ONE: "ood", TWO: "ood"})
    quarantine(aside, store, kinds=["ood"])
    (aside / "pictures" / ONE).unlink()
    result = restore(aside)
    assert outcomes(result) == {"img_0001.jpg": "left", "img_0002.jpg": "restored"}
    assert "it is not in the quarantine any more" in reasons(result)


def test_a_quarantine_can_be_moved_as_a_whole(audited, tmp_path):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    before = tree(folder)
    quarantine(aside, store, kinds=["ood"])
    aside.rename(tmp_path / "other")
    assert restore(tmp_path / "other").counts == {"restored": 1}
    assert tree(folder) == before


# Disks


class System:
    """`os` for the modules that move, some of whose calls fail or kill."""

    STEPS = ("link", "unlink", "rename", "symlink", "mkdir", "rmdir", "fsync", "truncate")

    def __init__(self, monkeypatch, *, failing=(), error=errno.EXDEV, die_at=None, after=False, instead=None):
        self.instead = instead or {}
        self.failing, self.error, self.die_at, self.after = failing, error, die_at, after
        self.steps = 0
        self.dead = False
        for module in (moving, library):
            monkeypatch.setattr(module, "os", self)
            monkeypatch.setattr(module, "flush", self.step(lambda path: None))
        monkeypatch.setattr(moving, "open", self.step(open), raising=False)

    def __getattr__(self, name):
        call = self.instead.get(name) or getattr(os, name)
        if name in self.failing:
            return self.fail(call)
        return self.step(call) if name in self.STEPS else call

    def step(self, call):
        def counted(*arguments, **options):
            if self.dead:
                raise Killed
            self.steps += 1
            if self.steps == self.die_at:
                self.dead = True
                if self.after:
                    call(*arguments, **options)
                raise Killed
            return call(*arguments, **options)

        return counted

    def fail(self, call):
        def failing(source, *arguments, **options):
            if ".ood-audit-" in os.fspath(source):  # within the other file system
                return self.step(call)(source, *arguments, **options)
            raise OSError(self.error, os.strerror(self.error), source)

        return failing


class Killed(BaseException):
    """As by a signal: nobody catches it."""


def test_across_file_systems(audited, monkeypatch):
    folder, store, aside = audited
    (folder / "airplane" / "a_link.jpg").symlink_to("img_0001.jpg")
    os.chmod(folder / ONE, 0o640)
    ood_audit.embed(folder, store=store, device="cpu")
    write_findings(store, {ONE: "ood", TWO: "ood", "airplane/a_link.jpg": "ood"})
    before, mode = tree(folder), (folder / ONE).stat().st_mode
    with monkeypatch.context() as patch:
        System(patch, failing=("link", "rename"))
        result = quarantine(aside, store, kinds=["ood"])
        assert result.counts == {"moved": 3}, reasons(result)
        assert contents(folder, aside) == Counter(content for content, _ in before.values())
        assert (aside / "pictures" / ONE).stat().st_mode == mode
        assert os.readlink(aside / "pictures/airplane/a_link.jpg") == "img_0001.jpg"
        assert restore(aside).counts == {"restored": 3}
    link = "airplane/a_link.jpg"
    assert {name: file for name, file in tree(folder).items() if name != link} == {
        name: file for name, file in before.items() if name != link
    }
    assert os.readlink(folder / link) == "img_0001.jpg"
    assert (folder / ONE).stat().st_mode == mode
    assert not list(aside.rglob("*.tmp"))


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_a_real_second_file_system(audited, tmp_path):
    import tempfile

    folder, store, _ = audited
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        if os.stat(name).st_dev == os.stat(folder).st_dev:
            pytest.skip("the same file system")
        write_findings(store, {ONE: "ood", TWO: "ood"})
        before = tree(folder)
        assert quarantine(name, store, kinds=["ood"]).counts == {"moved": 2}
        assert contents(folder, Path(name)) == Counter(content for content, _ in before.values())
        assert restore(name).counts == {"restored": 2}
        assert tree(folder) == before


def test_a_copy_that_is_not_the_same_is_thrown_away(audited, monkeypatch):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    before = tree(folder)
    System(monkeypatch, failing=("link", "rename"))
    monkeypatch.setattr(moving, "content_hash", lambda path: "another")
    result = quarantine(aside, store, kinds=["ood"])
    assert (outcomes(result), reasons(result)) == ({"img_0001.jpg": "left"}, "the copy differs from it")
    assert tree(folder) == before
    assert contents(aside) == Counter()


def test_without_hard_links(audited, monkeypatch):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    before = tree(folder)
    System(monkeypatch, failing=("link",), error=errno.EPERM)
    assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 1}
    assert restore(aside).counts == {"restored": 1}
    assert tree(folder) == before
    with pytest.raises(FileExistsError):
        moving.move(str(folder / ONE), str(folder / TWO), str(folder / ".ood-audit-x.tmp"))
    assert tree(folder) == before


def test_a_file_that_cannot_be_removed_stays(audited, monkeypatch):
    """As in a folder that can be read only: not in two places."""
    folder, store, aside = audited
    write_findings(store, {ONE: "ood", TWO: "ood"})
    before = tree(folder)
    unlink = os.unlink

    def refuse(path):
        if os.fspath(path) == str(folder / ONE):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        unlink(path)

    for failing in ((), ("link", "rename")):
        with monkeypatch.context() as patch:
            System(patch, failing=failing, instead={"unlink": refuse})
            result = quarantine(aside, store, kinds=["ood"])
        assert outcomes(result) == {"img_0001.jpg": "left", "img_0002.jpg": "moved"}
        assert "permission denied" in reasons(result)
        assert contents(folder, aside) == Counter(content for content, _ in before.values())
        assert restore(aside).counts == {"restored": 1}
        assert tree(folder) == before


def test_a_full_disk_stops_before_the_move(audited, monkeypatch):
    """What can't be written down is not begun."""
    folder, store, aside = audited
    write_findings(store, {ONE: "ood", TWO: "ood"})
    before = tree(folder)
    with monkeypatch.context() as patch:
        System(patch, instead={"fsync": full})
        with pytest.raises(OodAuditError, match="no space left on device; finished work is kept"):
            quarantine(aside, store, kinds=["ood"])
    assert tree(folder) == before
    assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 2}


def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_replaced_while_it_is_moved_is_not_lost(audited, monkeypatch):
    """An editor saves by renaming: what has the old name then is another file."""
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})

    def saved(path):
        if (folder / ONE).stat().st_nlink > 1:
            (folder / "new").write_bytes(b"saved")
            (folder / "new").rename(folder / ONE)

    monkeypatch.setattr(moving, "flush", saved)
    assert "it changed while it was moved" in reasons(quarantine(aside, store, kinds=["ood"]))
    assert (folder / ONE).read_bytes() == b"saved"


# Interruptions


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("failing", [(), ("link", "rename")], ids=["one file system", "two"])
def test_killed_at_every_step(audited, tmp_path, monkeypatch, failing, after):
    """Before and after each call that changes anything: on the way there and back, then gone on with, or undone."""
    folder, store, _ = audited
    (folder / "airplane" / "a_link.jpg").symlink_to("img_0001.jpg")
    ood_audit.embed(folder, store=store, device="cpu")
    write_findings(store, {ONE: "ood", "airplane/a_link.jpg": "ood"})
    before = {name: content for name, (content, _) in tree(folder).items()}
    everything = Counter(before.values())
    steps = {"there": 0, "back": 0}
    for way in steps:
        for die_at in range(1, 200):
            aside = tmp_path / f"aside-{way}-{die_at}"
            if way == "back":
                assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 2}
            with monkeypatch.context() as patch:
                system = System(patch, failing=failing, die_at=die_at, after=after)
                with suppress(Killed):
                    restore(aside) if way == "back" else quarantine(aside, store, kinds=["ood"])
            assert set(everything) <= set(contents(folder, aside) if aside.exists() else contents(folder))
            if system.dead:
                steps[way] = die_at
            if way == "there" and die_at % 2:
                dry = quarantine(aside, store, kinds=["ood"], dry_run=True)
                result = quarantine(aside, store, kinds=["ood"])
                assert result.counts.total() == result.counts["moved"] + result.counts["already-there"] == 2
                assert [row.outcome.replace("would-move", "moved") for row in dry.outcomes] == [
                    row.outcome for row in result.outcomes
                ]
                assert contents(aside).total() == 2
                assert contents(folder, aside) == everything
            if (aside / JOURNAL).exists():
                assert restore(aside).counts["left"] == 0
                assert contents(aside) == Counter()
            assert {name: content for name, (content, _) in tree(folder).items()} == before
            if not system.dead:
                break
    assert min(steps.values()) >= 10, steps


def test_a_journal_cut_anywhere(audited, tmp_path):
    """A line is written in one go, but a kill or a full disk may cut it: then its move was not begun."""
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    before = tree(folder)
    aside.mkdir()
    quarantine(tmp_path / "whole", store, kinds=["ood"])
    line = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)[0]
    restore(tmp_path / "whole")
    for length in range(0, len(line), 40):
        (aside / JOURNAL).write_bytes(line[:length])
        assert restore(aside, dry_run=True).outcomes == []
        assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 1}
        assert restore(aside).counts == {"restored": 1}
        assert tree(folder) == before


def test_a_damaged_journal_is_said_and_nothing_is_done(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    quarantine(aside, store, kinds=["ood"])
    content = (aside / JOURNAL).read_bytes()
    there = tree(folder)
    for damaged in (b"{}\n", b"[]\n", b"\x00\xff\n", content.replace(b'"uri"', b'"url"'), content.splitlines(True)[1]):
        (aside / JOURNAL).write_bytes(damaged)
        for act in (lambda: restore(aside), lambda: quarantine(aside, store, kinds=["ood"])):
            with pytest.raises(OodAuditError, match=r"quarantine.jsonl is damaged in line 1; "):
                act()
        assert (tree(folder), (aside / JOURNAL).read_bytes()) == (there, damaged)
    (aside / JOURNAL).write_bytes(content)
    assert restore(aside).counts == {"restored": 1}


def test_only_one_at_a_time(audited):
    folder, store, aside = audited
    write_findings(store, {ONE: "ood"})
    quarantine(aside, store, kinds=["ood"])
    with library._opened(str(aside), dry_run=False):
        for arguments in (["--undo"], ["--flagged", "--store", store]):
            code, rows, said = run(aside, *arguments)
            assert (code, rows, len(said)) == (1, [], 1)
            assert "another ood-audit is using" in said[0]
    with pytest.raises(UsageError):
        restore(folder)


LOOP = """
import sys
from ood_audit.actions import quarantine
if sys.argv[1] == "undo":
    quarantine.restore(sys.argv[2])
else:
    quarantine.quarantine(sys.argv[2], sys.argv[3], kinds=["ood"])
"""


def test_killed_again_and_again(tmp_path, encoder, monkeypatch):
    """By the real signal, at any moment, there and back."""
    warm(encoder, monkeypatch)
    folder, store, aside = tmp_path / "in", tmp_path / "store", tmp_path / "aside"
    photo = (IMAGES / ONE).read_bytes()
    for i in range(60):
        (folder / f"{i % 7}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i % 7}" / f"{i}.jpg").write_bytes(photo + bytes([i]))
    ood_audit.embed(folder, store=store, device="cpu")
    found = [path for (path,) in ood_audit.open_store(store).query("SELECT path FROM images").rows]
    write_findings(store, dict.fromkeys(found, "ood"))
    before = tree(folder)
    names = {blake2b(content if isinstance(content, bytes) else b"").digest() for content, _ in before.values()}
    dice = random.Random(11)
    killed = 0
    for way in ("there", "back"):
        for _ in range(4):
            at = (aside / JOURNAL).stat().st_size if aside.exists() else 0
            child = subprocess.Popen(
                [sys.executable, "-c", LOOP, "undo" if way == "back" else "move", aside, store],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            goal, deadline = at + dice.randrange(500, 4000), time.monotonic() + 60
            while child.poll() is None and time.monotonic() < deadline:
                if aside.exists() and (aside / JOURNAL).exists() and (aside / JOURNAL).stat().st_size >= goal:
                    break
            killed += child.poll() is None
            child.send_signal(signal.SIGKILL)
            child.wait()
            there = contents(folder, aside)
            assert {blake2b(content).digest() for content in there if isinstance(content, bytes)} >= names
        if way == "there":
            result = quarantine(aside, store, kinds=["ood"])
            assert result.counts.total() == result.counts["moved"] + result.counts["already-there"] == 60
            assert sum(contents(aside).values()) == 60
            assert sum(contents(folder).values()) == 0
    restore(aside)
    assert tree(folder) == before
    assert contents(aside) == Counter()
    assert killed >= 4
