"""Endurance: kills at random moments, damaged files, several writers at once, full disks and read-only ones.

    python -m benchmarks.soak [--kills 1000] [--mutants 10000] [--writers 2] [--full-disk] [--minutes 30]

A small folder of pictures is embedded, reported, tuned on, compacted and quarantined by the real command line, again
and again, while pictures come, change and go. After each run the store and the folder are checked against what was
known before. A line for each kind of trouble shows

    tried       kills, damaged files, or rounds; fewer than asked for where the time was up
    survived    those after which all was whole, and the same commands went on to the end
    lost        pictures that are nowhere, rows of pictures that are still there, and reports that are not whole
    doubled     rows or pictures that are there twice
    tracebacks  outputs with a traceback or an internal error

and the exit code is 1 where the last three are not zero, or not all survived.

A kill costs no start-up: this process imports everything and loads the encoder once, on one thread and without ever
running it, and forks a child for each command, and for each check. It starts no threads, so that a fork is sound.
Disks are small tmpfs mounts where that is allowed (root on Linux), else limits on the size of files and folders without
write permission. Everything happens in a temporary folder.
"""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parent.parent
CLASSES = ("airplane", "chair", "cup", "sunflower")
COMMANDS = {"embed": 8, "report": 4, "tune": 1, "compact": 4, "quarantine": 5}  # and how often each is chosen
_PART_ROWS = 4  # rows a part, so that there is something to compact, and to lose
_LIMIT = 240  # seconds after which a command hangs
_BATCH = 250  # damaged files a run of `embed`
_SIDE = 96
_ROUNDS = 25  # of writers and of disks, at most, for each of them asked for
_SHOWN = 5
_SHARES = {"kills": 0.6, "mutants": 0.2, "writers": 0.1, "disks": 0.1}  # of the time


@dataclass
class Line:
    """What happened of one kind."""

    kind: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    tracebacks: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, one: "Line", tried: int = 1) -> None:
        """Count what one try has shown."""
        self.tried += tried
        self.lost, self.doubled = self.lost + one.lost, self.doubled + one.doubled
        self.tracebacks += one.tracebacks
        self.survived += 0 if one.faults else tried
        self.faults += one.faults

    def fault(self, text: str, *, lost: int = 0, doubled: int = 0, tracebacks: int = 0) -> None:
        self.lost, self.doubled = self.lost + lost, self.doubled + doubled
        self.tracebacks += tracebacks
        self.faults.append(text)


# Children


@dataclass
class Child:
    """A forked process, its output in a file."""

    pid: int
    out: Path

    def end(self) -> int:
        """Its exit code; the negative of a signal that it died of."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def is_done(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    @property
    def text(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")


def fork(run: Callable[[], object], out: Path, limit: int | None = None) -> Child:
    """Run a function in a child, with at most `limit` bytes in any file that it writes."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, out)
    code: Any = 70
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.alarm(_LIMIT)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run()
        code = 0
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def call(run: Callable[[], object], out: Path) -> Any:
    """What a function gives, called in a child: DuckDB, Arrow and FAISS start threads."""
    child = fork(lambda: print(json.dumps(run())), out)
    if code := child.end():
        raise RuntimeError(f"a check failed ({code}): {child.text}")
    return json.loads(child.text.splitlines()[-1])


def command(*arguments: object) -> Callable[[], object]:
    """`ood-audit ARGUMENTS…`."""

    def run() -> None:
        from ood_audit.cli import main

        main([str(argument) for argument in arguments])

    return run


