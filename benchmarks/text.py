"""Whether text that is drawn on the pictures of one class is found, and only there.

    python -m benchmarks.text DATA

DATA holds objects/images/CLASS/ and styles/DOMAIN/CLASS/. On the pictures of each class of objects/ its name, that of
another class, or the address of an archive is drawn, at a random place, of 6 to 14% of the height, on white or bare, in
several fonts and colours. One class after another is then given those pictures, on a share of it, in place of its own.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings import written
from ood_audit.images.ocr import SIDE, TextReader
from ood_audit.images.uri import file_uri

EXAMPLE = Path(__file__).parents[1] / "examples" / "images"
FONTS = ("DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf", "LiberationSans-Regular.ttf")
ADDRESS = "www.picture-archive.org"
SHARES = (0.1, 0.2, 0.6, 0.75, 0.9)
Texts = Mapping[Path, list[str] | None]


def font(dice: random.Random, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """One of the fonts that are there, or Pillow's own."""
    try:
        return ImageFont.truetype(dice.choice([*FONTS, ""]), size)
    except OSError:
        return ImageFont.load_default(size=size)


def caption(image: Image.Image, text: str, dice: random.Random) -> Image.Image:
    width, height = image.size
    size = max(9, round(height * dice.uniform(0.06, 0.14)))
    draw = ImageDraw.Draw(image)
    while True:
        chosen = font(dice, size)
        _, _, right, lower = draw.textbbox((0, 0), text, chosen)
        if right < width or size <= 9:
            break
        size -= 1
    x, y = dice.uniform(0, max(0.0, width - right)), dice.uniform(0, max(0.0, height - lower))
    if on_white := dice.random() < 0.4:
        draw.rectangle((x - 2, y, x + right + 2, y + lower + 2), "white")
    draw.text((x, y), text, "black" if on_white else dice.choice(["white", "yellow", "red", "black"]), chosen)
    return image


def captioned(paths: list[Path], texts: Mapping[str, str], folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each picture, and where it lies with the text of its class."""
    for number, path in enumerate(paths):
        target = folder / f"{number}.jpg"
        folder.mkdir(exist_ok=True)
        with Image.open(path) as opened:
            caption(opened.convert("RGB"), texts[path.parent.name], random.Random(number)).save(target, quality=90)
        yield path, target


def enlarged(paths: list[Path], folder: Path) -> Iterator[Path]:
    """Pictures of the size at which larger ones are read."""
    folder.mkdir()
    for number, path in enumerate(random.Random(0).sample(paths, len(paths))):
        with Image.open(path) as opened:
            ImageOps.contain(opened.convert("RGB"), (SIDE, SIDE)).save(folder / f"{number}.jpg", quality=90)
        yield folder / f"{number}.jpg"


def read_all(title: str, paths: list[Path], read: TextReader) -> dict[Path, list[str] | None]:
    start = process_time()
    found = {path: read(file_uri(str(path.resolve()))) for path in paths}
    print(f"{title}: {len(paths)} pictures, {1000 * (process_time() - start) / len(paths):.0f} ms of a core each")
    return found


def audited(texts: Texts) -> written.Written:
    rows = [
        {"image_id": f"{n:05}", "uri": str(path), "given_label": path.parent.name, "split": path.parents[1].name}
        for n, path in enumerate(texts)
    ]
    images = pa.Table.from_pylist([row | {"width": 200, "height": 200} for row in rows])
    vocabulary = Vocabulary(tuple((name,) for name in sorted({path.parent.name for path in texts})))
    return written.find(images, vocabulary, lambda uri: texts[Path(uri)])


def clean(title: str, texts: Texts) -> None:
    found = audited(texts)
    said = "; ".join(one.evidence for one in found.shortcuts) or "none"
    print(f"  {title}: shortcuts {said}; pictures that name another class {len(found.misnamed)}", flush=True)


def planted(title: str, plain: Texts, drawn: Texts, share: float) -> None:
    """Each class in turn with the text on a share of its pictures."""
    names = sorted({path.parent.name for path in plain})
    found = others = named = right = pictures = 0
    for name in names:
        own = [path for path in plain if path.parent.name == name]
        changed = set(random.Random(name).sample(own, max(1, round(share * len(own)))))
        result = audited({path: drawn[path] if path in changed else lines for path, lines in plain.items()})
        groups = {one.group for one in result.shortcuts}
        found, others = found + (name in groups), others + len(groups - {name})
        ids = {f"{n:05}" for n, path in enumerate(plain) if path in changed}
        pictures, named = pictures + len(ids), named + len(result.misnamed)
        right += sum(one.image_id in ids for one in result.misnamed)
    print(
        f"  {title}, on {share:.0%}: found {found} of {len(names)}, others {others}; "
        f"pictures that name another class: {right} of {pictures}, others {named - right}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    read = TextReader()
    objects = sorted((data / "objects" / "images").glob("*/*"))
    plain = read_all("objects", objects, read)
    clean("objects", plain)
    clean("styles", read_all("styles", sorted((data / "styles").glob("*/*/*")), read))
    clean("example", read_all("example", sorted(EXAMPLE.glob("*/*")), read))
    names = sorted({path.parent.name for path in objects})
    kinds = {
        "its own name": {name: name for name in names},
        "the name of another class": dict(zip(names, [*names[1:], names[0]], strict=True)),
        "an address": dict.fromkeys(names, ADDRESS),
    }
    with tempfile.TemporaryDirectory() as temporary:
        large = [path for path, _ in zip(enlarged(objects, Path(temporary) / "large"), range(60), strict=False)]
        read_all(f"objects, scaled to {SIDE} pixels", large, read)
        for title, texts in kinds.items():
            pairs = dict(captioned(objects, texts, Path(temporary) / title))
            lines = read_all(title, list(pairs.values()), read)
            for share in SHARES:
                planted(title, plain, {path: lines[target] for path, target in pairs.items()}, share)


if __name__ == "__main__":
    main()
