"""The starter on a CPU by torch and by OpenVINO: start-up, memory, processor time a picture, and how far they agree.

    python -m benchmarks.starter IMAGES [--count 400] [--int8]

Pictures of the folder IMAGES are prepared once and encoded by each engine in float32 and bfloat16, in a process of its
own with one thread. Time is processor time, which other work on the machine hardly changes. Features are compared
with those of torch in float32, and in bfloat16 with its own (held to `clip.AGREEMENT`). --int8 also quantises the
graph with NNCF (`pip install nncf`), by 200 of the pictures, which are then left out of the comparison.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATION = 200
LIMIT = 0.999  # `clip.AGREEMENT`, which importing would import torch


def encode(engine: str, precision: str, folder: Path) -> None:
    """Runs in a process of its own: saves features, and prints seconds and MB."""
    pixels = np.load(folder / "pixels.npy")
    before = time.process_time(), _memory()
    encoder: Any
    if engine == "torch":
        from ood_audit.encoders.clip import load_encoder

        encoder = load_encoder("starter", device="cpu", precision=precision)
    else:
        from ood_audit.encoders.light import StarterEncoder

        encoder = StarterEncoder("fp32" if precision == "int8" else precision)
        if precision == "int8":
            quantise(encoder, pixels[:CALIBRATION])
    encoder.encode_images(list(pixels[: encoder.batch_size]))
    ready, rest, size = time.process_time(), pixels[CALIBRATION:], encoder.batch_size
    found = [encoder.encode_images(list(rest[start : start + size])) for start in range(0, len(rest), size)]
    seconds = time.process_time() - ready
    np.save(folder / f"{engine}-{precision}.npy", np.concatenate(found))
    figures = {"start": ready - before[0], "each": 1000 * seconds / len(rest), "memory": _memory() - before[1]}
    print(json.dumps(figures))


def quantise(encoder: Any, pixels: Any) -> None:
    """Put a quantised graph in the place of the encoder's own."""
    import nncf

    from ood_audit.encoders import towers

    plain = towers.image_tower

    def quantised(*arguments: Any) -> Any:
        data = nncf.Dataset([pixels[i : i + 4] for i in range(0, len(pixels), 4)])
        return nncf.quantize(plain(*arguments), data, subset_size=CALIBRATION // 4)

    vars(towers)["image_tower"] = quantised


def _memory() -> float:
    """What the process holds now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        engine, precision = options.run
        encode(engine, precision, options.images)
        return
    from ood_audit.encoders.light import StarterEncoder
    from ood_audit.images.decode import decode

    prepare = StarterEncoder("fp32").prepare
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = files[:: max(1, len(files) // (options.count + CALIBRATION))]
    pixels = [decode(path.absolute().as_uri(), prepare).pixels for path in files[: options.count + CALIBRATION]]
    held = True
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pixels.npy", np.stack([found for found in pixels if found is not None]))
        print(f"{'engine':9}{'':6}{'start':>8}{'a picture':>11}{'memory':>9}   cosine with torch fp32, and torch bf16")
        runs = [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")]
        for engine, precision in [*runs, *([("openvino", "int8")] if options.int8 else [])]:
            command = [sys.executable, "-m", "benchmarks.starter", folder, "--run", engine, precision]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            line = (
                f"{engine:9}{precision:6}{figures['start']:6.2f} s{figures['each']:8.2f} ms{figures['memory']:6.0f} MB"
            )
            mine = np.load(Path(folder) / f"{engine}-{precision}.npy")
            for other in ("fp32", "bf16") if precision == "bf16" and engine == "openvino" else ("fp32",):
                cosines = (mine * np.load(Path(folder) / f"torch-{other}.npy")).sum(axis=1)
                line += f"   {cosines.mean():.5f} (least {cosines.min():.5f})"
            if engine == "openvino" and precision != "int8":
                agrees = bool(cosines.min() >= LIMIT)
                held &= agrees
                line += f"  ≥ {LIMIT}: {'holds' if agrees else 'MISSED'}"
            print(line, flush=True)
    sys.exit(not held)


if __name__ == "__main__":
    main()
