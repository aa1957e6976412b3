"""How `embed --engine ray` scales from 1 worker to 16, with the workers' encoders played by sleeps.

    python -m benchmarks.cluster [--workers 16] [--rate 100] [--seconds 60]

What is played: a worker "decodes and embeds" so many images a second by sleeping, and makes up the features. What is
real: Ray with its actors, the pieces of work and the messages, the driver, and the process that writes the rows. So 16
workers run on any number of cores. The limit of N workers is N times the rate of one. Rates are slopes of a straight
line through the images from the first 20% to 80%, between which no worker starts and none runs out of work.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

LIMIT = 0.9
DIMENSION = 512


def played_encoder(rate: float) -> type:
    """Workers of the Ray engine whose pipeline sleeps; a local class travels to the workers by value."""
    from ood_audit.embedding import ray as engine

    class Sleeping:
        batch_limit = None

        def __init__(self) -> None:
            self._one_after_another = ThreadPoolExecutor(1)

        def submit(self, uris: list[str]) -> "Future[Any]":
            return self._one_after_another.submit(self._embed, uris)

        def _embed(self, uris: list[str]) -> Any:
            import numpy as np

            from ood_audit.images.decode import Decoded

            time.sleep(len(uris) / rate)
            features = np.random.default_rng(len(uris[0])).standard_normal((len(uris), DIMENSION)).astype(np.float32)
            return [Decoded(size_bytes=1, mtime_ns=1) for _ in uris], features

    class Played(engine._Encoder):
        def _load(self, workers: engine.Workers) -> tuple[Any, Any]:
            return Sleeping(), Sleeping()

    return Played


def run(workers: int, rate: float, seconds: float) -> None:
    """Runs in a process of its own, with a cluster of its own: prints images/s."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=workers, object_store_memory=200 << 20, **quiet)
    from ood_audit.embedding import ray as engine
    from ood_audit.embedding.work import Work
    from ood_audit.encoders.identity import EncoderIdentity
    from ood_audit.images.sources import ImageRef
    from ood_audit.store import create_store
    from ood_audit.store.parts import PartWriter

    identity = EncoderIdentity("played", None, "played", "0" * 64, {}, "gelu", "fp32", DIMENSION)
    played = played_encoder(rate)
    vars(engine)["_Encoder"] = played
    encoder = engine.load_same_encoder(identity, device="cpu")
    images = int(workers * rate * seconds / 0.6)
    work = (Work(ImageRef(f"file:///in/{i:08}.jpg", "/in", f"{i:08}.jpg", 1, 1), True) for i in range(images))
    at: list[float] = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        PartWriter(create_store(f"{temporary}/store", identity), "run") as writer,
    ):
        at += [time.perf_counter() for _ in engine.embed_images(work, encoder, writer)]
    assert len(at) == images
    low, high = images // 5, images * 4 // 5
    print("rate", statistics.linear_regression(at[low:high], range(low, high)).slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100, help="images/s of a worker alone")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run(options.only, options.rate, options.seconds)
        return
    rates = {}
    for workers in (1, options.workers):
        command = [sys.executable, "-m", "benchmarks.cluster", "--only", str(workers)]
        command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rates[workers] = next(float(line[5:]) for line in done.stdout.splitlines() if line.startswith("rate "))
        print(
            f"{workers:3} played workers: {rates[workers]:,.1f} images/s of {workers * options.rate:,.0f}", flush=True
        )
    scaling = rates[options.workers] / (options.workers * rates[1])
    verdict = "holds" if scaling >= LIMIT else "does not hold"
    print(f"{options.workers} workers reach {scaling:.2f} of {options.workers} times one (limit {LIMIT}): {verdict}")


if __name__ == "__main__":
    main()
