"""Hostile names, hostile files and wrong usage: what a user sees is exact, on one line, and never a traceback."""

import csv
import html.parser
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import ood_audit
from ood_audit.cli import main
from ood_audit.images.formats import formats
from ood_audit.images.sources import file_uri
from ood_audit.text import storable
from tests.conftest import EXAMPLES, ROOT, run_cli, run_process
from tests.images.test_decode import broken_files

PHOTO = EXAMPLES / "images" / "airplane" / "img_0001.jpg"
LABELS = EXAMPLES / "classes.txt"

NAMES = [
    "it's.jpg",
    'say "hi".jpg',
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "tab\there.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(1)</script>.jpg",  # with the folder "<"
    "' onmouseover='alert(1).jpg",
    '" onmouseover="alert(1).jpg',
    "{{ 7*7 }}{% raw %}.jpg",
    "&lt;&amp;.jpg",
    "-rf.jpg",
    "--help.jpg",
    "=1+1.jpg",
    "@SUM(1).jpg",
    "100%.jpg",
    "%41%2F.jpg",
    "';DROP TABLE images;--.jpg",
    "日本 ü 🙂.jpg",
    "e\u0301 as two.jpg",
    "\u202egpj.exe.jpg",
    "zero\u200bwidth.jpg",
    "line\u2028separator.jpg",
    "\x1b[31mred\x07\x7f.jpg",
    "\x9b31m.jpg",
    "back\\slash\\n.jpg",
    " blanks .jpg",
    "a,b;c|d.jpg",
    "#x?y=z.jpg",
    "*.jpg",
    "[0-9].jpg",
    "{}.jpg",
    "~.jpg",
    "$HOME.jpg",
    "nul",
    "UPPER.JPG",
    "dots...jpg",
    "x" * 251 + ".jpg",
    "folder.jpg/inside.jpg",
    "key=value/format=x.jpg",
    "no extension",
]
BYTES = [b"caf\xe9.jpg", b"\xff\xfe\n.jpg"]


def save_every_format(folder: Path) -> list[str]:
    """One picture in every format that Pillow writes and reads."""
    names = []
    with Image.open(PHOTO) as opened:
        photo = opened.convert("RGB").resize((128, 128))
    suffixes = {name: suffix for suffix, name in sorted(Image.registered_extensions().items(), reverse=True)}
    for name in Image.SAVE:
        if name not in formats() or name not in suffixes:
            continue
        path = folder / f"format {name}{suffixes[name]}"
        for mode in ("RGB", "P", "1"):
            try:
                with warnings.catch_warnings():  # IM is deprecated
                    warnings.simplefilter("ignore")
                    photo.convert(mode).save(path, format=name)
            except (OSError, ValueError, KeyError):
                path.unlink(missing_ok=True)
            else:
                names.append(path.name)
                break
    assert len(names) >= 17, names
    return names


