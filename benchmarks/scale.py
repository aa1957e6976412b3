"""Images per second of `embed` on one machine and on a Ray cluster of one and two workers, of one core each.

    python -m benchmarks.scale FOLDER [--images 2000] [--model starter] [--rounds 3]

FOLDER is searched for pictures, which are copied up to the count. Each run is a process of its own, with a new store;
its rate is that of the images from the first 20% to 90%, so that loading the model is not in it. What comes before
is shown apart: starting the cluster (`ray`), then all up to the first row (`first image`). The limit of two workers is
twice the rate of one, as far as two cores are worth two: the local engine shows it, which sends nothing anywhere. A run
of N workers has N cores, and the process that writes the rows shares them. Memory is the peak of the run with all its
children, the cluster's own processes among them. The median of the rounds is shown.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.embed import copies
from benchmarks.memory import Watch

LIMIT = 0.9
RUNS = {"local, one core": 1, "local": 0, "ray, 1 worker": 1, "ray, 2 workers": 2}


def run(pictures: Path, model: str, name: str) -> None:
    """Runs in a process of its own: prints the rate and the seconds of starting."""
    workers = RUNS[name]
    begun = time.perf_counter()
    figures = {"ray": 0.0}
    if workers:  # the processes of the cluster inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    if name.startswith("ray"):
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        import ray

        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init("local", num_cpus=workers, object_store_memory=200 << 20, **quiet)
        figures["ray"] = time.perf_counter() - begun
    from ood_audit.embedding.run import embed

    at: dict[int, float] = {}

    def note(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if stage == "embedding":
            at[done] = time.perf_counter()

    with tempfile.TemporaryDirectory() as store:
        begun = time.perf_counter()
        result = embed(
            pictures,
            store=store,
            model=model,
            precision="fp32",  # the cluster's, whatever its processors have
            engine="ray" if name.startswith("ray") else "local",
            on_progress=note,
        )
        figures["seconds"] = time.perf_counter() - begun
    count = result.counts["added"]
    low, high = count // 5, count * 9 // 10
    figures |= {"rate": (high - low) / (at[high] - at[low]), "first": at[1] - begun, "images": count}
    print(json.dumps(figures))


def child(pictures: Path, model: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", str(pictures), model, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if RUNS[name] else dict(os.environ)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        watch = Watch(process.pid)  # from here: where it is watched, it would take a tenth of the one core
        watch.start()
        output, _ = process.communicate()
        watch.done.set()
        watch.join()
    if process.returncode:
        sys.exit(f"benchmarks.scale: {name} failed")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures | {"memory": watch.peak / 1e6}


def main() -> None:
    if "--child" in sys.argv:
        pictures, model, name = sys.argv[2:]
        run(Path(pictures), model, name)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        copies(options.folder, Path(folder), options.images)
        for _ in range(options.rounds):
            for name in RUNS:
                rounds[name].append(child(Path(folder), options.model, name))
    print(f"model {options.model}, {options.images} images, {os.cpu_count()} cores, median of {options.rounds} rounds")
    for name, runs in rounds.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        start = f"ray {middle['ray']:4.1f} s, first image {middle['first']:5.1f} s"
        print(
            f"{name:16} {middle['rate']:7.1f} images/s; {start}, all {middle['seconds']:6.1f} s; "
            f"{middle['memory']:6.0f} MB"
        )

    def ratio(name: str, other: str, times: int = 1) -> float:
        pairs = zip(rounds[name], rounds[other], strict=True)
        return float(statistics.median(a["rate"] / (times * b["rate"]) for a, b in pairs))

    scaling = ratio("ray, 2 workers", "ray, 1 worker", times=2)
    cores = ratio("local", "local, one core", times=2)
    print(f"2 workers reach {scaling:.2f} of twice one worker; the local engine on 2 cores {cores:.2f} of twice one")
    print(f"so 2 workers reach {scaling / cores:.2f} of what these cores can (held to {LIMIT})")
    print(f"2 workers reach {ratio('ray, 2 workers', 'local'):.2f} of the local engine on all cores")
    print(f"1 worker reaches {ratio('ray, 1 worker', 'local, one core'):.2f} of the local engine on one core")


if __name__ == "__main__":
    main()
