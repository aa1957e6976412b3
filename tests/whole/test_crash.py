"""Kills, Ctrl-C, second writers and full disks: what was embedded is kept, whole, and gone on with.

Children are forked from a server that has imported torch once, so that killing many of them costs little; they run the
real command line, in processes of their own, until they are killed.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.images.sources import file_uri
from ood_audit.store import writing
from tests.conftest import EXAMPLES, ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
PART_ROWS = 4
LABELS = EXAMPLES / "classes.txt"


@pytest.fixture(scope="session")
def server():
    context = multiprocessing.get_context("forkserver")
    package = ["ood_audit.cli", "ood_audit.embedding.run", "ood_audit.encoders.clip", "ood_audit.store.index"]
    context.set_forkserver_preload([*package, "pyarrow.parquet", "pytest", "tests.conftest"])
    return context


def command(arguments: list[str], out: str, limit: int | None) -> None:
    """The command line in a child, its output in the file `out`; with at most `limit` bytes in any file."""
    import torch

    import ood_audit.store.parts
    from ood_audit.cli import main

    torch.set_num_threads(1)  # of several children, each would take all cores
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    ood_audit.store.parts.PART_ROWS = PART_ROWS
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv[1:] = arguments
    main()


def hold(store: str, what: Any, ready: str) -> None:
    """Be the writer of a store until killed."""
    with writing(Path(store), what):
        Path(ready).touch()
        time.sleep(120)


class Child:
    """A command that runs beside the test."""

    def __init__(self, server: Any, out: Path, *arguments: object, limit: int | None = None) -> None:
        self.out = out
        self.process = server.Process(target=command, args=([*map(str, arguments)], str(out), limit))
        self.process.start()

    def end(self) -> tuple[int, str]:
        self.process.join(60)
        assert self.process.exitcode is not None
        return self.process.exitcode, self.out.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Until it holds, or the child is done."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            if not self.process.is_alive():
                return False
            time.sleep(0.002)
        return True


@pytest.fixture
def warm(encoder, monkeypatch):
    """The session's encoder, for what is done in this process."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


@pytest.fixture
def many(tmp_path):
    """64 readable images with distinct contents, and two that are broken."""
    photos = [path for path in sorted((EXAMPLES / "images").rglob("*.jpg")) if path.read_bytes().endswith(b"\xff\xd9")]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(64):
        content = photos[i % len(photos)].read_bytes() + i.to_bytes(4, "big")
        (tmp_path / "in" / ("sub" if i % 3 else "") / f"{i:02}.jpg").write_bytes(content)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "sub" / "empty.png").touch()
    return tmp_path / "in"


def parts(store: Path) -> list[Path]:
    return sorted((store / "images").glob("part-*.parquet"))


def has_parts(store: Path, count: int) -> bool:
    return (store / "store.json").exists() and len(parts(store)) >= count


def check_whole(store: Path) -> int:
    """Every part is readable, and no image is in the view twice. Gives the number of readable images."""
    for part in parts(store):
        pq.read_table(part)
    if not (store / "store.json").exists():
        return 0
    total, ids, ok = (
        ood_audit.open_store(store)
        .query("SELECT count(*), count(DISTINCT image_id), count(*) FILTER (status = 'ok') FROM images")
        .rows[0]
    )
    assert total == ids
    return int(ok)


def check_complete(store: Path, folder: Path) -> None:
    """Every file has its row once, and nothing half-written lies about."""
    check_whole(store)
    rows = dict(ood_audit.open_store(store).query("SELECT uri, status FROM images").rows)
    files = {file_uri(str(path)): path for path in folder.rglob("*.*")}
    assert rows == {uri: "error" if path.stem in ("broken", "empty") else "ok" for uri, path in files.items()}
    assert [path for path in store.rglob("*") if ".tmp" in path.name or path.name.endswith("writer.json")] == []
    meta = json.loads((store / "index" / "index.json").read_text())
    assert meta == {"generation": ood_audit.open_store(store).generation, "images": len(rows) - 2, "kind": "flat"}
    assert len((store / "index" / "image_ids.txt").read_text().split()) == len(set(rows)) - 2