def warm_up() -> None:
    """Import what the commands need, and load the encoder, without starting a thread."""
    os.environ |= {"OOD_AUDIT_REPORT_AUTO": "0", "OOD_AUDIT_REPORT_BACKGROUND": "off"}
    import torch

    torch.set_num_threads(1)
    import faiss
    import pyarrow.dataset
    import pyarrow.pandas_compat
    import pyarrow.parquet
    import safetensors.numpy
    import scipy.fft
    import scipy.sparse.csgraph
    import sklearn.cluster
    from PIL import Image

    import ood_audit.encoders.clip as clip
    import ood_audit.encoders.loading as loading
    import ood_audit.store.parts as parts
    from ood_audit import cli

    faiss.omp_set_num_threads(1)
    Image.init()
    for name in cli.COMMANDS:
        cli.cli.get_command(None, name)  # type: ignore[arg-type]
    modules = ("embedding.run", "embedding.local", "reports.run", "reports.html", "tuning.tune", "actions.quarantine")
    late = ("embedding.adoption", "findings.duplicates", "findings.fingerprints", "images.noise", "store.index")
    for name in (*modules, *late, "scoring.plan", "scoring.recipe", "scoring.table", "store.compaction"):
        __import__(f"ood_audit.{name}")
    encoder = clip.load_encoder("starter", device="cpu")

    def loaded(asked: object, *_: object, precision: str = "auto", **__: object) -> Any:
        """The encoder, in the precision that is asked for by name or by a store's identity."""
        if "bf16" in (precision, getattr(asked, "precision", None)) and encoder.precision != "bf16":
            encoder.use_bf16()
        return encoder

    for name in ("load_encoder", "load_same_encoder"):
        setattr(loading, name, loaded)
    parts.PART_ROWS = _PART_ROWS
    assert pyarrow and safetensors.numpy and scipy.fft and scipy.sparse.csgraph and sklearn.cluster