def put(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return os.fspath(path)


class Hostile:
    """A folder of all that, its store, and what the store has to hold."""

    def __init__(self, root: Path) -> None:
        self.folder, self.store = root / "in", root / "store"
        photo = PHOTO.read_bytes()
        good: list[str] = []
        for name in NAMES:
            good.append(put(self.folder / ("<" if name.startswith("</") else "") / name, photo))
        good += [os.path.join(self.folder, name) for name in save_every_format(self.folder)]
        deep = self.folder / Path(*["d" * 250] * 5)
        good.append(put(deep / "deep.jpg", photo))
        assert len(good[-1]) > 1000
        for raw in BYTES:
            path = os.path.join(os.fsencode(self.folder), raw)
            good.append(os.fsdecode(path))
            shutil.copy(PHOTO, good[-1])
        self.bad = {name: put(self.folder / "broken" / name, content) for name, (content, _) in broken_files().items()}
        self.bad["gone.jpg"] = os.fspath(self.folder / "gone.jpg")
        self.bad["self.jpg"] = os.fspath(self.folder / "self.jpg")
        (self.folder / "gone.jpg").symlink_to("nowhere.jpg")
        (self.folder / "self.jpg").symlink_to("self.jpg")
        (self.folder / "loop").symlink_to(self.folder)
        (self.folder / "broken" / "up").symlink_to("..")
        self.skipped = [
            ".hidden.jpg",
            ".DS_Store",
            "._it's.jpg",
            "notes.txt",
            "a.pdf",
            "script.py",
            "README",
            "Makefile",
        ]
        for name in self.skipped:
            put(self.folder / name, b"A text.\n")
        put(self.folder / ".git" / "x.jpg", photo)
        os.mkfifo(self.folder / "pipe.jpg")
        self.uris = {file_uri(path): self.path(path) for path in good}
        self.done = run_bytes("embed", self.folder, "--store", self.store)

    def path(self, local: str) -> str:
        return storable(os.path.relpath(local, self.folder))


def run_bytes(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The real command line, with its output as it is: text mode would change line ends inside of names."""
    return subprocess.run(
        [sys.executable, "-m", "ood_audit", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OOD_AUDIT_STORE": "", **environment},
        timeout=240,
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return Hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def report(hostile, encoder):
    """A report as JSON. Scored in this process, so that this one and later ones only print."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(encoder, monkeypatch)
        ood_audit.score(hostile.store, labels=LABELS, device="cpu")
    done = run_bytes("report", "--store", hostile.store, "--labels", LABELS, "--top", "1000", "--format", "json")
    assert done.returncode == 0, done.stderr.decode()
    return done


def use(encoder, monkeypatch):
    """The session's encoder instead of one a command."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


@pytest.fixture
def warm(encoder, monkeypatch):
    use(encoder, monkeypatch)


@pytest.fixture
def call(capfd, monkeypatch):
    """The command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.delenv("OOD_AUDIT_STORE", raising=False)

    def call(*arguments: object) -> tuple[object, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        return (stopped.value.code, *capfd.readouterr())

    return call


def one_error(code, err, *, expected=1, announced=False):
    """Exactly one line, an error; before it at most the lines that announce the model."""
    lines = err.splitlines()
    if announced:
        lines = [line for line in lines if not line.startswith(("model: ", "preprocessing: ", "next: "))]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    assert "internal error" not in lines[0], err
    assert "Traceback" not in err
    assert lines[0].isprintable()
    assert code == expected, err
    return lines[0]


# The hostile folder


def test_every_image_has_one_row(hostile):
    err = hostile.done.stderr.decode()
    assert hostile.done.returncode == 0, err
    assert "Traceback" not in err
    assert "Warning" not in err
    store = ood_audit.open_store(hostile.store)
    rows = store.query("SELECT uri, path, status, error, width FROM images").rows
    assert len(rows) == len({row[0] for row in rows})
    assert {uri: path for uri, path, status, *_ in rows if status == "ok"} == hostile.uris
    assert {uri for uri, _, status, *_ in rows if status == "error"} == {file_uri(p) for p in hostile.bad.values()}
    for _, path, status, error, width in rows:
        if status == "ok":
            assert error is None
            assert width > 0
        else:
            assert error, path
            assert error.isprintable(), path
            assert "internal" not in error


def test_the_summary_counts_every_file(hostile):
    (line,) = hostile.done.stdout.decode().splitlines()
    good, bad, skipped = len(hostile.uris), len(hostile.bad), len(hostile.skipped) + 1  # and the pipe
    assert line.startswith(f"{good} added, 0 unchanged, 0 changed, 0 removed, {bad} unreadable; skipped {skipped} ")


def test_a_second_run_changes_nothing(hostile, tmp_path, encoder, warm):
    store = Path(shutil.copytree(hostile.store, tmp_path / "copy"))
    result = ood_audit.embed(hostile.folder, store=store, device="cpu")
    assert dict(+result.counts) == {"unchanged": len(hostile.uris), "unreadable": len(hostile.bad)}


def test_json_has_the_exact_names(hostile, report):
    rows = json.loads(report.stdout)
    assert sorted(row["path"] for row in rows) == sorted(hostile.uris.values())
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    err = report.stderr.decode()
    assert "Traceback" not in err
    kept = json.loads((hostile.store / "reports" / "latest" / "report.json").read_text("utf-8"))
    assert [row["path"] for row in kept] == [row["path"] for row in rows]


def test_csv_has_the_exact_names(hostile, report):
    done = run_bytes(
        "query", "SELECT path, rank FROM report ORDER BY rank", "--store", hostile.store, "--format", "csv"
    )
    printed = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert printed[0] == ["path", "rank"]
    assert sorted(row[0] for row in printed[1:]) == sorted(hostile.uris.values())
    with (hostile.store / "reports" / "latest" / "report.csv").open(encoding="utf-8", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [row["path"] for row in kept] == [row[0] for row in printed[1:]]


def test_jsonl_is_one_line_a_row(hostile, report):
    done = run_bytes(
        "query", "SELECT path FROM images WHERE status = 'ok'", "--store", hostile.store, "--format", "jsonl"
    )
    lines = done.stdout.decode().removesuffix("\n").split("\n")
    assert sorted(json.loads(line)["path"] for line in lines) == sorted(hostile.uris.values())


def test_tables_hold_no_control_characters(hostile, report):
    done = run_bytes("report", "--store", hostile.store, "--top", "1000")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().removesuffix("\n").split("\n")
    assert len(lines) == len(hostile.uris) + 2  # with the header and its line
    assert all(line.isprintable() for line in lines)
    assert any("new\\nline.jpg" in line for line in lines)
    assert any("\\u202egpj.exe.jpg" in line for line in lines)


class Tags(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)


def test_the_page_is_inert_and_exact(hostile, report):
    page = (hostile.store / "reports" / "latest" / "report.html").read_bytes().decode()
    assert "<img src=x" not in page
    parsed = Tags(page)
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [
        {"type": "module", "async": ""},
        {"type": "application/json", "id": "data"},
    ]
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
        if not attributes.get("href", "#").startswith("#"):
            assert re.fullmatch(r"file:///[\w./%~-]+", attributes["href"], re.ASCII)
    cards = [attributes["data-path"] for tag, attributes in parsed.tags if tag == "li" and "data-path" in attributes]
    # All the pictures are copies of each other: each is listed, and once more in a cluster of duplicates.
    assert set(cards) == set(hostile.uris.values())
    assert len(cards) >= len(hostile.uris)
    unreadable = [attributes["data-path"] for tag, attributes in parsed.tags if tag == "tr" and attributes]
    assert sorted(unreadable) == sorted(hostile.path(path) for path in hostile.bad.values())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(parsed.text))


def test_queries_find_every_name(hostile, report):
    store = ood_audit.open_store(hostile.store)
    for path in hostile.uris.values():
        quoted = path.replace("'", "''")
        assert store.query(f"SELECT count(*) FROM report WHERE path = '{quoted}'").rows == [(1,)], path
    # And one through the shell's eyes, where the whole statement is one argument
    done = run_cli("query", "SELECT path AS \"it's\" FROM images WHERE path = 'it''s.jpg'", "--store", hostile.store)
    assert (done.returncode, done.stdout.split()) == (0, ["it's", "--------", "it's.jpg"])


@pytest.mark.skipif(sys.platform != "linux", reason="paths longer than the system takes")
def test_a_path_longer_than_the_system_takes(tmp_path, call, warm):
    (tmp_path / "in").mkdir()
    shutil.copy(PHOTO, tmp_path / "in")
    folder = os.open(tmp_path / "in", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
    code, out, err = call("embed", tmp_path / "in", "--store", tmp_path / "store")
    assert (code, out[:8]) == (0, "1 added,")
    assert len([line for line in err.splitlines() if line.startswith("warning: cannot read the folder ")]) == 1


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "x"',
        "[1] *?",
        "new\nline",
        "--store",
        "日本 ü",
        "100% {}",
        "status=zzz/label=7/folder=a",  # Hive's way of naming folders: columns, to a reader that looks for them
    ],
)
def test_folders_of_any_name(tmp_path, name, call, warm, monkeypatch):
    folder = tmp_path / name
    (folder / "in" / "cup").mkdir(parents=True)
    for i in range(2):
        shutil.copy(PHOTO, folder / "in" / "cup" / f"{i}.jpg")
    monkeypatch.chdir(folder.parent)
    store = f"--store={folder.name}/store"
    code, out, err = call("embed", store, "--", f"{folder.name}/in")
    assert (code, out[:8]) == (0, "2 added,"), err
    code, out, err = call("report", store, "--labels", LABELS, "--format", "csv")
    assert code == 0, err
    assert sorted(line.split(",")[1] for line in out.splitlines()[1:]) == ["cup/0.jpg", "cup/1.jpg"]
    columns = "path, status, source, folder, label"
    code, out, err = call("query", store, f"SELECT {columns} FROM report ORDER BY path", "--format", "json")
    rows = json.loads(out)
    assert [row["path"] for row in rows] == ["cup/0.jpg", "cup/1.jpg"]
    assert {(row["status"], row["source"], row["folder"]) for row in rows} == {("ok", str(folder / "in"), "cup")}
    assert {row["label"] for row in rows} < set(LABELS.read_text().splitlines())
    code, out, err = call("status", store, "--format", "json")
    assert (code, json.loads(out)[0]["images"], json.loads(out)[0]["scores_in_step"]) == (0, 2, True)
    code, out, err = call("embed", store, "--", f"{folder.name}/in")
    assert (code, out[:21]) == (0, "0 added, 2 unchanged,")


def test_a_store_whose_name_is_no_utf8(tmp_path, call, warm):
    """Works, or is refused in words."""
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))
    (folder / "in").mkdir(parents=True)
    shutil.copy(PHOTO, folder / "in")
    code, out, err = call("embed", folder / "in", "--store", folder / "store")
    if code == 0:
        assert out.startswith("1 added,")
    else:
        one_error(code, err, expected=code)
    code, out, err = call("embed", folder / "in", "--store", tmp_path / "store")  # as a source it is fine
    assert (code, out[:8]) == (0, "1 added,")