def one_line(text: str) -> str:
    """The one line of an error, after what announces the model and the like, and the line end that follows a ^C."""
    announced = ("model: ", "preprocessing: ", "vocabulary: ")
    lines = [line for line in text.splitlines() if line and not line.startswith(announced)]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert "internal error" not in lines[0]
    return lines[0]


# Kills


def test_killed_again_and_again(server, tmp_path, many):
    """Whenever a run is killed, what it had written is whole and is not done again."""
    dice = random.Random(7)
    store = tmp_path / "store"
    killed, seen = 0, 0
    for attempt in range(5):
        child = Child(server, tmp_path / "out", "embed", many, "--store", store, "--batch-size", 4)
        at_least = len(parts(store)) + dice.choice([0, 0, 1, 1, 2])
        if attempt == 0:
            child.wait_for((store / "images.lock").exists)
            time.sleep(dice.uniform(0, 0.3))
        else:
            child.wait_for(partial(has_parts, store, at_least))
            time.sleep(dice.uniform(0, 0.06))
        alive = child.process.is_alive()
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.join()
        killed += alive
        ok = check_whole(store)
        assert ok >= seen
        seen = ok
    assert killed >= 3
    assert 0 < seen < 64
    before = {path: path.read_bytes() for path in parts(store)}
    code, out = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
    assert code == 0, out
    assert f"{64 - seen} added, {seen} unchanged, 0 changed, 0 removed, 2 unreadable" in out
    check_complete(store, many)
    assert before == {path: path.read_bytes() for path in before}  # append-only


def test_killed_while_changes_are_written(server, tmp_path, many):
    """Changed and removed images: the view shows each as it was or as it is, once, whenever the kill comes."""
    dice = random.Random(3)
    store = tmp_path / "store"
    assert Child(server, tmp_path / "out", "embed", many, "--store", store).end()[0] == 0
    for round_ in range(2):
        files = sorted(path for path in many.rglob("*.jpg") if path.stem != "broken")
        for path in dice.sample(files, 24):
            path.write_bytes(path.read_bytes() + b"x")
        for path in dice.sample(files, 3):
            path.unlink()
        count = len(parts(store))
        child = Child(server, tmp_path / "out", "embed", many, "--store", store, "--batch-size", 4)
        child.wait_for(partial(has_parts, store, count + 1 + round_))
        time.sleep(dice.uniform(0, 0.03))
        child.process.kill()
        child.process.join()
        check_whole(store)
    assert Child(server, tmp_path / "out", "embed", many, "--store", store).end()[0] == 0
    check_complete(store, many)
    hashes = ood_audit.open_store(store).query("SELECT uri, size_bytes FROM images WHERE status = 'ok'").rows
    assert dict(hashes) == {
        file_uri(str(path)): path.stat().st_size for path in many.rglob("*.jpg") if path.stem != "broken"
    }


def test_killed_while_reporting(server, tmp_path, many):
    """A report is there whole or not at all, and the next one comes out."""
    dice = random.Random(5)
    store = tmp_path / "store"
    assert Child(server, tmp_path / "out", "embed", many, "--store", store).end()[0] == 0
    for attempt in range(3):
        child = Child(
            server, tmp_path / "out", "report", "--store", store, "--labels", LABELS, "--temperature", attempt + 1
        )
        child.wait_for(lambda: any((store / "reports").glob(".latest*")) or any((store / "scores").glob(".*.tmp")))
        time.sleep(dice.uniform(0, 0.02))
        child.process.kill()
        child.process.join()
        latest = store / "reports" / "latest"
        if latest.exists():
            assert json.loads((latest / "report.json").read_text())
            assert (latest / "report.html").read_text().rstrip().endswith("</html>")
        ood_audit.open_store(store).query("SELECT count(*) FROM report")
    code, out = Child(server, tmp_path / "out", "report", "--store", store, "--labels", LABELS, "--top", 5).end()
    assert code == 0, out
    assert len(json.loads((store / "reports" / "latest" / "report.json").read_text())) == 5
    assert [path for path in store.rglob("*") if ".tmp" in path.name] == []


def test_killed_between_the_scores_and_their_recipe(warm, tmp_path, many, capsys):
    from ood_audit.cli import main

    store = tmp_path / "store"
    ood_audit.embed(many / "sub", store=store, device="cpu")
    ood_audit.score(store, labels=["cup", "chair"], device="cpu")
    (recipe,) = (store / "scores").glob("*.json")
    recipe.unlink()
    ood_audit.score(store, labels=["cup", "chair"], device="cpu")
    with pytest.raises(SystemExit):
        main(["status", "--store", str(store), "--format", "json"])
    assert json.loads(capsys.readouterr().out)[0]["scores_in_step"] is True


