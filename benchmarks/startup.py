"""Start-up time of the commands that should answer at once, beside the imports that they can't do without.

    python -m benchmarks.startup STORE [--images FOLDER]

`--help` is held to 2 × `python -c "import click"`, `query` to 2 × and `status` to 1.5 × `python -c "import duckdb"`;
`embed` of FOLDER, a hundred pictures at most, into a new store to 6 seconds. Each is the best of
several, as nothing but the machine's other work makes a start slower. `cpu` is the processor time of the same run, all
threads together, which that work hardly touches.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMBED = 6.0  # seconds


def best(*command: str, rounds: int = 7, fresh: bool = False) -> tuple[float, float]:
    """The least seconds and processor seconds of a command; `fresh` gives it a new store each time."""
    times, cpus = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            before, started = _cpu(), time.perf_counter()
            store = ["--store", f"{folder}/store"] if fresh else []
            subprocess.run([*command, *store], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
            cpus.append(_cpu() - before)
    return min(times), min(cpus)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    store, tool = options.store, str(Path(sys.executable).with_name("ood-audit"))
    rows = [
        ("--help", [tool, "--help"], "import click", 2.0),
        ("status", [tool, "status", "--store", store], "import duckdb", 1.5),
        ("query", [tool, "query", "SELECT count(*) FROM images", "--store", store], "import duckdb", 2.0),
    ]
    print(f"{'command':8} {'seconds':>8} {'cpu':>7}  {'beside':14} {'seconds':>8} {'cpu':>7} {'ratio':>6}  held to")
    for name, command, beside, limit in rows:
        (mine, cpu), (theirs, their_cpu) = best(*command), best(sys.executable, "-c", beside)
        figures = f"{mine:8.3f} {cpu:7.3f}  {beside:14} {theirs:8.3f} {their_cpu:7.3f} {mine / theirs:6.2f}  {limit}"
        print(f"{name:8} {figures}", flush=True)
    if options.images:
        imports, import_cpu = best(sys.executable, "-c", "import torch, open_clip", rounds=3)
        mine, cpu = best(tool, "embed", str(options.images), rounds=3, fresh=True)
        print(
            f"embed    {mine:8.3f} {cpu:7.3f}  {'torch, open_clip':14} {imports:6.3f} {import_cpu:7.3f} "
            f"{mine / imports:6.2f}  {EMBED} s: {'holds' if mine <= EMBED else 'MISSED'}"
        )
    print(f"peak memory of these: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