def test_text_that_only_begins_like_an_image_is_no_image(tmp_path, call, warm):
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    (tmp_path / "LICENSE").write_text("Python Software Foundation License\n")  # P y: a PPM of Pillow's
    (tmp_path / "NOTES").write_text("BMW, Audi\n")
    code, out, err = call("embed", tmp_path, "--store", tmp_path / "store")
    assert code == 0, err
    assert "0 unreadable; skipped 2 other files" in out


def test_stereo_pictures_are_read(tmp_path, call, warm):
    """MPO: a JPEG, then more of them. Phones and stereo cameras write it."""
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[photo.copy()])
    code, out, err = call("embed", tmp_path, "--store", tmp_path / "store")
    assert (code, out[:8]) == (0, "1 added,"), err


def test_odd_metadata_is_not_told_on_stderr(tmp_path):
    """In a process of its own, where warnings are as for a user."""
    from PIL import TiffImagePlugin

    photo = Image.open(PHOTO).convert("RGB").resize((64, 64))
    for i in range(8):
        photo.save(
            tmp_path / f"exif{i}.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x0f\x01\x02\0\xff\xff\0\0" * 9
        )
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[33432] = "x"
        tags[65000] = b"private"
        photo.save(tmp_path / f"tags{i}.tiff", tiffinfo=tags, compression="tiff_lzw")
        content = bytearray((tmp_path / f"tags{i}.tiff").read_bytes())
        content[200:300] = b"\xff" * 100
        (tmp_path / f"broken{i}.tiff").write_bytes(content)
        photo.convert("P").save(tmp_path / f"palette{i}.png", transparency=bytes(range(256)))
        photo.save(tmp_path / f"cut{i}.webp")
        (tmp_path / f"cut{i}.webp").write_bytes((tmp_path / f"cut{i}.webp").read_bytes()[:-40])
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ood_audit.images.decode import decode, thumbnail
from ood_audit.images.sources import file_uri
uris = [file_uri(str(path)) for path in sorted(Path(sys.argv[1]).iterdir())]
with ThreadPoolExecutor(4) as pool:
    print(sum(result.error is None for result in pool.map(lambda uri: decode(uri, lambda image: image), uris)))
    list(pool.map(lambda uri: thumbnail(uri, 64), uris))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    assert int(done.stdout) >= 24
    # What libtiff itself writes ("tempfile.tif: …") Pillow gives no way to silence
    assert not re.search("Warning|Traceback|warn", done.stderr), done.stderr


