"""Faults that are planted in pictures, and how many of them `report` finds.

    python -m benchmarks.quality DATA [--images 2000] [--seed 0] [--keep DIR]

DATA is as for `benchmarks.planted`. 40 pictures get each fault. A picture counts as found where the finding names the
fault. A finding is right where its picture was planted, with whatever fault: a picture that was made dark has little
contrast as well. Pictures that are grey in DATA count as planted with grey.

The last line has the processor time that the measures of a picture take, beside that of all that `embed` does for it,
and the time of the perceptual hash of the same grey picture, by which duplicates and leaks are found.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import ood_audit
from benchmarks.planted import distinct, planted_options
from ood_audit.findings.quality import REASONS, odd
from ood_audit.images.quality import hashes, measure
from ood_audit.store.views import connect

EACH = 40
RECALL, PRECISION = 0.9, 0.8  # the limits
SHARE = 0.03  # the limit of what the measures take of `embed`
TIMED = 200  # pictures


def dark(picture: Image.Image, dice: random.Random) -> Image.Image:
    share = dice.uniform(0.04, 0.15)
    return picture.point(lambda level: level * share)


def bright(picture: Image.Image, dice: random.Random) -> Image.Image:
    share = dice.uniform(0.04, 0.15)
    return picture.point(lambda level: 255 - (255 - level) * share)


def low_contrast(picture: Image.Image, dice: random.Random) -> Image.Image:
    middle, share = dice.uniform(90, 165), dice.uniform(0.06, 0.15)
    return picture.point(lambda level: middle + (level - 128) * share)


def blurred(picture: Image.Image, dice: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(dice.uniform(0.012, 0.03) * max(picture.size)))


def little_information(picture: Image.Image, dice: random.Random) -> Image.Image:
    """One colour, or two halves."""
    one, other = (tuple(dice.randrange(40, 216) for _ in range(3)) for _ in range(2))
    plain = Image.new("RGB", picture.size, one)
    if dice.random() < 0.5:
        plain.paste(other, (0, 0, picture.width // 2, picture.height))
    return plain


def odd_size(picture: Image.Image, dice: random.Random) -> Image.Image:
    scale = dice.choice((dice.uniform(0.06, 0.12), dice.uniform(7, 9)))
    return picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))


def odd_aspect_ratio(picture: Image.Image, dice: random.Random) -> Image.Image:
    """A strip, across or down."""
    share, (width, height) = dice.uniform(0.1, 0.18), picture.size
    if dice.random() < 0.5:
        return picture.crop((0, round(0.4 * height), width, round((0.4 + share) * height) + 2))
    return picture.crop((round(0.4 * width), 0, round((0.4 + share) * width) + 2, height))


def grey(picture: Image.Image, dice: random.Random) -> Image.Image:
    return picture.convert("L")


FAULTS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "dark": dark,
    "bright": bright,
    "low contrast": low_contrast,
    "blurred": blurred,
    "little information": little_information,
    "odd size": odd_size,
    "odd aspect ratio": odd_aspect_ratio,
    "grey": grey,
}


def plant(data: Path, into: Path, count: int, seed: int) -> dict[str, str]:
    """Write the pictures; the faults by path."""
    dice = random.Random(seed)
    faults = [name for name in FAULTS for _ in range(EACH)]
    chosen = dict(zip(dice.sample(range(count), len(faults)), faults, strict=True))
    planted = {}
    for number, (name, original) in enumerate(distinct(data, count, seed)):
        fault = chosen.get(number)
        picture = FAULTS[fault](original, dice) if fault else original
        if fault:
            planted[name] = fault
        elif not np.ptp(np.asarray(original), axis=2).any():
            planted[name] = "grey"
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(into / name, quality=92)
    return planted


def seconds(folder: Path) -> tuple[float, float]:
    """The processor time of the measures of a picture, and of its hash: the means over pictures."""
    taken = []
    for path in random.Random(0).sample(sorted(folder.rglob("*.jpg")), TIMED):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        grey = picture.convert("L")
        both, alone = (_median(partial(of, some)) for of, some in ((measure, picture), (hashes, grey)))
        taken.append((both - alone, alone))
    measures, hashing = (statistics.mean(times) for times in zip(*taken, strict=True))
    return measures, hashing


def _median(work: Callable[[], object]) -> float:
    """The median of the thread's time over five times."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return statistics.median(times)


def main() -> None:
    options = planted_options(__doc__ or "")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        planted = plant(options.data, work / "images", options.images, options.seed)
        began = time.process_time()
        store = ood_audit.embed(work / "images", store=work / "store", model="starter").store
        whole = (time.process_time() - began) / options.images
        measures, hashing = seconds(work / "images")
        with connect(store) as db:
            paths = dict(db.execute("SELECT image_id, path FROM images").fetchall())
            found = {paths[image_id]: {reason for _, reason, _ in reasons} for image_id, reasons in odd(db).items()}
    print(f"{'':20} planted  recall (limit {RECALL})  found  precision (limit {PRECISION})")
    for reason in REASONS:
        wanted = {path for path, fault in planted.items() if fault == reason}
        named = {path for path, reasons in found.items() if reason in reasons}
        recall, precision = len(wanted & named) / len(wanted), len(planted.keys() & named) / max(1, len(named))
        print(f"{reason:20} {len(wanted):7}  {recall:18.3f}  {len(named):5}  {precision:21.3f}")
    print(f"{'all':20} {len(planted):7}  {len(planted.keys() & found) / len(planted):18.3f}  {len(found):5}  "
          f"{len(planted.keys() & found) / max(1, len(found)):21.3f}")  # fmt: skip
    print(f"the measures take {1000 * measures:.2f} ms of a processor for a picture, {measures / whole:.1%} of the "
          f"{1000 * whole:.1f} ms of `embed` (limit {SHARE:.0%}); the hash {1000 * hashing:.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
