"""Images per second of `embed`, beside the limit on the same machine, and its peak memory.

    python -m benchmarks.embed FOLDER [--images 1000 5000] [--model starter] [--model ViT-B-32] [--rounds 5]
        [--precision auto]

FOLDER is searched for pictures, which are copied (with a byte appended, so that all are distinct) up to each of the
counts. A bare architecture, such as ViT-B-32, gets random weights: they are as fast as trained ones.

The limit is measured in the same run, on the same pictures. `decode` is the rate of reading, decoding and resizing
alone, on all cores; `forward` that of the model alone, the faster of one pass at a time on all cores and of passes
side by side, as `embed` runs them. On a CPU both share the cores, so the limit is 1 / (1/decode + 1/forward); on a
GPU it is the smaller of the two. In each round all are measured in turn, and the ratio is taken within the round, so
that the neighbours of a shared machine slow both sides alike; medians are shown. `cpu ms` is the processor time of an
image, which neighbours hardly touch: what `embed` takes above the sum of the two is its own work.

A model that is slow gets fewer of the pictures for its rates, so that a round takes about `--seconds`. Peak memory is
of the first model, at each of the counts; beside it is what importing torch, DuckDB and PyArrow alone takes, of which
CUDA's libraries, which torch loads without a GPU as well, are most. The last table is of large JPEGs, FOLDER's pictures
enlarged to 2000 × 1500 with grain: decoded in full, and at the reduced scale that `embed` uses.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.memory import own_peak

LIMIT = 0.9
MEMORY = 900  # MB
LARGE = (2000, 1500)


def found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))


def copies(folder: Path, into: Path, count: int) -> None:
    sources = found(folder)
    for number in range(count):
        source = sources[number % len(sources)]
        target = into / f"{number // 1000:03d}" / f"{number:07d}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes() + bytes([number % 256]))


def large(folder: Path, into: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    sources = found(folder)
    for number in range(count):
        with Image.open(sources[number * 17 % len(sources)]) as image:
            pixels = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), np.float32)
        grain = dice.normal(0, 3, (*pixels.shape[:2], 1))
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(into / f"{number:05}.jpg", quality=92)


def random_weights(architecture: str, into: Path) -> Path:
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(architecture, pretrained=None)
    path = into / f"{architecture}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def measure(count: int, work: Callable[[], float | None]) -> tuple[float, float]:
    """Images a second, and processor milliseconds an image; `work` may return when it began."""
    began, cpu = time.perf_counter(), time.process_time()
    began = work() or began
    return count / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / count


def middle(rows: list[tuple[float, float]]) -> list[float]:
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def limits(
    pictures: Path, model: str, weights: str | None, precision: str, rounds: int, seconds: float, reduced: bool
) -> None:
    """Runs in a process of its own: prints the rates of decoding, of the forward pass, and of both in `embed`."""
    import ood_audit.encoders.loading as loading
    from ood_audit.embedding.run import embed
    from ood_audit.encoders.cpu import worker_count
    from ood_audit.images.decode import decode

    encoder = loading.load_encoder(model, weights=weights, precision=precision)
    if not reduced:
        encoder.decode_size = None
    loading.load_encoder = lambda *args, **options: encoder  # loading is not what is measured
    loading.load_same_encoder = lambda *args, **options: encoder
    size, files = encoder.batch_size, found(pictures)
    uris = [path.absolute().as_uri() for path in files]

    def decoded(uri: str) -> Any:
        return decode(uri, encoder.prepare, at_least=encoder.decode_size).pixels

    def decoding() -> None:
        with ThreadPoolExecutor(worker_count()) as pool:
            for _ in pool.map(lambda uri: decoded(uri) is None, uris):
                pass

    def one_at_a_time() -> None:
        for start in range(0, len(pixels), size):
            encoder.encode_images(pixels[start : start + size])

    def side_by_side() -> None:
        with encoder.forward_pool(worker_count())[0] as pool:
            list(pool.map(lambda i: encoder.encode_images(pixels[i : i + size]), range(0, len(pixels), size)))

    def embedding() -> float:
        began = [0.0]

        def start(_: object) -> None:
            began[0] = time.perf_counter()

        with tempfile.TemporaryDirectory() as store:
            lists = Path(store) / "pictures.txt"
            lists.write_text("\n".join(str(path.absolute()) for path in files))
            embed(lists, store=Path(store) / "store", model=model, weights=weights, precision=precision, on_start=start)
        return began[0]

    pixels = [p for uri in uris[: 4 * size] if (p := decoded(uri)) is not None]
    side_by_side()
    speed = measure(len(pixels), side_by_side)[0]
    files = files[: max(8 * size, int(speed * seconds))]
    uris = uris[: len(files)]
    pixels = [p for uri in uris if (p := decoded(uri)) is not None]
    results: dict[str, list[tuple[float, float]]] = {}
    ratios = []
    for _ in range(rounds):
        for name, count, work in (
            ("decode", len(uris), decoding),
            ("one at a time", len(pixels), one_at_a_time),
            ("side by side", len(pixels), side_by_side),
            ("embed", len(uris), embedding),
        ):
            results.setdefault(name, []).append(measure(count, work))
        last = {name: values[-1][0] for name, values in results.items()}
        forward = max(last["one at a time"], last["side by side"])
        limit = 1 / (1 / last["decode"] + 1 / forward) if str(encoder.device) == "cpu" else min(last["decode"], forward)
        ratios.append((last["embed"] / limit, limit))
    medians = {name: middle(rows) for name, rows in results.items()}
    ratio, limit = middle(ratios)
    facts = {"device": str(encoder.device), "precision": encoder.precision, "images": len(uris)}
    print(json.dumps({"rates": medians, "ratio": ratio, "limit": limit, **facts}))


def peak(pictures: Path, model: str, weights: str | None) -> None:
    """Runs in a process of its own: prints the peak memory of one `embed`, in MB."""
    from ood_audit.embedding.run import embed

    with tempfile.TemporaryDirectory() as store:
        embed(pictures, store=store, model=model, weights=weights)
    print(json.dumps(own_peak()))


def imports(_: Path) -> None:
    """Runs in a process of its own: prints the memory of what can't be done without, in MB."""
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    print(json.dumps(own_peak()))


