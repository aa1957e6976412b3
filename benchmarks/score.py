"""Scoring and reporting millions of images, beside what can't be done without.

    python -m benchmarks.score [--images 2000000] [--classes 1000] [--dimension 512] [--report]

A store of made-up images is written to a temporary folder (1.2 GB a million at 512 dimensions; removed afterwards) and
scored through `ood_audit.score`, twice:

    text      settings as given, no prototypes (`--no-auto --no-prototypes`)
    default   settings chosen on the data, prototypes of presumed references, and images compared with others of the
              folder (all but the background, whose names no made-up encoder can encode)

The limit of each is what any program has to do: a bare read of the same Parquet columns (image_id, path, folder,
status, embedding), and the bare products in float32 by torch, on all cores, in the same chunks:

    text      images × text                                      2 N D K operations
    default   that, (images − centre) × whitening, whitened images × prototypes, and
              images × those that they are compared with                               2 N D (2 K + D + 8192)

NumPy's product is shown beside torch's: on AMD's processors it is faster, and scoring uses it on a CPU. The limit is
measured before and after the scoring, and its mean counts: a shared machine is not always as fast. Both are shown by
the clock, and as the processor time of all threads, which others on the machine disturb less. Imports are in neither
the limit nor the scoring. Each scoring is a process of its own, whose peak memory is shown. With `--report` a report is
made of the scored store too, and its seconds are shown step by step.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT, MEMORY_GB, REPORT_SECONDS = 1.25, 3.0, 60
COLUMNS = ["image_id", "path", "folder", "status", "embedding"]


Times = NDArray[np.float64]


def seconds(work: Callable[[], object]) -> Times:
    """Of the clock, and of all threads of the process."""
    started = np.array([time.perf_counter(), time.process_time()])
    work()
    took: Times = np.array([time.perf_counter(), time.process_time()]) - started
    return took


def limit(root: str, what: str, images: int, classes: int, dimension: int) -> dict[str, Any]:
    """Runs in a process of its own: the seconds of the read and of each kind of product over all images."""
    import pyarrow.parquet as pq
    import torch

    from ood_audit.scoring.joining import SAMPLE
    from ood_audit.scoring.similarity import _CHUNK_BYTES, _WIDEST
    from ood_audit.store import open_store

    def read() -> None:
        for part in open_store(root).parts:
            with pq.ParquetFile(part) as file:
                for _ in file.iter_batches(batch_size=65_536, columns=COLUMNS):
                    pass

    chunk = _CHUNK_BYTES // (4 * min(classes, _WIDEST))
    some = torch.randn(min(images, 65_536), dimension)
    rows = [some[start : start + chunk] for start in range(0, len(some), chunk)]
    times = images / len(some)

    def product(width: int, numpy: bool = False) -> Times:
        blocks = max(1, round(times * min(1, classes / width)))  # of a wider one a part is measured

        def repeat(rows: Sequence[Any], other: Any) -> None:
            for _ in range(blocks):
                for part in rows:
                    part @ other

        with torch.inference_mode():
            other = torch.randn(width, dimension)
            operands = ([part.numpy() for part in rows], other.numpy().T) if numpy else (rows, other.T)
            scaled: Times = seconds(lambda: repeat(*operands)) * times / blocks
            return scaled

    found = {"read": seconds(read), "text": product(classes), "text by NumPy": product(classes, numpy=True)}
    if what == "default":
        found |= {"whitening": product(dimension), "others": product(SAMPLE)}
    return {name: times.tolist() for name, times in found.items()}


def run(root: str, what: str) -> dict[str, Any]:
    """Runs in a process of its own: scores, or reports, and says how long that took and what it needed."""
    import ood_audit
    from ood_audit import ScoreSettings
    from ood_audit.scoring import plan, recipe, table

    assert plan and recipe and table  # imported by now, as what the limit needs is before it is timed

    settings = ScoreSettings(background=False) if what == "default" else ScoreSettings(auto=False, prototypes=False)
    steps: dict[str, float] = {}
    if what == "report":
        _time_steps(steps)
    work = ood_audit.report if what == "report" else ood_audit.score
    took = seconds(lambda: work(root, settings=settings))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": took.tolist(), "peak_gb": peak, "steps": steps}


def _time_steps(steps: dict[str, float]) -> None:
    """Have the steps of a report timed."""
    from ood_audit.findings import copies
    from ood_audit.findings import decide as decisions
    from ood_audit.findings import records as issues
    from ood_audit.reports import content, ranking
    from ood_audit.reports import run as reports

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **options)
            steps[name] = steps.get(name, 0.0) + time.perf_counter() - started
            return result

        return call

    for module, name in (
        (reports, "score"),
        (copies, "current"),
        (decisions, "decide"),
        (decisions, "save"),
        (issues, "write"),
        (ranking, "top"),
        (ranking, "counts"),
        (ranking, "write_all"),
        (ranking, "histogram"),
        (content, "look_around"),
        (content, "gather"),
        (reports, "render"),
    ):
        setattr(module, name, timed(f"{module.__name__.removeprefix('ood_audit.')}.{name}", getattr(module, name)))


def child(what: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.score", "--child", what, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if "--child" in sys.argv:
        work, where, *rest = sys.argv[sys.argv.index("--child") + 1 :]
        print(json.dumps(limit(where, rest[0], *map(int, rest[1:])) if work == "limit" else run(where, work)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--only", choices=("text", "default"), help="one of the two ways to score")
    parser.add_argument("--report", action="store_true", help="also make a report, and time its steps")
    parser.add_argument("--folder", help="where the store is made, instead of the system's temporary folder")
    options = parser.parse_args()
    from benchmarks.made import make_store

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder) / "store"
        took = seconds(lambda: make_store(root, options.images, options.classes, options.dimension))
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e9
        print(f"{options.images:,} images × {options.dimension} × {options.classes:,} classes: {size:.1f} GB, ", end="")
        print(f"written in {took[0]:.0f} s", flush=True)
        for what in ("text", "default"):
            if options.only not in (None, what):
                continue
            made = root, what, options.images, options.classes, options.dimension
            before, found, after = child("limit", *made), child(what, root), child("limit", *made)
            bare = {name: (np.array(before[name]) + np.array(after[name])) / 2 for name in before}
            products = bare["text"] if what == "text" else 2 * bare["text"] + bare["whitening"] + bare["others"]
            for i, name in enumerate(("by the clock", "of processors")):
                took, of, read = found["seconds"][i], products[i], bare["read"][i]
                print(
                    f"{what:8} {took:6.1f} s {name}; products {of:6.1f} s + read {read:4.1f} s: "
                    f"{took / (of + read):.2f} of that (held to {LIMIT})",
                    flush=True,
                )
            print(
                f"{what:8} images × text by NumPy: {bare['text by NumPy'][0]:.1f} s, by torch {bare['text'][0]:.1f} s"
            )
            print(f"{what:8} peak memory {found['peak_gb']:.2f} GB (held to {MEMORY_GB})", flush=True)
        if options.report:
            child("text", root)  # as scored before
            found = child("report", root)
            print(
                f"report --top 100 of the scored store: {found['seconds'][0]:.1f} s (held to {REPORT_SECONDS}); "
                f"peak {found['peak_gb']:.2f} GB"
            )
            for step, took in sorted(found["steps"].items(), key=lambda item: -item[1]):
                print(f"  {step:24} {took:7.2f} s")


if __name__ == "__main__":
    main()
