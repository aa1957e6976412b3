"""Leaks between splits that are planted, and how many of them `report` finds.

    python -m benchmarks.leaks DATA [--images 2000] [--seed 0] [--keep DIR]

DATA is as for `benchmarks.planted`; a fifth of the pictures is `test`, the others are `train`. Of each level, 60 are
planted in `test`: copies of files of `train`; copies that are turned or mirrored in one of the eight orientations, and
for half of them scaled, cropped by up to 6% of each side or compressed to quality 50; and recordings, made of crops of
80% of one picture that move by 1 to 4% from frame to frame, of which three are in `train` and one in `test`, with
counters in their names. A picture counts as found at its level or at a nearer one. Duplicates are measured on the same
copies, without splits.
"""

import io
import random
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import ood_audit
from benchmarks.planted import TURNS, distinct, planted_options, turned

EACH = 60
RECALL, PRECISION = 0.95, 0.9  # the limits


def copy(picture: Image.Image, turn: Image.Transpose | None, dice: random.Random) -> Image.Image:
    """The same picture in other bytes."""
    picture = turned(picture, turn)
    width, height = picture.size
    way = dice.choice(("plain", "plain", "scaled", "cropped", "compressed"))
    if way == "scaled":
        scale = dice.uniform(0.5, 0.9)
        return picture.resize((round(scale * width), round(scale * height)))
    if way == "cropped":
        x, y = (round(dice.uniform(0.01, 0.06) * side) for side in (width, height))
        return picture.crop((x, y, width - x, height - y))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=50 if way == "compressed" else 90)
    return Image.open(out)


def frames(picture: Image.Image, dice: random.Random) -> list[Image.Image]:
    """Four crops of one size that wander over a picture."""
    width, height = picture.size
    across, down = round(0.8 * width), round(0.8 * height)
    x, y = (dice.uniform(0.02, 0.06) for _ in range(2))
    found = []
    for _ in range(4):
        left, top = round(x * width), round(y * height)
        found.append(picture.crop((left, top, left + across, top + down)))
        x, y = (value + dice.uniform(0.01, 0.04) for value in (x, y))
    return found


def plant(data: Path, into: Path, count: int, seed: int) -> dict[str, str]:
    """Write the pictures; the levels of the leaks by path."""
    dice = random.Random(seed)
    numbers = dice.sample(range(count), 3 * EACH)
    level = {number: ("bytes", "picture", "recording")[place // EACH] for place, number in enumerate(numbers)}
    planted: dict[str, str] = {}

    def save(picture: Image.Image, name: str, quality: int = 92) -> None:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(into / name, quality=quality)

    for number, (name, picture) in enumerate(distinct(data, count, seed)):
        folder, _, file = name.partition("/")
        kind = level.get(number)
        if kind == "recording":
            for frame, crop in enumerate(frames(picture, dice)):
                split = "test" if frame == 2 else "train"
                path = f"{split}/{folder}/clip{number}_{7 * frame:06}.jpg"
                save(crop, path)
                planted |= {path: kind} if split == "test" else {}
            continue
        save(picture, f"{'train' if kind or dice.random() < 0.8 else 'test'}/{name}")
        target = f"test/{folder}/copy of {file}"
        if kind == "bytes":
            (into / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(into / "train" / name, into / target)
        elif kind == "picture":
            save(copy(picture, dice.choice(TURNS), dice), target)
        if kind:
            planted[target] = kind
    return planted


def main() -> None:
    options = planted_options(__doc__ or "")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        planted = plant(options.data, work / "images", options.images, options.seed)
        audit = ood_audit.open(work / "store")
        audit.embed(work / "images", model="starter")
        report = audit.report(auto=False)
        found = {finding.path: finding.evidence for finding in audit.findings("leak")}
        copies = {finding.path for finding in audit.findings("duplicate")}
        copies |= {finding.suggestion.removeprefix("keep ") for finding in audit.findings("duplicate")}
    print(f"{'':12} planted  recall (limit {RECALL})  found  precision (limit {PRECISION})")
    said = {"bytes": "same bytes", "picture": "same picture", "recording": "one recording"}
    for level, words in said.items():
        wanted = {path for path, kind in planted.items() if kind == level}
        named = {path for path, evidence in found.items() if words in evidence}
        recall, precision = len(wanted & found.keys()) / len(wanted), len(named & planted.keys()) / max(1, len(named))
        print(f"{level:12} {len(wanted):7}  {recall:19.3f}  {len(named):5}  {precision:21.3f}")
    same = {path for path, kind in planted.items() if kind != "recording"}
    others = {path for path in copies if path.startswith("test/")}
    recall, precision = len(same & others) / len(same), len(same & others) / max(1, len(others))
    print(f"{'duplicates':12} {len(same):7}  {recall:19.3f}  {len(others):5}  {precision:21.3f}")
    for path in sorted(found.keys() - planted.keys()):
        print(f"not planted: {path}: {found[path]}")
    for sentence in report.decisions.notes:
        print(sentence)


if __name__ == "__main__":
    main()
