"""The same pictures through ood-audit, fastdup and CleanVision: time, memory, and which planted faults each finds.

    python -m benchmarks.peers DATA [--images 5000] [--keep DIR] [--tools ood-audit fastdup cleanvision] [--rounds 1]

DATA has `images/CLASS/`, `classes.txt`, `truth.csv` (path, folder, truth, kind) and `labelled/CLASS/`. All of `images`
is taken as it is. It is filled up with altered copies of its faultless pictures: crops of 60 to 70% of each side, half
of them mirrored, turned by up to 12 degrees, with other brightness, contrast and colour; a copy whose perceptual hash
is within 12 of 64 bits of any other picture's is made again, so that the filling plants no near duplicates. Ten more
copies are cut off in the middle of the file. With --images 717 only those ten are added. Each tool is installed in a
virtual environment of its own (fastdup and CleanVision from PyPI), and runs with its defaults, alone. Memory is the sum
of all processes of a tool (PSS). Of `embed` and the first report it prints how many times as long as fastdup they take
and as much they hold, beside the limits: of several rounds, one tool after the other, the median.
"""

import argparse
import csv
import io
import json
import operator
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.memory import Watch

TRUNCATED = 10
SECONDS, MEMORY = 1.5, 4.0  # the limits: times fastdup's
APART = 12  # bits of a 64-bit perceptual hash; tools call pictures near duplicates at 0 to 10

FASTDUP = """
import json, os, sys
from pathlib import Path
import pandas as pd
import fastdup

images, work, out = sys.argv[1:]
paths = sorted(Path(images).rglob("*.jpg"))
annotations = pd.DataFrame({"filename": [str(p) for p in paths], "label": [p.parent.name for p in paths]})
fd = fastdup.create(work_dir=work, input_dir=images)
fd.run(annotations=annotations)
name = lambda path: os.path.relpath(path, images) if os.path.isabs(str(path)) else str(path)
outliers = fd.outliers().sort_values("distance")
outliers = list(dict.fromkeys(name(p) for p in outliers["filename_outlier"]))
pairs = fd.similarity()
exact = pairs[pairs["distance"] >= 0.9999]
groups = fd.connected_components_grouped()
neighbours = {}
for a, b, x, y in zip(pairs["filename_from"], pairs["filename_to"], pairs["label_from"], pairs["label_to"]):
    neighbours.setdefault(name(a), []).append(x == y)
label = sorted(neighbours, key=lambda n: (sum(neighbours[n]) / len(neighbours[n]), n))
label = [n for n in label if sum(neighbours[n]) < len(neighbours[n]) / 2]
json.dump({
    "ood": outliers,
    "label": label,
    "exact": [[name(a), name(b)] for a, b in zip(exact["filename_from"], exact["filename_to"])],
    "near": [[name(p) for p in files] for files in groups["files"]],
    "unreadable": [name(p) for p in fd.invalid_instances()["filename"]],
}, open(out, "w"))
"""

CLEANVISION = """
import json, os, sys
from cleanvision import Imagelab

images, work, out = sys.argv[1:]
lab = Imagelab(data_path=images)
lab.find_issues()
name = lambda path: os.path.relpath(path, images)
sets = lambda kind: [[name(p) for p in some] for some in lab.info[kind]["sets"]]
json.dump({
    "ood": None,
    "label": None,
    "exact": sets("exact_duplicates"),
    "near": sets("near_duplicates"),
    "unreadable": [],
    "other": {kind: int(n) for kind, n in zip(lab.issue_summary["issue_type"], lab.issue_summary["num_images"])},
}, open(out, "w"))
"""


def alter(picture: Image.Image, dice: random.Random) -> Image.Image:
    width, height = picture.size
    picture = picture.rotate(dice.uniform(-12, 12), Image.Resampling.BICUBIC)
    across, down = (round(side * dice.uniform(0.6, 0.7)) for side in (width, height))
    left, top = dice.randint(0, width - across), dice.randint(0, height - down)
    picture = picture.crop((left, top, left + across, top + down))
    if dice.random() < 0.5:
        picture = ImageOps.mirror(picture)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(dice.uniform(0.75, 1.25))
    return picture


def hash_of(picture: Image.Image) -> int:
    return int(str(imagehash.phash(picture)), 16)