# The pictures and the store


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class World:
    """A folder of pictures, its store, and its quarantine."""

    def __init__(self, root: Path, dice: random.Random, disk: Path | None = None) -> None:
        self.root, self.dice = root, dice
        self.pictures, self.labelled = root / "pictures", root / "labelled"
        self.store, self.aside, self.out = (disk or root) / "store", (disk or root) / "aside", root / "out"
        self.classes = root / "classes.txt"
        self.rows: dict[str, list[str]] = {}  # of the readable pictures, by URI, at the last check
        self.made = 0
        self.seconds: dict[str, float] = {}  # that each command takes
        root.mkdir(parents=True, exist_ok=True)
        self.classes.write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
        for number in range(6):
            for name in CLASSES:
                self.draw((self.labelled if number < 3 else self.pictures) / name / f"{number}.jpg", name)
        shutil.copy(self.pictures / "cup" / "3.jpg", self.pictures / "chair" / "copy.jpg")
        (self.pictures / "broken.jpg").write_bytes(b"no picture")
        self.files = Counter(map(digest, self.found()))

    def draw(self, path: Path, name: str) -> None:
        """A small picture of a class that is like no other one."""
        from PIL import Image

        self.made += 1
        source = self.dice.choice(sorted((ROOT / "examples" / "images" / name).glob("*.jpg")))
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), Image.open(source) as image:
            warnings.simplefilter("ignore")
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
            try:
                small = image.convert("RGB").resize((_SIDE, _SIDE))
            except OSError:  # one of the examples is broken, on purpose
                small = Image.new("RGB", (_SIDE, _SIDE), (self.made % 256, 99, 9))
        small.save(path, comment=f"{self.made}".encode())

    def found(self) -> list[Path]:
        """All pictures, wherever they are."""
        return [path for path in self.pictures.rglob("*") if path.is_file()]

    def change(self) -> None:
        """Some pictures come, some change and some go."""
        here = [path for path in self.found() if path.suffix == ".jpg" and path.stem != "broken"]
        for path in self.dice.sample(here, min(3, len(here))):
            kind = self.dice.choice(["change", "remove", "add"])
            if kind == "add":
                self.draw(path.with_name(f"new {self.made}.jpg"), path.parent.name)
            elif kind == "change" or len(here) < 10:
                self.draw(path, path.parent.name)
            else:
                path.unlink()
        self.files = Counter(map(digest, self.places()))

    def places(self) -> list[Path]:
        """All files with a picture's content, in the folder and in the quarantine; each once, whatever its names."""
        found = self.found() + [
            path for path in self.aside.rglob("*") if path.is_file() and path.name[:10] != "quarantine"
        ]
        return list({path.stat().st_ino: path for path in found}.values())

    def arguments(self, name: str) -> list[object]:
        store: list[object] = ["--store", self.store]
        match name:
            case "embed":
                return ["embed", self.pictures, *store, "--batch-size", 4]
            case "report":
                few = ["--labels", self.classes, "--top", 5, "--temperature", self.dice.choice([0.01, 0.02, 0.05])]
                return ["report", *store, *few]
            case "tune":
                return [
                    "tune",
                    *store,
                    "--labels",
                    self.classes,
                    "--from",
                    self.labelled,
                    "--epochs",
                    1,
                    "--name",
                    "soak",
                ]
            case "compact":
                return ["compact", *store]
        if self.dice.random() < 0.5 and self.aside.exists():
            return ["quarantine", self.aside, "--undo", *store]
        return ["quarantine", self.aside, "--duplicates", "--unreadable", "--label-issues", *store]

    def run(self, name: str, *, limit: int | None = None) -> Child:
        return fork(command(*self.arguments(name)), self.out, limit)

    # What must be so

    def check(self, *, settled: bool = False) -> Line:
        """Compare the store and the folders with what is known; `settled` where nothing was stopped halfway."""
        line = Line("check")
        now = Counter(map(digest, self.places()))
        if missing := self.files - now:
            line.fault(f"pictures are gone: {sum(missing.values())}", lost=sum(missing.values()))
        if settled and (more := Counter({k: v for k, v in now.items() if k in self.files}) - self.files):
            line.fault(f"pictures are there twice: {sum(more.values())}", doubled=sum(more.values()))
        if not (self.store / "store.json").exists():
            if self.rows:
                line.fault("the store is gone", lost=len(self.rows))
            return line
        seen = call(lambda: look(self.store), self.root / "checked")
        if seen["doubled"]:
            line.fault(f"rows are there twice: {seen['doubled']}", doubled=seen["doubled"])
        if seen["half"]:
            line.fault(f"not whole: {seen['half']}", lost=len(seen["half"]))
        lost = [uri for uri, row in self.rows.items() if uri not in seen["rows"] and is_as_it_was(uri, row)]
        if lost:
            line.fault(f"rows are gone: {lost}", lost=len(lost))
        self.rows = seen["rows"]
        return line

    def settle(self) -> Line:
        """Whatever was stopped goes on: every picture is back in its place, and has its row, and there is a report."""
        line = Line("settle")
        undo: list[object] = ["quarantine", self.aside, "--undo", "--store", self.store]
        embed, report = self.arguments("embed"), self.arguments("report")
        for arguments in ([undo] if self.aside.exists() else []) + [embed, report]:
            started = time.monotonic()
            child = fork(command(*arguments), self.out)
            judge(line, child, child.end(), (0,))
            self.seconds[str(arguments[0])] = time.monotonic() - started
        found = self.check(settled=True)
        files = self.found()
        rows = call(lambda: look(self.store), self.root / "checked")["all"]
        if len(files) != rows:
            line.fault(f"{len(files)} pictures have {rows} rows", lost=abs(len(files) - rows))
        rest = (path.relative_to(self.store) for path in self.store.rglob("*"))
        # The store in `labelled` is cleared by the next `tune`.
        if left := [str(path) for path in rest if ".tmp" in path.name and path.parts[0] != "labelled"]:
            line.fault(f"leftovers: {left}")
        line.add(found, 0)
        line.kind = "settle"
        return line


def judge(line: Line, child: Child, code: int, allowed: tuple[int, ...]) -> None:
    """Note a command that ended as it should not have."""
    text = child.text
    if "Traceback (most" in text or "internal error" in text:
        line.fault(f"a traceback: {text[-600:]}", tracebacks=1)
    elif code not in allowed:
        line.fault(f"exit code {code}: {text[-600:]}")


def is_as_it_was(uri: str, row: list[str]) -> bool:
    """Whether the picture of a row is still the one that was embedded."""
    from ood_audit.actions.moving import content_hash
    from ood_audit.images.uri import local_path

    try:
        return content_hash(local_path(uri)) == row[0]
    except OSError:
        return False


