"""What a re-run of `embed` over files that have not changed costs, beside a bare walk with a stat call for each.

    python -m benchmarks.rescan FOLDER [--files 1000000] [--work FOLDER]

FOLDER has a few pictures; hard links to copies of them are made, in folders of 1,000 files, and a store that holds them
(its rows are written without encoding anything). Then, in one run and each in a process of its own: `os.scandir` and
`stat` of all files, and `embed`, which must find all of them unchanged. The rounds alternate; the median is shown.
`embed` does more than the walk: it names each file, and compares its size and time with those in the store. Seconds of
all threads' processors are shown too, as others on the machine disturb them less.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LIMIT = 2.0
_FOLDER = 1000
_LINKS = 30_000  # of one file; file systems allow for 32,000 or more
_DIMENSION = 512


def make_files(folder: Path, into: Path, count: int) -> None:
    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for start in range(0, count, _FOLDER):
        target = into / f"{start // _FOLDER:05d}"
        target.mkdir(parents=True)
        for number in range(start, min(start + _FOLDER, count)):
            if number % _LINKS == 0:
                original = into.parent / f"original-{number}{pictures[0].suffix}"
                shutil.copy(pictures[number // _LINKS % len(pictures)], original)
            os.link(original, target / f"img_{number:08d}.jpg")


def make_store(root: Path, files: Path) -> None:
    from ood_audit.encoders.identity import EncoderIdentity
    from ood_audit.images.decode import Decoded
    from ood_audit.images.sources import ScanNotes, scan
    from ood_audit.store import create_store
    from ood_audit.store.parts import PartWriter

    store = create_store(root, EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", _DIMENSION))
    feature = np.full(_DIMENSION, _DIMENSION**-0.5, np.float32)
    with PartWriter(store, "run") as writer:
        for image in scan(os.path.realpath(files), ScanNotes()):
            facts = Decoded(300, 200, "JPEG", image.size_bytes, image.mtime_ns, image.image_id)
            writer.add(image, facts, feature, supersedes=False)


def bare(root: str) -> int:
    count = 0
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    entry.stat()
                    count += 1
    return count


def child(what: str, files: Path, store: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.rescan", "--child", what, str(files), str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def in_child(what: str, files: str, store: str) -> None:
    from ood_audit.embedding.run import embed

    started, cpu = time.perf_counter(), time.process_time()
    if what == "bare":
        count = bare(files)
    else:
        result = embed(files, store=store)
        count = result.counts["unchanged"]
        if +result.counts != {"unchanged": count}:
            raise SystemExit(f"not all are unchanged: {result.counts}")
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "count": count, "peak": peak}))


def main() -> None:
    if "--child" in sys.argv:
        in_child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a few pictures")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where to make the files  [default: the system's temporary folder]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        files, store = Path(work) / "files", Path(work) / "store"
        make_files(options.folder, files, options.files)
        make_store(store, files)
        rounds = [(child("bare", files, store), child("embed", files, store)) for _ in range(options.rounds)]
    for walked, embedded in rounds:
        if walked["count"] != options.files or embedded["count"] != options.files:
            raise SystemExit(f"of {options.files} files, {walked['count']} and {embedded['count']} were looked at")
    walks, runs = zip(*rounds, strict=True)

    def middle(key: str, of: Sequence[dict[str, float]]) -> float:
        return statistics.median(one[key] for one in of)

    ratio = statistics.median(run["seconds"] / walk["seconds"] for walk, run in rounds)
    print(f"{options.files:,} unchanged files, median of {options.rounds} rounds")
    for name, of in (("bare scandir and stat", walks), ("embed, run again", runs)):
        print(f"{name:22} {middle('seconds', of):6.2f} s  {middle('cpu', of):6.2f} s of processors")
    print(f"ratio {ratio:.2f} (held to {LIMIT})")
    print(f"peak memory of embed   {max(one['peak'] for one in runs):6.0f} MB")


if __name__ == "__main__":
    main()
