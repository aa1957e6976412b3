"""Whether many cores keep a fast GPU busy, with the cores and the GPU played, and all Python between them real.

    python -m benchmarks.feed [--cores 32] [--gpu 10000] [--seconds 15] [--processes 4]

What is played, by sleeps that release Python's lock as the real work does:

- A decoder of Pillow's sleeps instead of decoding, and so does its resizing, for as long as they take a core when
  they are real (2.3 ms for a JPEG of 500 × 375, by `benchmarks.sizing`). A decoding thread is then a core of its own.
- A forward pass launches the operations of a ViT-B-16 on a model so small that they cost nothing but their Python, and
  sleeps for the time that the GPU would take. Processes that share the GPU take turns.

What is real: reading and hashing the file, Pillow's parsing, `ClipEncoder.prepare`, what is measured of a picture, the
arrays, the threads and their futures, the stacking, the launches, the pipes between the processes, and the rows in
Parquet.

A process holds one lock, so that `embed` starts k processes for a GPU, with 1/k of the cores each. Two real cores can
run the Python of one of them at full speed, and not that of all. So the figure for k processes is put together, and
each of its terms is printed:

    images/s = the least of
        k × (what one process with 1/k of the cores does, measured) × (what k processes do beside k times one of them,
            measured with all that an image takes k times as long, so that the Python of all of them fits on the real
            cores)
        what the cores can do: their number ÷ (the played seconds of an image + its processor time in all processes)
        what the one process that writes can take, by its processor time for an image (measured)
        the rate of the GPU (played)

To slow a process down, its sleeps are made k times as long, and for its Python, which cannot be, it sleeps k - 1 times
as long as that took at full speed. So k slowed processes ask for as large a share of the played GPU as k real ones.

Images/s are wall clock, so run it on an otherwise idle machine: whatever else takes the two real cores lowers them, and
nothing here raises them.
"""

import argparse
import fcntl
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT = 8000  # images/s, with 32 played cores
DECODE, RESIZE = 0.0017, 0.0006  # seconds of a core, as `benchmarks.sizing` measures them, less their Python
PICTURES = 64
BATCH = 256
WARM = 1024  # images before the clock starts


def play_decoder() -> None:
    """Have Pillow sleep where it would decode and resize."""
    from PIL import Image

    slow, pause = float(os.environ["FEED_SLOW"]), float(os.environ["FEED_PAUSE"])
    real = Image._getdecoder
    small = Image.new("RGB", (299, 224))
    real_resize = Image.Image.resize
    levels = {mode: Image.linear_gradient("L").resize((100, 75)).convert(mode) for mode in ("L", "RGB")}

    class Decoder:
        """Asks for as many pieces of the file as the real one would, and sleeps once."""

        def __init__(self, decoder: Any) -> None:
            self._decoder, self._pieces = decoder, 0
            self.pulls_fd = decoder.pulls_fd

        def cleanup(self) -> Any:
            return self._decoder.cleanup()

        def setimage(self, *arguments: Any) -> Any:
            return self._decoder.setimage(*arguments)

        def decode(self, data: bytes) -> tuple[int, int]:
            self._pieces += 1
            if self._pieces == 1 and len(data) >= 65536:
                return len(data) - 100, 0
            time.sleep(DECODE * slow + pause)
            return -1, 0

    def resize(self: Any, size: Any, resample: Any = None, *rest: Any, **options: Any) -> Any:
        if resample == Image.Resampling.NEAREST:  # to count levels and colours: real, but of a picture that has some
            real_resize(self, size, resample, *rest, **options)
            return levels[self.mode]
        if resample != Image.Resampling.BICUBIC:  # by what is measured of a picture: real
            return real_resize(self, size, resample, *rest, **options)
        time.sleep(RESIZE * slow)
        return self._new(small.im)

    vars(Image)["_getdecoder"] = lambda *arguments: Decoder(real(*arguments))
    Image.Image.resize = resize  # type: ignore[method-assign]