def test_leftovers_of_a_killed_writer_are_cleared(warm, tmp_path, many):
    """Wherever the kill came."""
    store = tmp_path / "store"
    ood_audit.embed(many / "sub", store=store, device="cpu")
    left = [
        store / "images" / ".part-00000099.parquet.4711.tmp",
        store / "images" / ".scan.tmp",
        store / "index" / ".features.faiss.4711.tmp",
        store / "runs" / ".x.json.4711.tmp",
        store / ".store.json.4711.tmp",
        store / ".images.writer.json.4711.tmp",
    ]
    for path in left:
        path.write_bytes(b"half")
    left[1].unlink()
    left[1].mkdir()
    (left[1] / "spilled").write_bytes(b"x")
    ood_audit.embed(many / "sub", store=store, device="cpu")
    assert [path for path in left if path.exists()] == []


# Writers


def test_a_second_writer_is_refused_while_the_first_lives(server, tmp_path, many):
    store = tmp_path / "store"
    assert Child(server, tmp_path / "out", "embed", many / "sub", "--store", store).end()[0] == 0
    first = server.Process(target=hold, args=(str(store), "images", str(tmp_path / "ready")))
    first.start()
    while not (tmp_path / "ready").exists():
        assert first.is_alive()
        time.sleep(0.01)
    code, out = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
    assert code == 1
    assert f"(process {first.pid} on " in one_line(out)
    # Readers and reports go on meanwhile
    assert ood_audit.open_store(store).query("SELECT count(*) FROM images").rows[0][0] > 0
    assert Child(server, tmp_path / "out", "report", "--store", store, "--labels", LABELS).end()[0] == 0
    first.kill()
    first.join()
    assert (store / "images.lock").exists() and (store / "images.writer.json").exists()  # what it left behind
    code, out = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
    assert code == 0, out
    check_complete(store, many)


def test_many_writers_at_once(server, tmp_path, many):
    """Of those that start together one works; each of the others is refused in one line, or comes after."""
    store = tmp_path / "store"
    children = [Child(server, tmp_path / f"out{i}", "embed", many, "--store", store) for i in range(4)]
    ended = [child.end() for child in children]
    assert any(code == 0 for code, _ in ended)
    for code, out in ended:
        assert code in (0, 1)
        if code == 1:
            assert "is writing to" in one_line(out)
    check_complete(store, many)


def test_a_report_while_images_are_added(tmp_path, many, warm):
    """The report is of the images that were there; it is neither empty nor holds an image twice."""
    store = tmp_path / "store"
    ood_audit.embed(many / "sub", store=store, device="cpu")
    scored = ood_audit.open_store(store).query("SELECT count(*) FROM images WHERE status = 'ok'").rows[0][0]
    done = False

    def meanwhile(stage: str, count: int = 0, total: int | None = None, /) -> None:
        nonlocal done
        if stage == "scoring" and not done:
            done = True
            for path in sorted((many / "sub").iterdir())[:3]:
                path.write_bytes(path.read_bytes() + b"x")
            ood_audit.embed(many, store=store, device="cpu")

    result = ood_audit.report(store, labels=LABELS, device="cpu", on_progress=meanwhile)
    assert done
    ids = [row["image_id"] for row in result.rows]
    assert len(ids) == len(set(ids)) == scored
    result = ood_audit.report(store, device="cpu")
    assert len({row["image_id"] for row in result.rows}) == 64


