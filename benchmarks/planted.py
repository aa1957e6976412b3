"""A folder of pictures in which no two are alike, to plant faults in.

DATA has `images/CLASS/`, `labelled/CLASS/` and `truth.csv` (path, kind), as for `benchmarks.peers`. Its planted
duplicates are left out, and so is each picture whose 64-bit perceptual hash, turned or mirrored in any way, is within
12 bits of that of another. Crops of the others, altered as in `benchmarks.peers`, fill up to the number asked for.
"""

import argparse
import csv
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.peers import APART, alter, hash_of

TURNS = (None, *Image.Transpose)  # the eight orientations


def planted_options(description: str) -> argparse.Namespace:
    """What a benchmark of planted faults is told on its command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the pictures and the store")
    return parser.parse_args()


def turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def distinct(data: Path, count: int, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Names, as CLASS/NAME.jpg, and pictures: those of DATA first, and then what fills up."""
    seen = np.empty((count, len(TURNS)), np.uint64)
    made = 0

    def is_new(picture: Image.Image) -> bool:
        nonlocal made
        codes = np.array([hash_of(turned(picture, turn)) for turn in TURNS], np.uint64)
        if made and np.bitwise_count(seen[:made] ^ codes[0]).min() <= APART:
            return False
        seen[made] = codes
        made += 1
        return True

    with (data / "truth.csv").open(newline="") as file:
        copies = {row["path"] for row in csv.DictReader(file) if row["kind"].endswith("duplicate")}
    originals = []
    for path in sorted([*data.glob("images/*/*.jpg"), *data.glob("labelled/*/*.jpg")]):
        name = path.relative_to(path.parents[1]).as_posix()
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if name not in copies and is_new(picture):
            originals.append((path, name.partition("/")[0]))
            yield f"{path.parent.name}/{path.parents[1].name} {path.name}", picture
            if made == count:
                return
    dice = random.Random(seed)
    while made < count:
        path, folder = dice.choice(originals)
        with Image.open(path) as opened:
            picture = alter(opened.convert("RGB"), dice)
        if is_new(picture):
            yield f"{folder}/{dice.randrange(10**9):09}.jpg", picture
