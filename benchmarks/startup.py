"""Start-up time of the commands that should answer at once, beside the imports that they can't do without.

    python -m benchmarks.startup STORE

`--help` is held to 2 × `python -c "import click"`; `status` and `query` to 2 × `python -c "import duckdb"`.
Each is the best of seven, as nothing but the machine's other work makes a start slower.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 2.0


def best(*command: str) -> float:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    store = parser.parse_args().store
    tool = str(Path(sys.executable).with_name("ood-audit"))
    rows = [
        ("--help", [tool, "--help"], "import click"),
        ("status", [tool, "status", "--store", store], "import duckdb"),
        ("query", [tool, "query", "SELECT count(*) FROM images", "--store", store], "import duckdb"),
    ]
    print(f"{'command':8} {'seconds':>8}  {'beside':14} {'seconds':>8} {'ratio':>6}  held to")
    for name, command, beside in rows:
        mine, theirs = best(*command), best(sys.executable, "-c", beside)
        print(f"{name:8} {mine:8.3f}  {beside:14} {theirs:8.3f} {mine / theirs:6.2f}  {LIMIT}")
    print(f"peak memory of these: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