def test_a_report_while_another_one_is_made(tmp_path, many, warm):
    """The other one, of other classes, begins and ends while this one is made; each keeps to its own."""
    store = tmp_path / "store"
    ood_audit.embed(many / "sub", store=store, device="cpu")
    others: list[str] = []

    def meanwhile(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if stage not in others:
            others.append(stage)
            ood_audit.score(store, labels=["dog", f"house {len(others)}"], device="cpu")

    result = ood_audit.report(store, labels=["cup", "chair"], device="cpu", on_progress=meanwhile)
    assert {"scoring", "writing the report"} <= set(others)
    assert {row["label"] for row in result.rows} <= {"cup", "chair"}
    assert len(result.rows) > 0


# Ctrl-C


def test_interrupted_and_gone_on_with(server, tmp_path, many):
    """The real command in a process group of its own, as under a shell."""
    store = tmp_path / "store"
    code = "import ood_audit.store.parts as p; p.PART_ROWS = 4; from ood_audit.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, "embed", many, "--store", store, "--batch-size", "2", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A background job of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(parts(store)) < 2:
        assert running.poll() is None
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert "interrupted" in one_line(err)
    kept = check_whole(store)
    assert kept >= 8
    assert [path for path in store.rglob("*") if ".tmp" in path.name] == []
    (record,) = [json.loads(path.read_text()) for path in (store / "runs").iterdir()]
    assert record["interrupted"] is True
    assert kept <= record["counts"]["added"] + 2  # the batch in hand may be counted or not
    code_, text = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
    assert code_ == 0, text
    assert f"{64 - kept} added, {kept} unchanged" in text
    check_complete(store, many)


def test_interrupted_at_any_moment(server, tmp_path, many):
    """Also between two statements of the writer: no image may end up in two parts."""
    dice = random.Random(11)
    for attempt in range(2):
        store = tmp_path / f"store{attempt}"
        child = Child(server, tmp_path / "out", "embed", many, "--store", store, "--batch-size", 4)
        child.wait_for((store / "store.json").exists)
        time.sleep(dice.uniform(0, 0.3))
        os.kill(child.process.pid, signal.SIGINT)
        code, out = child.end()
        assert code in (0, 130), out
        if code == 130:
            assert "interrupted" in one_line(out)
        check_whole(store)
    assert Child(server, tmp_path / "out", "embed", many, "--store", store).end()[0] == 0
    check_complete(store, many)


def test_interrupted_right_after_a_part_was_written(tmp_path, many, warm, monkeypatch):
    """The worst moment: the part has its name, and its rows are still at hand."""
    import ood_audit.store.parts as module

    interrupts = [False, True]

    class Rows(list[Any]):
        def clear(self) -> None:
            if interrupts and interrupts.pop(0):
                raise KeyboardInterrupt
            super().clear()

    start = module.PartWriter.__init__

    def init(self, *arguments, **keywords):
        start(self, *arguments, **keywords)
        self._rows = Rows()

    monkeypatch.setattr(module, "PART_ROWS", 20)
    monkeypatch.setattr(module.PartWriter, "__init__", init)
    store = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        ood_audit.embed(many, store=store, device="cpu", batch_size=4)
    assert interrupts == []
    assert check_whole(store) >= 38
    assert sum(pq.read_metadata(path).num_rows for path in parts(store)) == 40


# Full disks


def test_a_file_that_can_not_grow(server, tmp_path, many):
    """As on a full disk, without needing one: at first a part is too large, later only the index is."""
    store = tmp_path / "store"
    for limit in (4_000, 30_000):
        code, out = Child(server, tmp_path / "out", "embed", many, "--store", store, limit=limit).end()
        assert code == 1
        assert "free some space and run the same command again" in one_line(out)
        assert check_whole(store) == (0 if limit == 4_000 else 64)
        assert [path for path in store.rglob("*") if ".tmp" in path.name] == []
    code, out = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
    assert code == 0, out
    assert "0 added, 64 unchanged" in out
    check_complete(store, many)


@contextmanager
def small_disk(folder: Path, size: int):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(server, tmp_path, many):
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20):
        store = disk / "store"
        (disk / "ballast").write_bytes(bytes((1 << 20) - (100 << 10)))
        kept = 0
        for _ in range(2):
            code, out = Child(server, tmp_path / "out", "embed", many, "--store", store, "--batch-size", 4).end()
            assert code == 1
            assert "free some space and run the same command again" in one_line(out)
            assert check_whole(store) >= kept
            kept = check_whole(store)
            assert 0 < kept < 64
            assert [path for path in (store / "images").iterdir() if ".tmp" in path.name] == []
        (disk / "ballast").unlink()
        code, out = Child(server, tmp_path / "out", "embed", many, "--store", store).end()
        assert code == 0, out
        assert f"{64 - kept} added, {kept} unchanged" in out
        check_complete(store, many)
