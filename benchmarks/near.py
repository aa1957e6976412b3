"""How long it takes to find the near neighbours of many images, and how many of them are found.

    python -m benchmarks.near [--images 1000000] [--dimension 384] [--sample 1]

The features are made up (`benchmarks.made`); a tenth of them are copies, turned by noise to a cosine of about 0.97. All
images are compared as `findings.duplicates` compares them before it looks at any file, or with --sample N each N-th
block of them, and the time is multiplied. Recall is of these copies; the one that the search measures itself, of the
ten nearest with a cosine of 0.85, is shown too. Memory is the peak of the process, with the made-up features in
float16.
"""

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.made import Features
from ood_audit.findings.duplicates import COSINE
from ood_audit.findings.listed import Listed

SECONDS, RECALL = 300.0, 0.95
_BATCH, _NEIGHBOURS = 8192, 65


def made(images: int, dimension: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """(N, D) features in any order, and the row of each one's copy or original; −1 where there is none."""
    rng, draw = np.random.default_rng(1), Features(1000, dimension)
    copies = images // 10
    features = np.empty((images, dimension), np.float16)
    places = rng.permutation(images)
    partner = np.full(images, -1)
    for start in range(0, images - copies, _BATCH):
        count = min(_BATCH, images - copies - start)
        rows, _ = draw.draw(count)
        features[places[start : start + count]] = rows
        few = min(count, max(0, copies - start))
        noise = Features.unit(rng.standard_normal((few, dimension), np.float32))
        twins = places[images - copies + start : images - copies + start + few]
        features[twins] = Features.unit(rows[:few] + 0.25 * noise)
        partner[twins], partner[places[start : start + few]] = places[start : start + few], twins
    return features, partner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--sample", type=int, default=1)
    options = parser.parse_args()
    features, partner = made(options.images, options.dimension)

    def batches() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(features), _BATCH):
            yield Features.unit(features[start : start + _BATCH].astype(np.float32))

    began = time.perf_counter(), time.process_time()
    index = Listed(batches, options.images, options.dimension, COSINE)
    built = time.perf_counter() - began[0], time.process_time() - began[1]
    place = np.empty(options.images, np.int64)
    place[index.order] = np.arange(options.images)
    found = asked = 0
    began = time.perf_counter(), time.process_time()
    for start in range(0, options.images, index.at_once * options.sample):
        count = min(index.at_once, options.images - start)
        _, rows = index.search(index.reconstruct_n(start, count), _NEIGHBOURS)
        twins = partner[index.order[start : start + count]]
        has = np.flatnonzero(twins >= 0)
        found += int((rows[has] == place[twins[has]][:, None]).any(axis=1).sum())
        asked += len(has)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    seconds, cpu = (one + options.sample * other for one, other in zip(built, took, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.images:,} images × {options.dimension}: {index.lists} lists, {index.probes} looked through")
    print(f"{seconds:.0f} s (limit {SECONDS:.0f}), {cpu:.0f} s of processors; built in {built[0]:.0f} s; {peak:.1f} GB")
    print(f"copies found {found / asked:.3f}, recall by the search's own measure {index.recall:.3f} (held to {RECALL})")


if __name__ == "__main__":
    main()
