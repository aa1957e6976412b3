"""What a large audit takes: measured here, computed, or assumed, and which is which.

    python -m benchmarks.sizing FOLDER

Prints the tables of docs/sizing.md. FOLDER is searched for pictures, which are enlarged to the sizes asked about.
Measured on one core of this machine: decoding, the writer, and what the driver of a Ray run does a row. Computed: the
operations of a forward pass (torch's counter). Assumed: peak rates and prices of GPUs, and the share of the peak that
a forward pass gets.
"""

import argparse
import io
import itertools
import logging
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.images.decode import Decoded, decode
from ood_audit.images.sources import ImageRef, file_uri
from ood_audit.store import create_store
from ood_audit.store.index import build_index
from ood_audit.store.parts import PartWriter

SIZES = [(500, 375), (1024, 768), (4000, 3000)]
MODELS = ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
GPUS = {"L4": (121e12, 0.8, 8), "A100": (312e12, 2.0, 12), "H100": (989e12, 3.0, 16)}  # FLOP/s, $/h, cores: assumed
SHARE = 0.3  # of the peak: assumed
COUNTS = {"1 M": 10**6, "100 M": 10**8, "1 B": 10**9}
ROWS = 50_000


def decoding(folder: Path) -> dict[tuple[int, int], tuple[float, float]]:
    """Images a second and core, and bytes an image, by size; resized to 224 as for a ViT."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    to_pil = image_transform_v2(PreprocessCfg(), is_train=False)
    resize = [step for step in to_pil.transforms if type(step).__name__ in ("Resize", "CenterCrop")]

    def prepare(image: Image.Image) -> np.ndarray:
        for step in resize:
            image = step(image)
        return np.asarray(image)

    sources = list(itertools.islice(sorted(folder.rglob("*.jpg")), 0, None, 10))[:40]
    rates = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            paths = []
            for number, source in enumerate(sources):
                out = io.BytesIO()
                with Image.open(source) as image:
                    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
                paths.append(Path(temporary) / f"{size[0]}-{number}.jpg")
                paths[-1].write_bytes(out.getvalue())
            started = time.process_time()
            for path in paths:
                assert decode(file_uri(str(path)), prepare).error is None
            seconds = time.process_time() - started
            rates[size] = len(paths) / seconds, sum(path.stat().st_size for path in paths) / len(paths)
    return rates


def rows(dimension: int) -> tuple[float, float, float, float]:
    """Rows a second of processor time that the writer takes, and the Ray driver; bytes a row of parts and of index."""
    from ood_audit.embedding.ray import _FACTS, _RESULT
    from ood_audit.embedding.work import Work, write_batch

    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, dimension)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    work, results = [], []
    for number in range(ROWS):
        name = rng.bytes(6).hex()
        path = f"{number % 1000:03d}/{name}.jpg"
        image = ImageRef(f"file:///data/train/{path}", "/data/train", path, 10**5 + number, 10**18 + number * 10**6)
        work.append(Work(image, True))
        facts: dict[str, Any] = {"width": 500, "height": 375, "format": "JPEG", "size_bytes": image.size_bytes}
        facts |= {"mtime_ns": image.mtime_ns, "content_hash": blake2b(name.encode(), digest_size=16).hexdigest()}
        results.append(facts | {"piece": 0, "embedding": features[number].tobytes()})
    table = pa.Table.from_pylist(results, schema=_RESULT)
    decoded = [Decoded(**{name: value for name, value in result.items() if name in _FACTS}) for result in results]
    with tempfile.TemporaryDirectory() as temporary:
        identity = EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", dimension)
        store = create_store(Path(temporary) / "store", identity)
        started = time.process_time()
        with PartWriter(store, "run") as writer:
            for _ in write_batch(writer, work, decoded, features):
                pass
        alone = time.process_time() - started
        parts = sum(path.stat().st_size for path in store.parts) / ROWS
        build_index(store)
        index = sum(path.stat().st_size for path in store.index.parent.iterdir()) / ROWS
        other = create_store(Path(temporary) / "other", identity)
        started = time.process_time()
        with PartWriter(other, "run") as writer:
            for start in range(0, ROWS, 2048):
                some = table.slice(start, 2048).to_pylist()
                vectors = np.stack([np.frombuffer(row["embedding"], np.float32) for row in some])
                facts_of = [Decoded(**{name: row[name] for name in _FACTS}) for row in some]
                for _ in write_batch(writer, work[start : start + 2048], facts_of, vectors):
                    pass
        driver = time.process_time() - started
    return ROWS / alone, ROWS / driver, parts, index


def operations(name: str) -> float:
    """Of one forward pass of the image tower: multiplications and additions."""
    logging.disable(logging.WARNING)  # that the weights are random
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = open_clip.create_model(name, require_pretrained=False, device="meta")
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model.encode_image(torch.empty(1, 3, 224, 224, device="meta"))
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print("| picture (JPEG, quality 90) | bytes | decoded, resized: images/s a core (measured) |\n| --- | --- | --- |")
    rates = decoding(options.folder)
    for (width, height), (rate, size) in rates.items():
        print(f"| {width} × {height} | {size / 1e3:.0f} kB | {rate:.0f} |")
    writes, driver, parts, index = rows(512)
    print(f"\nparts {parts:.0f} bytes a row, index {index:.0f} (512 dimensions; measured)")
    print(f"writer {writes:.0f} rows/s, {writes * parts / 1e6:.0f} MB/s (measured)")
    print(f"driver of a Ray run {driver:.0f} rows/s, the writer included (measured)")
    rate, size = rates[SIZES[0]]
    print(
        "\n| model | GFLOP an image (computed) | GPU | the GPU alone | its cores decode | images/s a GPU | reads "
        "| 1 M | 100 M | 1 B | $ a million |"
    )
    print("| " + " | ".join(["---"] * 11) + " |")
    for model in MODELS:
        flops = operations(model)
        for gpu, (peak, price, cores) in GPUS.items():
            alone = peak * SHARE / flops
            both = min(alone, cores * rate)
            hours = [count / both / 3600 for count in COUNTS.values()]
            cells = [model, f"{flops / 1e9:.1f}", f"{gpu}, {cores} cores", f"{alone:,.0f}", f"{cores * rate:,.0f}"]
            cells += [f"{both:,.0f}", f"{both * size / 1e6:,.0f} MB/s", *(f"{h:,.1f} h" for h in hours)]
            print("| " + " | ".join([*cells, f"{hours[0] * price:.2f}"]) + " |")


if __name__ == "__main__":
    main()