# Output that can't be written as it is


def test_terminals_that_are_not_utf8(hostile, report):
    """As on Windows, where redirected output is in the code page: help and names must still come out."""
    sql = "SELECT path FROM images WHERE status = 'ok'"
    for arguments in (
        ["report", "--help"],
        ["query", sql, "--store", hostile.store],
        ["query", sql, "--store", hostile.store, "--format", "json"],
    ):
        done = run_bytes(*arguments, PYTHONIOENCODING="cp1252")
        assert (done.returncode, done.stderr) == (0, b""), arguments
    assert sorted(row["path"] for row in json.loads(done.stdout)) == sorted(hostile.uris.values())  # escaped, or UTF-8


def test_a_full_disk_behind_a_pipe_is_told_once(hostile):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ood_audit", "query", "SELECT 1", "--store", hostile.store],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert "No space left" in one_error(done.returncode, done.stderr)


def test_a_reader_that_leaves_is_no_error(hostile):
    command = (
        'python -m ood_audit query "SELECT * FROM images, range(2000)" --format jsonl --store "$STORE" | head -n 1'
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('python', sys.executable, 1)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STORE": str(hostile.store)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"]


# Wrong usage


@pytest.fixture
def folder(tmp_path):
    """Things to name on a command line."""
    (tmp_path / "ok").mkdir()
    shutil.copy(PHOTO, tmp_path / "ok")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.docx").write_text("x")
    (tmp_path / "twice.txt").write_text("cup\nchair\nCup\n")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("embed nowhere", 2, "no such file or folder: nowhere"),
        ("embed", 2, "Missing argument 'SOURCE...'"),
        ("embed empty", 1, "no images in"),
        ("embed texts", 1, "1 .txt"),
        ("embed ok empty", 1, "no images in"),
        ("embed broken", 1, "none of the 1 images could be read; the first, a.jpg: not an image"),
        ("embed ok --model nope/tag", 2, "no architecture nope"),
        ("embed ok --model ViT-B-32/nope", 2, "no such weights; ViT-B-32 has openai"),
        ("embed ok --model ViT-B-32", 2, "--weights FILE"),
        ("embed ok --model ViT-B-32 --weights nowhere.pt", 1, "no such file"),
        ("embed ok --model ViT-B-32/openai --weights file", 2, "bare architecture"),
        ("embed ok --model local-dir:empty", 1, "open_clip_config.json"),
        ("embed ok --model starter --weights file", 2, "bare architecture"),
        ("embed ok --device banana", 2, "choose auto, cpu, cuda, cuda:N or mps"),
        ("embed ok --device cuda:99", 2, "CUDA devices; use --device auto"),
        ("embed ok --precision fp16 --device cpu", 2, "on a CPU use fp32 or bf16"),
        ("embed ok --precision fp8", 2, "fp8"),
        ("embed ok --batch-size 0", 2, "--batch-size"),
        ("embed ok --store file", 1, "file"),
        ("embed ok --store foreign", 1, "other things in it; name a new one with --store"),
        ("embed ok --store file/below", 1, "file"),
        ("embed ok --store /proc/none/store", 1, "/proc"),
        ("embed ok --frobnicate", 2, "--frobnicate"),
        ("embed ok --store", 2, "--store"),
        ("frobnicate", 2, "frobnicate"),
        ("--frobnicate", 2, "--frobnicate"),
        ("report --store nowhere", 1, "no store at nowhere; make one with `ood-audit embed"),
        ("report --store foreign", 1, "no store at foreign"),
        ("query --store file", 2, "Missing argument 'SQL'"),
        ("status --store file", 1, "no store at file"),
    ],
)
def test_wrong_usage_without_a_store(folder, call, monkeypatch, request, arguments, code, words):
    monkeypatch.chdir(folder)
    if arguments == "embed broken":  # the one that gets as far as to load a model
        request.getfixturevalue("warm")
    before = sorted(path for path in folder.rglob("*") if path.parent.name != "ok")
    arguments = arguments.split()
    if arguments[:1] == ["embed"] and "--store" not in arguments:
        arguments += ["--store", "new"]
    got, out, err = call(*arguments)
    assert words in one_error(got, err, expected=code, announced="broken" in arguments)
    assert out == ""
    left = [path for path in folder.rglob("*") if folder / "new" not in (path, *path.parents)]
    assert sorted(path for path in left if path.parent.name != "ok") == before


def test_cuda_where_there_is_none(folder, call):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, _, err = call("embed", folder / "ok", "--store", folder / "new", "--device", "cuda")
    assert "0 CUDA devices" in one_error(code, err, expected=2)


