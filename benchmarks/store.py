"""FAISS indexes by size, compaction, and queries, beside what they are held to.

    python -m benchmarks.store [--images 200000 1000000 2000000] [--dimension 512] [--parts 2000]

A store of made-up images in many parts, whose features are clustered as those of pictures are (see `benchmarks.made`),
is compacted; then its index is built and asked for the ten nearest of images that it has not seen. Recall is measured
here once more, against exact search with float32 features, which is also the limit of the time; index.json has the
figure that the build itself measured. Sizes are of the index's file.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT = 0.95
ASKED, NEAREST = 500, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200_000, 1_000_000, 2_000_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=200, help="of the store before it is compacted")
    parser.add_argument("--folder", help="where the stores are made, instead of the system's temporary folder")
    options = parser.parse_args()
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder) / "store", images, options.classes, options.dimension, options.parts)


def measure(root: Path, images: int, classes: int, dimension: int, parts: int) -> None:
    import faiss

    from benchmarks.made import Features, make_store
    from ood_audit.store.compaction import compact
    from ood_audit.store.index import build_index
    from ood_audit.store.parts import iter_features

    store = make_store(root, images, classes, dimension, part_rows=-(-images // parts))
    started = time.perf_counter()
    done = compact(store)
    took = time.perf_counter() - started
    print(f"{images:,} images: compact, {done.parts_before} parts to {done.parts_after}: {took:.1f} s", flush=True)
    for sql in (
        "SELECT count(*) FROM images",
        "SELECT folder, count(*) FROM images GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
    ):
        started = time.perf_counter()
        store.query(sql)
        print(f"  query {sql[:40]:40} {time.perf_counter() - started:6.2f} s", flush=True)
    started = time.perf_counter()
    build_index(store)
    took = time.perf_counter() - started
    meta = json.loads(store.index.with_name("index.json").read_text())
    size = store.index.stat().st_size
    print(f"  built in {took:.1f} s on {faiss.get_num_gpus() or 'no'} GPU, {size / 1e6:,.0f} MB: {meta}", flush=True)

    asked, _ = Features(classes, dimension, seed=0).draw(ASKED)  # of the same classes, not the same images
    asked = Features.unit(asked + 0.01 * np.random.default_rng(99).standard_normal(asked.shape, np.float32))
    started = time.perf_counter()
    best, rows, start = np.full((ASKED, NEAREST), -np.inf, np.float32), np.zeros((ASKED, NEAREST), np.int64), 0
    for batch in iter_features(store):
        cosines = asked @ batch.features.T
        near = np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]
        both = np.concatenate([best, np.take_along_axis(cosines, near, axis=1)], axis=1)
        order = np.argsort(-both, axis=1)[:, :NEAREST]
        best = np.take_along_axis(both, order, axis=1)
        rows = np.take_along_axis(np.concatenate([rows, start + near], axis=1), order, axis=1)
        start += len(batch.codes)
    exact = time.perf_counter() - started
    index = faiss.read_index(str(store.index))
    started = time.perf_counter()
    found = index.search(asked, NEAREST)[1]
    took = time.perf_counter() - started
    recall = np.mean([len(np.intersect1d(a, b)) / NEAREST for a, b in zip(found, rows, strict=True)])
    print(
        f"  {ASKED / took:,.0f} queries/s (exact search: {ASKED / exact:,.0f}); "
        f"recall@{NEAREST} {recall:.3f} (held to {LIMIT})",
        flush=True,
    )


if __name__ == "__main__":
    main()