def played_encoder() -> Any:
    """A ClipEncoder without a model, whose forward pass is a ViT-B-16's launches and a sleep."""
    import numpy as np
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from ood_audit.encoders import clip

    torch.set_num_threads(1)
    tower = open_clip.model.CLIPVisionCfg(image_size=32, layers=12, width=32, head_width=16, patch_size=16)
    text = open_clip.model.CLIPTextCfg(context_length=8, vocab_size=100, width=16, heads=2, layers=1)
    tiny = open_clip.model.CLIP(512, tower, text).eval().requires_grad_(False)
    seconds, gpu = float(os.environ["FEED_SLOW"]) / float(os.environ["FEED_GPU"]), os.environ["FEED_LOCK"]

    class Played(clip.ClipEncoder):
        def __init__(self) -> None:
            self.device = torch.device("cpu")
            self.batch_size, self.batch_limit, self.decode_size = BATCH, None, 3 * 224
            self._to_pil, _, _ = clip._split(image_transform_v2(PreprocessCfg(size=224), is_train=False))
            self._resize, self._crops = self._to_pil.transforms[0], True
            self.identity = identity()

        def encode(self, pixels: Any) -> Any:
            with torch.inference_mode():
                batch = np.empty((len(pixels), 224, 224, 3), np.uint8)
                np.stack(pixels, out=batch)
                features = clip._unit(tiny.encode_image(torch.zeros(1, 3, 32, 32))).numpy()
                with open(gpu, "rb") as file:  # passes of all processes follow each other
                    fcntl.flock(file, fcntl.LOCK_EX)
                    time.sleep(seconds * len(pixels))
            return np.repeat(features, len(pixels), axis=0), None

    return Played()


def identity() -> Any:
    from ood_audit.encoders.identity import EncoderIdentity

    return EncoderIdentity("played", None, "played", "0" * 64, {}, "gelu", "bf16", 512)


def play(cores: int) -> None:
    """Replace in this process what is played: the decoder, the encoder, and the number of cores."""
    from ood_audit.encoders import clip, device

    play_decoder()
    vars(clip)["load_same_encoder"] = lambda *_, **__: played_encoder()
    vars(device)["forward_threads"] = lambda *_: (2, 1)  # as on a GPU
    vars(device)["enter_forward_thread"] = lambda *_: None
    vars(device)["worker_count"] = lambda: cores


def played_work(pipe: Any, its_identity: Any, name: str, cores: int) -> None:
    """What a process of `embed_in_processes` does here."""
    from ood_audit.embedding import processes

    play(cores)
    processes._work(pipe, its_identity, name, cores)


def pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    for number in range(PICTURES):
        rough = Image.fromarray(dice.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375))
        pixels = np.asarray(rough, np.float32) + dice.normal(0, 12, (375, 500, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        (folder / f"{number:03}.jpg").write_bytes(out.getvalue())


def processor_seconds() -> dict[int, float]:
    """The processor time so far of this process and of those that it has started."""
    seconds = {os.getpid(): time.process_time()}
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds[child.pid or 0] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure(folder: Path, count: int, cores: int, seconds: float) -> None:
    """Runs in a process of its own: prints images/s, and the processor time of an image here and in the others."""
    from ood_audit.embedding import processes
    from ood_audit.embedding.work import Work, write_batch
    from ood_audit.images.sources import ImageRef, file_uri
    from ood_audit.store import create_store
    from ood_audit.store.parts import PartWriter

    files = sorted(folder.glob("*.jpg"))

    def work() -> Iterator[list[Work]]:
        for start in itertools.count(0, BATCH):
            yield [
                Work(ImageRef(file_uri(str(files[i % PICTURES])), "/in", f"class/{i:08}.jpg", 110_000, 1), True)
                for i in range(start, start + BATCH)
            ]

    vars(processes)["worker_count"] = lambda: count * cores
    real_context = multiprocessing.get_context

    class Context:
        """The real one, whose processes play."""

        def __init__(self, method: str) -> None:
            self._real: Any = real_context(method)
            self.Pipe = self._real.Pipe

        def Process(self, *, target: Any, **options: Any) -> Any:
            return self._real.Process(target=played_work, **options)

    vars(processes)["get_context"] = Context
    with tempfile.TemporaryDirectory() as temporary:
        store = create_store(Path(temporary) / "store", identity())
        done, began = 0, 0.0
        before: dict[int, float] = {}
        with PartWriter(store, "run") as writer:
            results = processes.embed_in_processes(work(), identity(), ["gpu"] * count, print)
            for batch, decoded, features in results:
                for _, _, error in write_batch(writer, batch, decoded, features):
                    assert error is None, error
                done += len(batch)
                if not before and done >= WARM * count:
                    began, before, done = time.perf_counter(), processor_seconds(), 0
                if before and time.perf_counter() - began > seconds:
                    break
            took = time.perf_counter() - began
            spent = {pid: value - before[pid] for pid, value in processor_seconds().items()}
    here = spent.pop(os.getpid())
    print(json.dumps({"rate": done / took, "writer": here / done, "workers": sum(spent.values()) / done}))


def run(folder: Path, count: int, cores: int, slow: int, pause: float, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.feed", "--measure", str(folder), "--processes", str(count)]
    command += ["--cores", str(cores), "--seconds", str(options.seconds)]
    lock = folder / "gpu"
    lock.touch()
    environment = {
        **os.environ,
        "FEED_GPU": str(options.gpu),
        "FEED_LOCK": str(lock),
        "FEED_SLOW": str(slow),
        "FEED_PAUSE": str(pause),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=32)
    parser.add_argument("--gpu", type=float, default=10_000, help="images/s of the GPU alone")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--processes", type=int, help="by default as many as `embed` starts")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.processes, options.cores, options.seconds)
        return
    from ood_audit.embedding.sharing import by_cores

    count = options.processes or by_cores(options.cores)
    each = options.cores // count
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures(folder)

        def shown(processes: int, cores: int, slow: int, pause: float = 0) -> dict[str, float]:
            found = run(folder, processes, cores, slow, pause, options)
            what = f"{processes} process{'es' * (processes > 1)} of {cores} played cores"
            print(
                f"{what}{f', {slow} times as slow' * (slow > 1)}: {found['rate']:,.0f} images/s; their decoding alone "
                f"{processes * cores / ((DECODE + RESIZE) * slow + pause):,.0f}; processor time of an image: "
                f"{found['workers'] * 1e6:.0f} µs, and {found['writer'] * 1e6:.0f} µs where it is written",
                flush=True,
            )
            return found

        alone = shown(1, options.cores, 1)
        share = shown(1, each, 1)
        python = each / share["rate"] - DECODE - RESIZE
        slow_one = shown(1, each, count, (count - 1) * python)
        slow_all = shown(count, each, count, (count - 1) * python)
    together = min(1.0, slow_all["rate"] / (count * slow_one["rate"]))
    spent = share["workers"] + share["writer"]
    terms = {
        f"{count} × {share['rate']:,.0f} × {together:.2f}": count * share["rate"] * together,
        f"{options.cores} cores, {(DECODE + RESIZE) * 1e6:.0f} + {spent * 1e6:.0f} µs an image": options.cores
        / (DECODE + RESIZE + spent),
        "the writer": 1 / share["writer"],
        "the GPU": options.gpu,
    }
    print("; ".join(f"{name}: {value:,.0f}" for name, value in terms.items()))
    figure = min(terms.values())
    print(
        f"{options.cores} played cores: 1 process {alone['rate']:,.0f} images/s, {count} processes {figure:,.0f} "
        f"(limit {LIMIT:,}): {'holds' if figure >= LIMIT else 'does not hold'}"
    )


if __name__ == "__main__":
    main()