def build(data: Path, into: Path, count: int, seed: int) -> dict[str, set[str]]:
    """Make the folder of `count` pictures; gives the planted ones by kind."""
    with (data / "truth.csv").open() as file:
        kinds = {row["path"]: row["kind"] for row in csv.DictReader(file)}
    hashes = np.empty(count, np.uint64)
    made = 0

    def add(name: str, content: bytes, code: int) -> None:
        nonlocal made
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        hashes[made] = code
        made += 1

    for name in kinds:
        with Image.open(data / "images" / name) as picture:
            add(name, (data / "images" / name).read_bytes(), hash_of(picture.convert("RGB")))
    dice = random.Random(seed)
    sources = [name for name, kind in kinds.items() if kind == "id"]
    planted = {kind: {name for name, k in kinds.items() if k == kind} for kind in sorted(set(kinds.values()))}
    planted["truncated"] = set()
    while made < count:
        source = sources[made % len(sources)]
        with Image.open(data / "images" / source) as picture:
            original = picture.convert("RGB")
        for _ in range(50):
            picture = alter(original, dice)
            code = hash_of(picture)
            if np.bitwise_count(hashes[:made] ^ np.uint64(code)).min() > APART:
                break
        else:
            sources.remove(source)  # all of it looks alike, as a cup on white does
            continue
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=88)
        content = out.getvalue()
        name = f"{source.partition('/')[0]}/x{made:05d}.jpg"
        if len(planted["truncated"]) < TRUNCATED:
            planted["truncated"].add(name)
            content = content[: len(content) // 2]
        add(name, content, code)
    return planted


class ToolError(Exception):
    """A tool gave up; its last line."""


def timed(command: Sequence[object], log: Path, **environment: str) -> dict[str, float]:
    """Run a command; its wall and processor seconds and peak memory, in MB."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(map(str, command))}\n".encode())
        output.flush()
        started = time.perf_counter()
        child = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=output, env={**os.environ, **environment}, cwd=log.parent
        )
        watch = Watch(child.pid)
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
    watch.done.set()
    watch.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise ToolError(log.read_text(errors="replace").strip().splitlines()[-1][-200:])
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "memory": watch.peak / 1e6}


def installed(name: str, what: str | Path, work: Path) -> Path:
    """The Python of an environment that has a tool and what it depends on, and nothing else."""
    python = work / f"venv-{name}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", what], check=True)
    return python


def ood_audit(data: Path, images: Path, work: Path) -> Iterator[dict[str, Any]]:
    """`embed` and `report`; then also with the labelled pictures, which are prototypes and calibrate the flags."""
    store, log, root = work / "store", work / "ood-audit.log", Path(__file__).parent.parent
    python = installed("ood-audit", root, work)
    shutil.rmtree(store, ignore_errors=True)
    register = ["labels", "add", data / "labelled"]
    report = ["report", "--labels", data / "classes.txt", "--top", 100]
    path = {"PYTHONPATH": str(root)}  # the code as it is now
    cost: dict[str, float] = defaultdict(float)

    def run(*step: object) -> dict[str, float]:
        figures = timed([python, "-m", "ood_audit", *step, "--store", store], log, **path)
        return {name: (max if name == "memory" else operator.add)(cost[name], figures[name]) for name in figures}

    cost |= run("embed", images)
    without = cost | run(*report)
    yield findings(store) | {"cost": without}
    cost |= run(*register)
    cost |= run(*report)  # before the findings are looked up
    yield findings(store) | {"cost": cost}


def findings(store: Path) -> dict[str, Any]:
    """What the last report says."""
    import ood_audit as package

    opened = package.open_store(store)

    def found(sql: str) -> list[Any]:
        return opened.query(sql).rows

    def sets(kind: str) -> list[list[str]]:
        pairs = found(f"SELECT path, suggestion FROM issues WHERE kind = '{kind}'")
        return [[path, suggestion.removeprefix("keep ")] for path, suggestion in pairs]

    by_severity = "SELECT path FROM issues WHERE kind = 'label' ORDER BY severity DESC, path"
    return {
        "ood": [path for (path,) in found("SELECT path FROM report ORDER BY rank")],
        "flagged": [path for (path,) in found("SELECT path FROM report WHERE flagged")],
        "label": [path for (path,) in found(by_severity)],
        "exact": sets("exact-duplicate"),
        "near": sets("near-duplicate"),
        "unreadable": [path for (path,) in found("SELECT path FROM images WHERE status = 'error'")],
        "version": package.__version__,
    }


def peer(name: str, script: str, images: Path, work: Path, **environment: str) -> dict[str, Any]:
    """Run the script of a tool of PyPI in an environment of its own."""
    python = installed(name, name, work)
    version = subprocess.run(
        [python, "-c", f"from importlib.metadata import version; print(version('{name}'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (work / f"run_{name}.py").write_text(script)
    out = work / f"{name}.json"
    (work / f"home-{name}").mkdir(exist_ok=True)
    shutil.rmtree(work / f"work-{name}", ignore_errors=True)
    cost = timed(
        [python, work / f"run_{name}.py", images, work / f"work-{name}", out],
        work / f"{name}.log",
        SENTRY_OPT_OUT="1",  # fastdup reports home otherwise
        HOME=str(work / f"home-{name}"),
        **environment,
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"cost": cost, "version": version}


def row(name: str, found: dict[str, Any], planted: dict[str, set[str]]) -> list[str]:
    """A row of the table: each kind of fault found of those planted, and what else was flagged."""
    ood, label = planted["ood"], planted["mislabelled"]

    def ranked(paths: list[str] | None, wanted: set[str]) -> str:
        return "–" if paths is None else f"{len(wanted & set(paths[: len(wanted)]))} / {len(wanted)}"

    def flagged(paths: list[str] | None, wanted: set[str]) -> str:
        return (
            "–" if paths is None else f"{len(wanted & set(paths))} of {len(wanted)}, {len(set(paths) - wanted)} others"
        )

    def copies(kind: str) -> str:
        groups = [set(group) for key in ("exact", "near") for group in found[key]] if kind == "near" else []
        groups = groups or [set(group) for group in found[kind]]
        wanted = planted[f"{kind}-duplicate"]
        both = planted["exact-duplicate"] | planted["near-duplicate"]
        others = {name for group in groups if not group & both for name in group}
        return f"{len(wanted & set().union(*groups))} of {len(wanted)}, {len(others)} others"

    cost, unreadable = found["cost"], found["unreadable"]
    if not isinstance(unreadable, str):
        unreadable = f"{len(planted['truncated'] & set(unreadable))} of {len(planted['truncated'])}"
    return [
        f"{name} {found['version']}",
        f"{cost['wall']:.0f} s",
        f"{cost['cpu']:.0f} s",
        f"{cost['memory']:.0f} MB",
        ranked(found["ood"], ood),
        flagged(found["flagged"] if "flagged" in found else found["ood"], ood),
        ranked(found["label"], label),
        flagged(found["label"], label),
        copies("exact"),
        copies("near"),
        unreadable,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the pictures, environments and logs")
    tools = ["ood-audit", "fastdup", "cleanvision"]
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="time ood-audit and fastdup N times")
    options = parser.parse_args()
    data = options.data.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.keep or Path(temporary)).resolve()
        images = work / "images"
        if not (work / "planted.json").exists():
            planted = build(data, images, options.images, options.seed)
            (work / "planted.json").write_text(json.dumps({kind: sorted(names) for kind, names in planted.items()}))
        planted = {kind: set(names) for kind, names in json.loads((work / "planted.json").read_text()).items()}
        print(
            f"{sum(len(files) for _, _, files in os.walk(images))} pictures: "
            + ", ".join(f"{len(names)} {kind}" for kind, names in planted.items() if kind != "id"),
            flush=True,
        )
        notes, costs = [], defaultdict(list)
        columns = ["tool", "wall", "CPU", "memory", "OOD in the top 90", "OOD flagged", "labels in the top 30"]
        columns += ["labels flagged", "exact copies", "near copies", "unreadable"]

        def show(cells: Sequence[str]) -> None:
            print("| " + " | ".join(cells) + " |", flush=True)

        show(columns)
        show(["---"] * len(columns))
        if "ood-audit" in options.tools:
            names = ["ood-audit", "ood-audit with labelled pictures"]
            for name, found in zip(names, ood_audit(data, images, work), strict=True):
                show(row(name, found, planted))
                costs[name].append(found["cost"])
        for name, script in (("fastdup", FASTDUP), ("cleanvision", CLEANVISION)):
            if name in options.tools:
                try:
                    found = peer(name, script, images, work)
                except ToolError as error:
                    notes.append(f"{name} gave up ({error}); its row is without the truncated files")
                    readable = work / "readable"
                    shutil.rmtree(readable, ignore_errors=True)
                    shutil.copytree(images, readable, copy_function=os.link)
                    for path in planted["truncated"]:
                        (readable / path).unlink()
                    found = peer(name, script, readable, work) | {"unreadable": "gave up"}
                show(row(name, found, planted))
                costs[name].append(found["cost"])
                if "other" in found:
                    notes.append(f"{name} also says: {found['other']}")
        print("\n".join(notes))
        if costs["ood-audit"] and costs["fastdup"]:
            for _ in range(options.rounds - 1):
                costs["ood-audit"].append(next(ood_audit(data, images, work))["cost"])
                costs["fastdup"].append(peer("fastdup", FASTDUP, images, work)["cost"])
            for name, unit, limit in (("wall", "s", SECONDS), ("memory", "MB", MEMORY)):
                print(beside(name, unit, limit, costs["ood-audit"], costs["fastdup"]))


def beside(name: str, unit: str, limit: float, own: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    """How many times fastdup's cost ours is, in the median of the rounds."""
    pairs = [(one[name], other[name]) for one, other in zip(own, theirs, strict=True)]
    ratio = statistics.median(one / other for one, other in pairs)
    figures = ", ".join(f"{one:.1f} and {other:.1f} {unit}" for one, other in pairs)
    verdict = "holds" if ratio <= limit else "MISSED"
    return f"embed and report beside fastdup, {name}: {figures}: {ratio:.2f} × (limit {limit}): {verdict}"


if __name__ == "__main__":
    main()