def look(root: Path) -> dict[str, Any]:
    """What a store holds: readable rows, how many are there twice, and which reports are not whole."""
    import pyarrow.parquet as pq

    import ood_audit

    half = []
    for part in (root / "images").glob("part-*.parquet"):
        try:
            pq.read_table(part)
        except Exception:
            half.append(part.name)
    store = ood_audit.open_store(root)
    rows = store.query("SELECT uri, content_hash, status FROM images").rows
    for report in (root / "reports").glob("[!.]*"):
        try:
            json.loads((report / "report.json").read_text(encoding="utf-8"))
            whole = (report / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
            pq.read_table(report / "report.parquet")
        except (OSError, ValueError):
            whole = False
        if not whole:
            half.append(report.name)
    readable = {uri: [digest, status] for uri, digest, status in rows if status == "ok"}
    return {"rows": readable, "all": len(rows), "doubled": len(rows) - len({row[0] for row in rows}), "half": half}


# The kinds of trouble


def kills(world: World, names: list[str], count: int, until: float) -> list[Line]:
    """Kill one command after the other, at any moment or right after it has begun to write."""
    lines = {name: Line(f"kill: {name}") for name in names}
    lines[names[0]].add(world.settle(), 0)
    for name in names:  # once undisturbed, for how long each takes
        started = time.monotonic()
        judge(lines[name], child := world.run(name), child.end(), (0,))
        world.seconds[name] = time.monotonic() - started
    while (done := sum(line.tried for line in lines.values())) < count and (not done or time.monotonic() < until):
        name = world.dice.choices(names, [COMMANDS[name] for name in names])[0]
        if name in ("embed", "compact"):
            world.change()
        started = time.monotonic()
        child = world.run(name)
        _wait(world, child, world.seconds[name])
        child.kill()
        code = child.end()
        killed = code == -signal.SIGKILL
        if not killed:  # it was faster
            world.seconds[name] = max(0.02, 0.8 * (time.monotonic() - started))
        one = Line(name)
        # What has changed since it was embedded is left alone, and the exit code says so.
        judge(one, child, code, (0, -signal.SIGKILL, *[1] * (name == "quarantine")))
        one.add(world.check(), 0)
        if done % 20 == 19:
            one.add(world.settle(), 0)
        if killed or one.faults:
            lines[name].add(one)
    lines[names[0]].add(world.settle(), 0)
    return list(lines.values())


def _wait(world: World, child: Child, seconds: float) -> None:
    """Half of the time to some moment, else to shortly after the command has begun to write something."""
    deadline = time.monotonic() + seconds
    if world.dice.random() < 0.5:
        time.sleep(world.dice.uniform(0, seconds))
        return
    folders = [world.store / name for name in ("images", "scores", "reports", "prompts", "index", "")] + [world.aside]
    nth = world.dice.randrange(1, 4)
    while time.monotonic() < deadline and not child.is_done() and nth:
        nth -= any(".tmp" in name for folder in folders if folder.is_dir() for name in os.listdir(folder))
        time.sleep(0.001)
    time.sleep(world.dice.uniform(0, 0.01))


def mutants(root: Path, count: int, dice: random.Random, until: float) -> Line:
    """Damaged files of all formats; every one has a row, and its thumbnail does not stop a report."""
    line = Line("damaged files")
    originals = formats(root)
    line.kind = f"damaged files of {len({name.partition('.')[2] for name in originals})} formats"
    classes = root / "classes.txt"
    classes.write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    while line.tried < count and (not line.tried or time.monotonic() < until):
        folder, store = root / "damaged", root / "store"
        for path in (folder, store):
            shutil.rmtree(path, ignore_errors=True)
        folder.mkdir()
        size = min(_BATCH, count - line.tried)
        for number in range(size):
            name = dice.choice(list(originals))
            (folder / f"{number}{name[name.index('.') :]}").write_bytes(mutate(originals[name], originals, dice))
        (folder / "whole.png").write_bytes(originals["plain.png"])
        one = Line("batch")
        for arguments in (["embed", folder], ["report", "--labels", classes, "--exact-duplicates"]):
            child = fork(command(*arguments, "--store", store), root / "out")
            judge(one, child, child.end(), (0,))
            if one.faults:
                one.lost += size * (arguments[0] == "embed")
                break
        else:
            seen = call(lambda store=store: look(store), root / "checked")  # type: ignore[misc]
            if seen["doubled"] or seen["all"] != size + 1:
                one.fault(f"{seen['all']} rows", lost=max(0, size + 1 - seen["all"]), doubled=seen["doubled"])
        line.add(one, size)
    return line


def formats(root: Path) -> dict[str, bytes]:
    """A picture in each format that Pillow writes and we read, and in variants of the common ones."""
    from PIL import Image

    from ood_audit.images import formats as ours

    picture = Image.effect_mandelbrot((48, 48), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    found: dict[str, bytes] = {}

    def save(name: str, kind: str, mode: str = "RGB", **options: Any) -> bool:
        out = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture.convert(mode).save(out, kind, **options)
        except (OSError, ValueError, KeyError):
            return False
        found[name] = out.getvalue()
        return True

    suffixes = {kind: suffix for suffix, kind in sorted(Image.registered_extensions().items(), reverse=True)}
    for kind in ours.formats():
        if kind in Image.SAVE and kind in suffixes:
            any(save(f"plain{suffixes[kind]}", kind, mode) for mode in ("RGB", "P", "L", "1"))
    save("plain.png", "PNG")
    save("cmyk.jpg", "JPEG", "CMYK")
    save("progressive.jpg", "JPEG", progressive=True)
    save("deep.png", "PNG", "I;16")
    save("palette.png", "PNG", "P")
    save("lossless.webp", "WEBP", lossless=True)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        save(f"{compression}.tif", "TIFF", "1" if compression == "group4" else "RGB", compression=compression)
    save("float.tif", "TIFF", "F")
    save("animated.gif", "GIF", save_all=True, append_images=[picture.rotate(90)])
    return found


def mutate(content: bytes, others: dict[str, bytes], dice: random.Random) -> bytes:
    """One to three kinds of damage."""
    data = bytearray(content)
    for _ in range(dice.randrange(1, 4)):
        at = min(dice.randrange(len(data) or 1), dice.choice([64, len(data)]))  # half of the time in the header
        length = dice.choice([1, 2, 4, 16, 256])
        match dice.randrange(8):
            case 0:
                del data[at:]
            case 1:
                for _ in range(length):
                    data[dice.randrange(len(data))] = dice.randrange(256)
            case 2:
                data[at : at + length] = bytes(length)
            case 3:
                data[at : at + length] = b"\xff" * length
            case 4:
                data[at : at + length] = dice.randbytes(length)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + length] * dice.randrange(1, 5)
            case 7:
                data[: dice.choice([4, 16, 64])] = dice.choice(list(others.values()))[: dice.choice([4, 16, 64])]
        if not data:
            break
    return bytes(data)


def writers(world: World, count: int, rounds: int, until: float) -> Line:
    """Several `embed`s of one store at once, with a report, and now and then a kill."""
    line = Line(f"{count} writers at once")
    while line.tried < rounds and (not line.tried or time.monotonic() < until):
        world.change()
        names = ["embed"] * count + [world.dice.choice(["report", "tune", "compact"])]
        one, running = Line("round"), []
        for number, name in enumerate(names):
            running.append(fork(command(*world.arguments(name)), world.root / f"out{number}"))
            time.sleep(world.dice.uniform(0, 0.1))
        if world.dice.random() < 0.3:
            running[0].kill()
        for child in running:
            code = child.end()
            judge(one, child, code, (0, 1, -signal.SIGKILL))
            if code == 1 and "is writing to" not in child.text and "error: " not in child.text:
                one.fault(f"refused without a reason: {child.text[-600:]}")
        one.add(world.check(), 0)
        one.add(world.settle(), 0)
        line.add(one)
    return line


class Disk:
    """A small disk that can be filled and made read-only."""

    size = 8 << 20

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "none", str(folder)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            self.mounted = False
        self.can_be_read_only = self.mounted or os.geteuid() != 0

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        with (self.folder / "ballast").open("wb") as file:
            state = os.statvfs(self.folder)
            file.write(bytes(max(0, state.f_bavail * state.f_frsize - left)))

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._mode("ro")
        try:
            yield
        finally:
            self._mode("rw")

    def _mode(self, mode: str) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)
            return
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(0o555 if mode == "ro" else 0o755)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", self.folder], check=False)