class Code:
    """What a hostile checkpoint holds."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_checkpoints_run_no_code(folder, call):
    import torch

    marker = folder / "ran"
    torch.save({"state_dict": Code(marker)}, folder / "zip.pt")
    torch.save(Code(marker), folder / "bare.bin", _use_new_zipfile_serialization=False)
    (folder / "pickle.pth").write_bytes(pickle.dumps({"visual.proj": Code(marker)}))
    (folder / "renamed.safetensors").write_bytes((folder / "zip.pt").read_bytes())
    for name in ("zip.pt", "bare.bin", "pickle.pth", "renamed.safetensors"):
        arguments = ["embed", folder / "ok", "--store", folder / "new", "--model", "ViT-S-32-alt"]
        code, _, err = call(*arguments, "--weights", folder / name)
        error = one_error(code, err)
        assert not marker.exists()
        if name != "renamed.safetensors":
            assert "would run code" in error
    pickle.loads((folder / "pickle.pth").read_bytes())
    assert marker.exists()  # it would have


@pytest.mark.parametrize("name", ["cut.safetensors", "header.safetensors", "other.safetensors", "junk.pt", "empty.pt"])
def test_damaged_checkpoints_are_named(folder, call, name):
    import numpy as np
    from safetensors.numpy import save

    whole = save({"x": np.zeros(99, np.float32)})
    content = {"cut": whole[:-50], "header": b"\xff" * 99, "other": whole, "junk": b"junk" * 30, "empty": b""}
    (folder / name).write_bytes(content[name.partition(".")[0]])
    arguments = ["embed", folder / "ok", "--store", folder / "new", "--model", "ViT-S-32-alt"]
    code, _, err = call(*arguments, "--weights", folder / name)
    assert name in one_error(code, err)
    assert not (folder / "new" / "store.json").exists()


@pytest.fixture(scope="module")
def small_store(tmp_path_factory, encoder):
    """A store of two images, scored; read only."""
    root = tmp_path_factory.mktemp("small")
    (root / "in" / "cup").mkdir(parents=True)
    (root / "in" / "chair").mkdir()
    shutil.copy(PHOTO, root / "in" / "cup" / "1.jpg")
    shutil.copy(EXAMPLES / "images" / "airplane" / "img_0002.jpg", root / "in" / "chair" / "2.jpg")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(encoder, monkeypatch)
        ood_audit.embed(root / "in", store=root / "store", device="cpu")
        ood_audit.report(root / "store", labels=["cup", "chair"], device="cpu")
    return root / "store"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["report", "--labels", "nowhere.txt"], 2, "cannot read the labels nowhere.txt"),
        (["report", "--labels", "empty"], 2, "cannot read the labels empty"),
        (["report", "--labels", "twice.txt"], 2, "line 3: 'Cup' is already in line 1"),
        (["report", "--labels", "none.txt"], 2, "names no class"),
        (["report", "--labels", "latin.txt"], 2, "line 1: not UTF-8"),
        (["report", "--template", "a photo"], 2, "write {} once"),
        (["report", "--template", "{} {}"], 2, "write {} once"),
        (["report", "--template", ""], 2, "write {} once"),
        (["report", "--template", "{}", "--template-set", "simple"], 2, "not both"),
        (["report", "--top", "0"], 2, "--top"),
        (["report", "--top", "-1"], 2, "--top"),
        (["report", "--top", "many"], 2, "--top"),
        (["report", "--top", "1" + "0" * 30], 2, "--top"),
        (["report", "--name", "a/b"], 2, "--name a/b"),
        (["report", "--name", "../b"], 2, "--name"),
        (["report", "--name", ".."], 2, "--name"),
        (["report", "--name", ""], 2, "--name"),
        (["report", "--name", "a\nb"], 2, "--name"),
        (["report", "--name", "n" * 300], 2, "--name"),
        (["report", "--temperature", "0"], 2, "--temperature"),
        (["report", "--temperature", "nan"], 2, "--temperature"),
        (["report", "--top-c", "0"], 2, "--top-c"),
        (["report", "--reset-to", "nan"], 2, "--reset-to"),
        (["report", "--reset-to", "inf"], 2, "--reset-to"),
        (["report", "--reset-to", "1e300"], 2, "--reset-to"),
        (["report", "--device", "banana", "--temperature", "3"], 2, "--device"),
        (["report", "--format", "xml"], 2, "xml"),
        (["query", "SELECT 1", "--format", "xml"], 2, "xml"),
        (["query", ""], 2, "one SELECT"),
        (["query", "SELEC 1"], 2, "syntax error"),
        (["query", "SELECT nope FROM images"], 2, "nope"),
        (["query", "SELECT nope FROM nowhere"], 2, "nowhere"),
        (["query", "SELECT 'x.parquet'::INT"], 2, "x.parquet"),
        (["query", "SELECT * FROM 'x.parquet'"], 2, "x.parquet"),
        (["query", "SELECT 1; SELECT 2"], 2, "one SELECT"),
        (["query", "COPY (SELECT 1) TO 'out.csv'"], 2, "one SELECT"),
        (["query", "COPY images TO 'store/out.csv'"], 2, "one SELECT"),
        (["query", "ATTACH 'out.db'"], 2, "one SELECT"),
        (["query", "CREATE TABLE t AS SELECT 1"], 2, "one SELECT"),
        (["query", "CREATE OR REPLACE VIEW images AS SELECT 1"], 2, "one SELECT"),
        (["query", "INSERT INTO labels VALUES (1, 'x', [])"], 2, "one SELECT"),
        (["query", "DELETE FROM labels"], 2, "one SELECT"),
        (["query", "EXPORT DATABASE 'out'"], 2, "one SELECT"),
        (["query", "INSTALL httpfs"], 2, "one SELECT"),
        (["query", "SET enable_external_access = true"], 2, "one SELECT"),
        (["query", "SELECT * FROM read_text('/etc/passwd')"], 2, "/etc/passwd"),
        (["query", "SELECT * FROM read_csv('/etc/passwd')"], 2, "/etc/passwd"),
        (["query", "FROM read_blob('STORE/../secret')"], 2, "secret"),
        (["query", "FROM glob('/etc/*')"], 2, "/etc"),
        (["query", "SELECT * FROM '/etc/passwd'"], 2, "/etc/passwd"),
        (["query", "FROM read_parquet('https://example.com/x.parquet')"], 2, "example.com"),
        (["query", "SELECT '\udcff'"], 2, "UTF-8"),
        (["embed", "empty"], 1, "no images"),
        (["embed", "ok", "--precision", "bf16"], 1, "start another store with --store DIR"),
        (["embed", "ok", "--model", "ViT-B-32/openai"], 1, "start another store with --store DIR"),
        (["embed", "ok", "--model", "nope/tag"], 1, "is another encoder"),
    ],
)
def test_wrong_usage_of_a_store(folder, small_store, call, monkeypatch, arguments, code, words):
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("asked the network"))
    monkeypatch.chdir(folder)
    (folder / "secret").write_text("root:x")
    store = Path(shutil.copytree(small_store, folder / "store"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    got, out, err = call(*[argument.replace("STORE", str(store)) for argument in arguments], "--store", "store")
    lines = err.splitlines()
    noted = [line for line in lines if line.startswith("vocabulary: the 2 classes")]  # said before the work begins
    error = one_error(got, "\n".join(line for line in lines if line not in noted), expected=code)
    assert words in error
    assert out == ""
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert not [path for path in folder.iterdir() if path.name.startswith("out")]


def test_ordinary_queries_print(small_store, call):
    """What people type: each of these is one SELECT, or a way to look around."""
    for sql in (
        "DESCRIBE images",
        "SHOW TABLES",
        "FROM report LIMIT 1",
        "SELECT path, to_timestamp(mtime_ns / 1e9) AS changed FROM images",
        "SELECT now()",
        "WITH x AS (SELECT 1 AS a) SELECT * FROM x;",
        "SELECT count(*) FROM images -- all of them",
        "SELECT [1, 2] AS list, {'a': 1} AS struct, 'x'::BLOB AS bytes, NULL AS nothing, 1.5::DECIMAL(4, 2) AS d",
        "SELECT path FROM images WHERE false",
    ):
        for fmt in ("table", "csv", "json", "jsonl"):
            code, out, err = call("query", sql, "--store", small_store, "--format", fmt)
            assert (code, err) == (0, ""), sql
            if fmt == "json":
                json.loads(out)


def test_json_is_json_whatever_the_values(small_store, call):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for fmt in ("json", "jsonl"):
        sql = "SELECT 'nan'::FLOAT AS a, 'inf'::DOUBLE AS b, 1 AS c"
        code, out, err = call("query", sql, "--store", small_store, "--format", fmt)
        assert (code, err) == (0, "")
        json.loads(out, parse_constant=refuse)


def test_column_names_are_shown_on_one_line(small_store, call):
    code, out, _ = call("query", 'SELECT 1 AS "a\nb\x1b[31m"', "--store", small_store)
    assert code == 0
    assert len(out.splitlines()) == 3
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b"null", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b'{"version": 1}', "is damaged"),
        (b'{"version": 1, "encoder": {"model": "starter"}}', "is damaged"),
        (b'{"version": 1, "encoder": []}', "is damaged"),
        (b'{"version": 3, "encoder": {}}', "format version 3"),
        (b'{"version": "\\u001b[31m\\n", "encoder": {}}', "format version"),
    ],
)
def test_stores_that_this_version_does_not_read(small_store, folder, call, content, words):
    store = Path(shutil.copytree(small_store, folder / "store"))
    (store / "store.json").write_bytes(content)
    for arguments in (["embed", folder / "ok"], ["report"], ["query", "SELECT 1"], ["status"]):
        code, out, err = call(*arguments, "--store", store)
        assert words in one_error(code, err)
        assert out == ""
    assert (store / "store.json").read_bytes() == content


@pytest.mark.parametrize("size", [0, 500])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_part_is_named(small_store, folder, call, warm, which, size):
    store = Path(shutil.copytree(small_store, folder / "store"))
    ood_audit.embed(folder / "ok", store=store, device="cpu")
    part = ood_audit.open_store(store).parts[which]
    part.write_bytes(part.read_bytes()[:size])
    shutil.copy(EXAMPLES / "images" / "cup" / "img_0001.jpg", folder / "ok")
    for arguments in (["embed", folder / "ok"], ["report"], ["query", "SELECT path FROM images"], ["status"]):
        code, _, err = call(*arguments, "--store", store)
        lines = [line for line in err.splitlines() if not line.startswith("vocabulary: ")]
        assert part.name in one_error(code, "\n".join(lines), announced=True), arguments


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_side_files_are_told_or_made_again(small_store, folder, call, warm, content):
    names = ["current.json", "score_defaults.json", "scores/*.json", "vocabularies/*.json", "runs/*.json", "index/*"]
    for name in [*names, "scores/*.parquet", "vocabularies/*.safetensors"]:
        store = Path(shutil.copytree(small_store, folder / re.sub(r"\W", "", name)))
        (path,) = list(store.glob(name))[:1]
        path.write_bytes(content)
        for arguments in (["status"], ["query", "SELECT count(*) FROM report"], ["report"], ["embed", folder / "ok"]):
            code, _, err = call(*arguments, "--store", store)
            lines = [line for line in err.splitlines() if line.startswith("error: ")]
            assert "internal error" not in err, (name, arguments)
            assert code == len(lines), (name, arguments)


def test_doing_what_the_error_says_mends_the_store(small_store, folder, call, warm):
    """A damaged part that is deleted: the next runs notice, and bring back all that its images had."""
    store = Path(shutil.copytree(small_store, folder / "store"))
    ood_audit.embed(folder / "ok", store=store, device="cpu")
    ood_audit.report(store, device="cpu")
    part = ood_audit.open_store(store).parts[-1]
    part.write_bytes(b"")
    code, _, err = call("status", "--store", store)
    if "delete that file" not in one_error(code, err):
        return
    part.unlink()
    shutil.copy(EXAMPLES / "images" / "cup" / "img_0001.jpg", folder / "ok" / "second.jpg")
    ood_audit.embed(folder / "ok", store=store, device="cpu")
    result = ood_audit.report(store, device="cpu")
    assert sorted(row["path"] for row in result.rows) == sorted(["cup/1.jpg", "chair/2.jpg", PHOTO.name, "second.jpg"])
    from ood_audit.store.index import neighbours
    from ood_audit.store.parts import iter_features

    opened = ood_audit.open_store(store)
    for batch in iter_features(opened):
        nearest, _ = neighbours(opened, batch.features, 9)
        assert {len(ids) for ids in nearest} == {4}


def test_a_real_process_says_the_same(folder):
    """Once outside of this process, where tracebacks at the very end would show too."""
    done = run_process("query", "SELECT", "--store", "nowhere", cwd=folder)
    one_error(done.returncode, done.stderr)
    done = run_process("embed", "empty", "--store", "new", cwd=folder)
    one_error(done.returncode, done.stderr)
    done = run_process(cwd=folder)
    assert done.returncode == 2
    assert "Commands" in done.stderr


def test_debug_shows_the_traceback(folder):
    done = run_process("query", "SELECT 1", "--store", "nowhere", "--debug", cwd=folder)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# Values, streams and libraries


@pytest.mark.parametrize("fmt", ["csv", "json", "jsonl", "table"])
def test_values_are_written_as_duckdb_writes_them(small_store, call, fmt):
    sql = """
        SELECT 1.50::DECIMAL(10, 2) AS decimal, 0::DECIMAL(20, 10) AS zero, 'infinity'::DATE AS date,
               '2020-01-02 03:04:05'::TIMESTAMP AS time, INTERVAL '1 month 2 days' AS span, '\\xAA\\x00a'::BLOB AS blob,
               ['inf'::DOUBLE, 'nan'::DOUBLE, 1] AS list, {'a': DATE '2020-01-02', 'b': [1.5]} AS struct,
               MAP {'k': 'é'} AS map, '-inf'::DOUBLE AS infinite, 'nan'::FLOAT AS nan, true AS yes, NULL AS nothing,
               'c90d3d2e-3e5a-4f6a-9d4e-0d4ed8b5f7b1'::UUID AS uuid, (2::HUGEINT ** 100)::HUGEINT AS huge;  -- all;
    """
    code, out, err = call("query", sql, "--store", small_store, "--format", fmt)
    assert (code, err) == (0, "")
    for word in ("Decimal", "datetime", "timedelta", "UUID(", "True", "None", "9999"):
        assert word not in out
    texts = {
        "decimal": "1.50",
        "zero": "0.0000000000",
        "date": "infinity",
        "time": "2020-01-02 03:04:05",
        "span": "1 month 2 days",
        "blob": r"\xAA\x00a",
        "list": "[inf, nan, 1.0]",
        "map": "{k=é}",
        "struct": "{'a': 2020-01-02, 'b': [1.5]}",
        "infinite": "-inf",
        "nan": "nan",
        "yes": "true",
        "nothing": "",
        "uuid": "c90d3d2e-3e5a-4f6a-9d4e-0d4ed8b5f7b1",
        "huge": str(2**100),
    }
    if fmt == "csv":
        assert list(csv.DictReader(io.StringIO(out))) == [texts]
    elif fmt == "table":
        assert all(text in out for text in texts.values())
    else:
        read = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"), parse_float=str)
        assert (read if fmt == "jsonl" else read[0]) == {
            **texts,
            "list": [None, None, "1.0"],
            "struct": {"a": "2020-01-02", "b": ["1.5"]},
            "map": {"k": "é"},
            "infinite": None,
            "nan": None,
            "yes": True,
            "nothing": None,
            "huge": 2**100,
        }


def test_rows_that_duckdb_converts_stay_in_order(small_store, call):
    sql = "SELECT range AS n, DATE '2020-01-01' + range::INTEGER AS day FROM range(20000) ORDER BY hash(range)"
    _, out, _ = call("query", sql, "--store", small_store, "--format", "csv")
    plain = ood_audit.open_store(small_store).query(sql).rows
    assert out.splitlines()[1:] == [f"{n},{day}" for n, day in plain]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(small_store, closed):
    """The exit code is what it would be; and what is opened next does not become the standard output."""
    store = str(small_store)
    for arguments, code in (
        ("embed --help", 0),
        (f"query 'SELECT now() AS t' --format jsonl --store '{store}'", 0),
        (f"query 'SELECT 1' --format csv --store '{store}'", 0),
        (f"query 'SELECT nope' --store '{store}'", 2),
        ("status --store nowhere", 1),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m ood_audit {arguments} {closed}"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code, (arguments, done.stderr)
        assert not re.search("internal|Traceback|Exception", done.stdout + done.stderr)
        assert done.stdout == "" or ">&-" not in closed.split()
        assert done.stderr == "" or "2>&-" not in closed


def _damaged_tiffs(folder: Path, count: int) -> None:
    out = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.convert("RGB").resize((64, 64)).save(out, "TIFF", compression="tiff_lzw")
        photo.save(folder / "good.png")
    for i in range(count):
        content = bytearray(out.getvalue())
        content[20 + i : 400] = b"\xff" * (380 - i)
        (folder / f"{i}.tif").write_bytes(content)


@pytest.mark.parametrize("reachable", [True, False])
def test_a_scan_of_damaged_files_is_told_in_one_line(tmp_path, call, warm, monkeypatch, reachable):
    from ood_audit.images import noise

    (tmp_path / "in").mkdir()
    _damaged_tiffs(tmp_path / "in", 30)
    if not reachable:  # as where libtiff is linked into Pillow
        monkeypatch.setattr(noise, "libtiff", lambda: None)
    before = sys.stderr
    code, out, err = call("embed", tmp_path / "in", "--store", tmp_path / "store")
    assert sys.stderr is before
    assert code == 0
    assert out.startswith("1 added") and "30 unreadable" in out
    (line,) = [line for line in err.splitlines() if not line.startswith(("model: ", "preprocessing: ", "next: "))]
    assert line.startswith("to list the unreadable files: ")
    errors = ood_audit.open_store(tmp_path / "store").query("SELECT error FROM images WHERE status = 'error'").rows
    assert all(error.startswith("damaged TIFF") for (error,) in errors)


@pytest.mark.parametrize("reachable", [True, False])
def test_our_own_errors_are_not_silenced(capfd, monkeypatch, reachable):
    from ood_audit.images import noise

    if not reachable:
        monkeypatch.setattr(noise, "libtiff", lambda: None)
    with open(os.dup(2), "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)  # not pytest's own
    with open(2, "w", buffering=1, closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with noise.quiet_libraries():
            print("ours", file=sys.stderr)
        os.write(2, b"and after\n")
        monkeypatch.undo()
    assert capfd.readouterr().err == "ours\nand after\n"


def test_the_library_leaves_libtiff_alone(tmp_path, capfd):
    """What a caller of the Python API sees on stderr is that caller's business."""
    from ood_audit.images.decode import decode
    from ood_audit.images.noise import libtiff, quiet_libraries

    if libtiff() is None:
        return  # nothing to set
    _damaged_tiffs(tmp_path, 1)
    uri = file_uri(str(tmp_path / "0.tif"))
    with quiet_libraries():
        decode(uri, lambda image: image)
    assert capfd.readouterr().err == ""
    decode(uri, lambda image: image)
    assert capfd.readouterr().err != ""


