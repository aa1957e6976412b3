"""Images per second of `embed`, beside the limit on the same machine, and its peak memory.

    python -m benchmarks.embed FOLDER [--images 1000 5000] [--model starter]

FOLDER is searched for pictures, which are copied (with a byte appended, so that all are distinct) up to each of the
counts. The limit is measured in the same run, on the same pictures: `decode` is the rate of reading, decoding and
resizing alone, `forward` that of the model alone. On a CPU both share the cores, so the limit is
1 / (1/decode + 1/forward); on a GPU it is the smaller of the two. The median of three rounds is shown, as the
neighbours of a shared machine come and go.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIMIT = 0.85


def copies(folder: Path, into: Path, count: int) -> None:
    sources = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number in range(count):
        source = sources[number % len(sources)]
        target = into / f"{number // 1000:03d}" / f"{number:07d}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes() + bytes([number % 256]))


def rate(count: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def limits(pictures: Path, model: str, rounds: int) -> None:
    """Runs in a process of its own: prints the rates of decoding, of the forward pass, and of both in `embed`."""
    from ood_audit.embedding import embed
    from ood_audit.encoders.clip import load_encoder
    from ood_audit.encoders.device import worker_count
    from ood_audit.images.decode import decode
    from ood_audit.images.sources import ScanNotes, scan

    encoder = load_encoder(model)
    images = [image.uri for image in scan(str(pictures), ScanNotes())]
    some = images[: 20 * encoder.batch_size]
    pixels = [p for uri in some if (p := decode(uri, encoder.prepare).pixels) is not None]

    def decoding() -> None:
        with ThreadPoolExecutor(worker_count()) as pool:
            for _ in pool.map(lambda uri: decode(uri, encoder.prepare).error, images):
                pass

    def forward() -> None:
        for start in range(0, len(pixels), encoder.batch_size):
            encoder.encode_images(pixels[start : start + encoder.batch_size])

    forward()
    results: dict[str, list[float]] = {"decode": [], "forward": [], "embed": [], "ratio": []}
    for _ in range(rounds):
        before = rate(len(pixels), forward)
        results["decode"].append(rate(len(images), decoding))
        with tempfile.TemporaryDirectory() as store:
            started = [0.0]

            def start(_: object, started: list[float] = started) -> None:
                started[0] = time.perf_counter()  # loading the model is not what is measured

            embed(pictures, store=store, model=model, on_start=start)
            results["embed"].append(len(images) / (time.perf_counter() - started[0]))
        results["forward"].append((before + rate(len(pixels), forward)) / 2)
        slowest = (results["decode"][-1], results["forward"][-1])
        limit = min(slowest) if encoder.device.type != "cpu" else 1 / sum(1 / r for r in slowest)
        results["ratio"].append(results["embed"][-1] / limit)
    print(
        json.dumps(
            {name: statistics.median(values) for name, values in results.items()} | {"device": str(encoder.device)}
        )
    )


def peak(pictures: Path, model: str) -> None:
    """Runs in a process of its own: prints the peak memory of one `embed`, in MB."""
    from ood_audit.embedding import embed

    with tempfile.TemporaryDirectory() as store:
        embed(pictures, store=store, model=model)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def child(what: str, pictures: Path, *rest: object) -> Any:
    command = [sys.executable, "-m", "benchmarks.embed", "--child", what, str(pictures), *map(str, rest)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if "--child" in sys.argv:
        what, pictures, model, *rest = sys.argv[2:]
        limits(Path(pictures), model, int(rest[0])) if what == "limits" else peak(Path(pictures), model)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    memory = {}
    for count in options.images:
        with tempfile.TemporaryDirectory() as pictures:
            copies(options.folder, Path(pictures), count)
            memory[count] = child("peak", Path(pictures), options.model)
            if count == options.images[0]:
                rates = child("limits", Path(pictures), options.model, options.rounds)
    print(f"model {options.model} on {rates['device']}, {options.images[0]} images, median of {options.rounds} rounds")
    for name in ("decode", "forward", "embed"):
        print(f"{name:8} {rates[name]:8.1f} images/s")
    print(f"embed reaches {rates['ratio']:.2f} of the limit (held to {LIMIT})")
    for count, megabytes in memory.items():
        print(f"peak memory at {count:6} images: {megabytes:6.0f} MB")


if __name__ == "__main__":
    main()