def child(what: str, pictures: Path, *rest: object) -> Any:
    command = [sys.executable, "-m", "benchmarks.embed", "--child", json.dumps([what, str(pictures), *rest])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.embed: measuring {[what, *rest][:2]} failed")
    return json.loads(done.stdout.splitlines()[-1])


def show(title: str, result: dict[str, Any]) -> None:
    print(f"\n{title}: {result['precision']} on {result['device']}, {result['images']} images")
    print(f"{'':24} {'images/s':>9} {'cpu ms':>8}")
    names = {"one at a time": "forward, one at a time", "side by side": "forward, side by side"}
    for name, (speed, cpu) in result["rates"].items():
        print(f"{names.get(name, name):24} {speed:9.1f} {cpu:8.2f}")
    print(f"{'limit':24} {result['limit']:9.1f}")
    print(f"embed reaches {result['ratio']:.2f} of the limit (held to {LIMIT})", flush=True)


def main() -> None:
    if "--child" in sys.argv:
        what, pictures, *rest = json.loads(sys.argv[-1])
        works: dict[str, Callable[..., None]] = {"limits": limits, "peak": peak, "imports": imports}
        works[what](Path(pictures), *rest)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--large", type=int, default=100, help="large JPEGs; 0 for none")
    parser.add_argument("--model", action="append", help="repeatable  [default: starter and ViT-B-32]")
    parser.add_argument("--precision", default="auto", help="as of `embed`; peak memory is of `auto`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models: list[tuple[str, str | None]] = []
        for model in options.model or ["starter", "ViT-B-32"]:
            bare = model != "starter" and not set(model) & {"/", ":"}
            models.append((model, str(random_weights(model, Path(folder))) if bare else None))
        memory = {}
        for count in sorted(options.images):
            pictures = Path(folder) / str(count)
            copies(options.folder, pictures, count)
            memory[count] = child("peak", pictures, *models[0])
        few = Path(folder) / str(min(options.images))
        for model, weights in models:
            title = f"{model} (random weights)" if weights else model
            show(title, child("limits", few, model, weights, options.precision, options.rounds, options.seconds, True))
        print()
        alone = child("imports", few)
        for count, megabytes in memory.items():
            print(
                f"peak memory of {models[0][0]} at {count:6} images: {megabytes:6.0f} MB (limit {MEMORY}), of which "
                f"imports alone {alone:6.0f} MB"
            )
        if options.large:
            pictures = Path(folder) / "large"
            pictures.mkdir()
            large(options.folder, pictures, options.large)
            for reduced in (False, True):
                title = f"JPEGs of {LARGE[0]} × {LARGE[1]}, {'reduced scale' if reduced else 'in full'}, {models[0][0]}"
                show(
                    title,
                    child("limits", pictures, *models[0], options.precision, options.rounds, options.seconds, reduced),
                )


if __name__ == "__main__":
    main()