def test_nothing_to_suggest_says_why(small_store, tmp_path, call, warm):
    store = shutil.copytree(small_store, tmp_path / "store")
    code, _, err = call("labels", "suggest", "--store", store)
    assert code == 0
    assert "nothing to suggest: 2 images cannot be compared" in err
    assert "embed at least 6" in err


def test_label_issues_are_looked_for_or_not(tmp_path, call, warm):
    (tmp_path / "in").mkdir()
    for name in "ab":
        shutil.copy(PHOTO, tmp_path / "in" / f"{name}.jpg")
    call("embed", tmp_path / "in", "--store", tmp_path / "store")
    (tmp_path / "labels.txt").write_text("cup\nchair\n")
    code, _, err = call("report", "--labels", tmp_path / "labels.txt", "--no-auto", "--store", tmp_path / "store")
    assert code == 0, err
    assert "label issues: none looked for" in err
    assert "duplicates: 1" in err
    assert "label issues: 0" not in err


def test_parts_without_notes_are_read(small_store, tmp_path, call, warm):
    """As 0.1.0 wrote them: they are read beside new ones, in any order, and are merged with these."""
    import pyarrow.parquet as pq

    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    (part,) = store.glob("images/part-*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["note"]), part)
    query = ("query", "SELECT path, note FROM images ORDER BY path", "--format", "csv", "--store", store)
    assert call(*query)[:2] == (0, "path,note\nchair/2.jpg,\ncup/1.jpg,\n")
    (tmp_path / "more").mkdir()
    Image.new("L", (64, 64), 9).save(tmp_path / "more" / "flat.png")
    assert call("embed", tmp_path / "more", "--store", store)[0] == 0
    answer = "path,note\nchair/2.jpg,\ncup/1.jpg,\nflat.png,only 1 grey level\n"
    assert call(*query)[:2] == (0, answer)
    assert call("report", "--no-auto", "--store", store)[0] == 0
    assert call("compact", "--store", store)[0] == 0
    assert len(list(store.glob("images/part-*.parquet"))) == 1
    assert call(*query)[:2] == (0, answer)