def disks(root: Path, dice: random.Random, rounds: int, until: float) -> list[Line]:
    """Every command on a disk that is full, or nearly so, and on one that is read-only."""
    disk = Disk(root / "disk")
    full = Line("full disk" if disk.mounted else "full disk (a limit on files)")
    fixed = Line("read-only disk" if disk.mounted else "read-only folder")
    lines = [full, fixed] if disk.can_be_read_only else [full]
    try:
        world = World(root / "world", dice, disk.folder)
        full.add(world.settle(), 0)
        while full.tried < rounds and (not full.tried or time.monotonic() < until):
            for line in lines:
                world.change()
                one = Line("round")
                for name in dice.sample([*COMMANDS], 2):
                    left = dice.choice([0, 4, 16, 64, 256]) << 10
                    if line is fixed:
                        with disk.read_only():
                            child = world.run(name)
                            code = child.end()
                    elif disk.mounted:
                        disk.fill(left)
                        child = world.run(name)
                        code = child.end()
                        disk.free()
                    else:
                        child = world.run(name, limit=left)
                        code = child.end()
                    judge(one, child, code, (0, 1))
                    one.add(world.check(), 0)
                one.add(world.settle(), 0)
                line.add(one)
    finally:
        disk.close()
    return lines


def soak(options: argparse.Namespace, root: Path) -> list[Line]:
    """All kinds, one after the other."""
    dice = random.Random(options.seed)
    wanted = {
        "kills": options.kills,
        "mutants": options.mutants,
        "writers": options.writers,
        "disks": int(options.full_disk),
    }
    total = sum(_SHARES[name] for name, count in wanted.items() if count) or 1
    started = time.monotonic()
    end = started

    def until(name: str) -> float:
        nonlocal end
        end = max(end, time.monotonic()) if name == "kills" else end
        end += float(options.minutes) * 60 * _SHARES[name] / total
        return end

    lines: list[Line] = []
    if options.kills:
        lines += kills(World(root / "kills", dice), options.commands, options.kills, until("kills"))
    if options.writers:
        lines.append(writers(World(root / "writers", dice), options.writers, options.rounds, until("writers")))
    if options.full_disk:
        lines += disks(root / "disks", dice, options.rounds, until("disks"))
    if options.mutants:  # last: what the others have left of the time is theirs
        (root / "mutants").mkdir()
        lines.append(mutants(root / "mutants", options.mutants, dice, until("mutants")))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run it, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="those to kill")
    parser.add_argument("--mutants", type=int, default=10_000, help="damaged files")
    parser.add_argument("--writers", type=int, default=2, help="how many at once")
    parser.add_argument("--full-disk", action="store_true", help="full and read-only disks, too")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of writers, and of disks")
    parser.add_argument("--minutes", type=float, default=30, help="after which it ends, whatever is left to do")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        lines = soak(options, Path(folder))
    shown = [{k: v for k, v in asdict(line).items() if k != "faults"} for line in lines]
    print(tabulate(shown, headers="keys", intfmt=","))
    print(f"seed {options.seed}, {(time.monotonic() - started) / 60:.1f} minutes")
    for line in lines:
        for fault in line.faults[:_SHOWN]:
            print(f"{line.kind}: {fault}")
    return int(any(line.lost or line.doubled or line.tracebacks or line.survived < line.tried for line in lines))


if __name__ == "__main__":
    sys.exit(main())
