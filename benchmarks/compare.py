"""Whether `compare` finds drift where there is some, and only there; and whether shortcuts are found and named.

    python -m benchmarks.compare DATA [--draws 200] [--model starter] [--keep DIR]

DATA holds objects/images/CLASS/ and styles/DOMAIN/CLASS/ with a domain `photo`. The halves of objects/ are random, and
those of each domain. In one half every picture, or some of them, is then darkened, framed in sepia, sprinkled with
snow, or has a banner or a watermark drawn on it; or pictures of another domain are among the photos, or in place of
them. For shortcuts one class of the photos is taken from another domain, or one class of objects/ has the drawing on
all of its pictures.

A drift counts as named where one of the words for it is among the names given, a shortcut where its name is one.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from scipy.stats import binom

from ood_audit.classes import texts
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.embedding.run import embed
from ood_audit.findings import drift, overlays, shortcuts, words
from ood_audit.findings.comparison import LEVEL, measures
from ood_audit.findings.sides import MEASURES, Side
from ood_audit.images.decode import grey
from ood_audit.images.found import image_id
from ood_audit.images.uri import file_uri
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

MOST_FALSE = 2  # of 20 draws
POWER = 40  # draws of halves to find a difference in
WRITING = {"text", "caption", "watermark", "logo", "sign", "label", "banner", "meme", "magazine cover", "book page"}
OLD = {"sepia photograph", "old photograph", "black and white photograph", "frame", "border", "postcard"}
DRAWN = {
    "drawing",
    "sketch",
    "line art",
    "clip art",
    "cartoon",
    "comic",
    "illustration",
    "print",
    "engraving",
    "plain",
    "less detailed",
}
PAINTED = {"painting", "oil painting", "watercolor", "illustration", "print", "poster", "drawing"}


def banner(image: Image.Image) -> Image.Image:
    width, height = image.size
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.4 * height, width, 0.6 * height), fill="white")
    draw.text(
        (0.05 * width, 0.42 * height), "SAMPLE PHOTO.COM", "red", ImageFont.load_default(size=max(12, height // 7))
    )
    return image


def watermark(image: Image.Image) -> Image.Image:
    width, height = image.size
    layer = Image.new("RGBA", image.size)
    font = ImageFont.load_default(size=max(12, height // 8))
    for y in range(0, height, max(1, height // 4)):
        ImageDraw.Draw(layer).text((0.02 * width, y), "STOCK PHOTO  STOCK PHOTO", (255, 255, 255, 150), font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def sepia(image: Image.Image) -> Image.Image:
    toned = ImageOps.colorize(ImageOps.grayscale(image), (40, 20, 0), (255, 230, 180))
    return ImageOps.expand(toned, max(8, image.size[1] // 10), (60, 35, 10))


def snow(image: Image.Image) -> Image.Image:
    draw, rng, (width, height) = ImageDraw.Draw(image), np.random.default_rng(0), image.size
    for x, y, r in zip(rng.random(250) * width, rng.random(250) * height, rng.random(250) * height / 60, strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill="white")
    return image


def dark(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.25)


PLANTED: dict[str, tuple[Callable[[Image.Image], Image.Image], set[str]]] = {
    "banner": (banner, WRITING),
    "watermark": (watermark, WRITING),
    "sepia": (sepia, OLD),
    "snow": (snow, {"snow", "frost", "rain", "dust"}),
    "dark": (dark, {"darkness", "low light", "dusk", "shadow", "dark", "darker"}),
}
STYLES = {"sketch": DRAWN, "cartoon": DRAWN, "art_painting": PAINTED}


class Features:
    """The features of a store, and how its pictures look, by path."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.row: dict[str, int] = {}
        blocks = []
        for batch in iter_features(store):
            self.row |= {path: len(self.row) + i for i, path in enumerate(batch.paths.to_pylist())}
            blocks.append(batch.features)
        self.all = np.concatenate(blocks)
        columns = ", ".join(dict.fromkeys((*shortcuts.MEASURES, *MEASURES)))
        rows = store.query(f"SELECT path, {columns} FROM images WHERE status = 'ok'").dicts()
        self.measured = pa.Table.from_pylist(sorted(rows, key=lambda row: self.row[row["path"]]))
        self.looks = shortcuts.looks(self.measured)

    def side(self, paths: list[str]) -> Side:
        return Side(
            "", len(paths), self.measured.take(pa.array([self.row[path] for path in paths], pa.int64())), self.of(paths)
        )

    def of(self, paths: list[str]):
        return self.all[[self.row[path] for path in paths]]

    def shown(self, paths: list[str], names: words.Names):
        """How much pictures show each condition: the names, then the looks."""
        rows = [self.row[path] for path in paths]
        return np.hstack([self.all[rows] @ names.features.T, self.looks[rows]])


def plant(source: Path, target: Path) -> None:
    for name, (draw, _) in PLANTED.items():
        for path in sorted(source.glob("*/*")):
            where = target / name / path.relative_to(source)
            if where.exists():
                continue
            where.parent.mkdir(parents=True, exist_ok=True)
            draw(Image.open(path).convert("RGB")).save(where, quality=90)


def divided(paths: list[str], seed: int) -> tuple[list[str], list[str]]:
    order = np.random.default_rng(seed).permutation(len(paths))
    a, b = ([paths[i] for i in half] for half in np.array_split(order, 2))
    return a, b


def halves(title: str, features: Features, paths: list[str], draws: int) -> None:
    p = []
    for seed in range(draws):
        a, b = divided(paths, seed)
        p.append(drift.two_sample(features.of(a), features.of(b), seed).p_value)
    false = np.array(p) <= 0.05
    runs = false[: draws // 20 * 20].reshape(-1, 20).sum(axis=1)
    print(
        f"random halves of {title:12} p ≤ 0.05 in {false.mean():.1%} of {draws} draws; more than {MOST_FALSE} of 20 in "
        f"{(runs > MOST_FALSE).sum()} of {len(runs)} runs (by chance {binom.sf(MOST_FALSE, 20, 0.05):.1%})",
        flush=True,
    )


def power(title: str, features: Features, paths: list[str], others: Callable[[list[str]], np.ndarray], share: float):
    """In how many draws the test finds that a share of one half is replaced by others."""
    found = []
    for seed in range(POWER):
        a, b = divided(paths, seed)
        some, rest = b[: round(share * len(b))], b[round(share * len(b)) :]
        found.append(drift.two_sample(features.of(a), np.concatenate([others(some), features.of(rest)]), seed))
    p = np.array([one.p_value for one in found])
    print(
        f"{title:20} {share:4.0%} of a half: p ≤ 0.05 in {(p <= 0.05).mean():4.0%}, p ≤ 0.01 in "
        f"{(p <= 0.01).mean():4.0%} of {POWER} draws, median p {np.median(p):.3f}, AUROC "
        f"{np.mean([one.auroc for one in found]):.2f}",
        flush=True,
    )


def powers(objects: Features, planted: Features, styles: Features) -> None:
    photo, paths = [path for path in sorted(styles.row) if path.startswith("photo/")], sorted(objects.row)
    for share in (0.5, 0.2):
        for name in PLANTED:

            def drawn(some: list[str], name: str = name):
                return planted.of([f"{name}/{path}" for path in some])

            power(name, objects, paths, drawn, share)
    for style in STYLES:
        every = [path for path in sorted(styles.row) if path.startswith(f"{style}/")]

        def strange(some: list[str], every: list[str] = every):
            return styles.of(every[:: len(every) // len(some)][: len(some)])

        power(f"photo, {style}", styles, photo, strange, 0.2)


def show(title: str, a: Side, b: Side, families, wanted: set[str]) -> None:
    tested = drift.two_sample(a.features, b.features)
    found = [word.name for word in words.contrast(a.features, b.features, families)]
    said = (found if tested.p_value <= LEVEL else []) + [row.name for row in measures(a, b)]
    named = "named" if wanted & set(said) else "not named"
    print(f"{title:24} p {tested.p_value:.3f}  AUROC {tested.auroc:.2f}  {named:9}  {', '.join(said)}", flush=True)


def joined(one: Side, other: Side) -> Side:
    features = np.concatenate([one.features, other.features])
    return Side("", len(features), pa.concat_tables([one.images, other.images]), features)


def drifts(objects: Features, planted: Features, styles: Features, families) -> None:
    paths = sorted(objects.row)
    a, b = divided(paths, 0)
    for name, (_, wanted) in PLANTED.items():
        for share in (1.0, 0.2):
            some = b[: round(share * len(b))]
            other = joined(planted.side([f"{name}/{path}" for path in some]), objects.side(b[len(some) :]))
            show(f"{name}, {share:.0%} of a half", objects.side(a), other, families, wanted)
    photo = [path for path in styles.row if path.startswith("photo/")]
    for style, wanted in STYLES.items():
        other = styles.side([path for path in styles.row if path.startswith(f"{style}/")])
        show(f"photo, {style}", styles.side(photo), other, families, wanted)


def scan(shown, labels: list[str], names: words.Names, encode) -> dict[str, str]:
    """The shortcut of each class that has one."""
    classes = sorted(set(labels))
    vocabulary = Vocabulary(tuple((name,) for name in classes))
    is_meant = shortcuts.meant(classes, vocabulary, vocabulary.features(encode), names)
    of_names = np.where(is_meant, np.inf, 5.0)
    least = np.hstack([of_names, np.full((len(classes), len(shortcuts.LOOKS)), 2.0)])
    share = np.repeat([0.75, 0.6], [len(names.names), len(shortcuts.LOOKS)])
    said = [*names.names, *(word for word, _, _ in shortcuts.LOOKS)]
    groups = np.array([classes.index(label) for label in labels])
    found = shortcuts.strongest(shown, groups, least, share)
    return {classes[one.group]: said[one.condition] for one in found}


def planted_shortcuts(objects: Features, planted: Features, styles: Features, names: words.Names, encode) -> None:
    def photos(left_out: str = "", style: str = "photo") -> list[str]:
        return [
            path
            for path in sorted(styles.row)
            if path.startswith(f"{style if path.split('/')[1] == left_out else 'photo'}/")
        ]

    def classes(paths: list[str], place: int) -> list[str]:
        return [path.split("/")[place] for path in paths]

    def of_class(paths: list[str], place: int) -> list[str]:
        return sorted(set(classes(paths, place)))

    plain = sorted(objects.row)
    print("\nshortcuts where none was planted:")
    print("  objects:", scan(objects.shown(plain, names), classes(plain, 0), names, encode))
    print("  photo:", scan(styles.shown(photos(), names), classes(photos(), 1), names, encode))
    for style, wanted in STYLES.items():
        answers = {}
        for name in of_class(photos(), 1):
            paths = photos(name, style)
            answers[name] = scan(styles.shown(paths, names), classes(paths, 1), names, encode).get(name, "")
        told(f"one class of photo as {style}", list(answers.values()), wanted)
    for drawn, (_, wanted) in PLANTED.items():
        found = []
        for name in of_class(plain, 0):
            own = np.array([path.startswith(f"{name}/") for path in plain])
            shown = objects.shown(plain, names)
            shown[own] = planted.shown([f"{drawn}/{path}" for path in np.array(plain)[own]], names)
            found.append(scan(shown, classes(plain, 0), names, encode).get(name, ""))
        told(f"one class of objects, {drawn}", found, wanted)


def overlaid(source: Path, target: Path) -> None:
    """Overlays, where the drawing is on all pictures of one class."""

    def images(drawn: str = "", name: str = "") -> pa.Table:
        rows = []
        for path in sorted(source.glob("*/*")):
            own = target / drawn / path.relative_to(source) if path.parent.name == name else path
            row = {
                "image_id": image_id(str(path)),
                "uri": file_uri(str(own.resolve())),
                "given_label": path.parent.name,
            }
            rows.append(row | {"size_bytes": own.stat().st_size, "width": 200, "height": 200})
        return pa.Table.from_pylist(rows)

    read = lru_cache(maxsize=None)(lambda uri: grey(uri, 96))
    plain = {one.group for one in overlays.find(images(), read)}
    print("overlays where none was drawn:", ", ".join(sorted(plain)) or "none")
    names = sorted(path.name for path in source.iterdir())
    for drawn in PLANTED:
        groups = [{one.group for one in overlays.find(images(drawn, name), read)} for name in names]
        found = sum(name in own for name, own in zip(names, groups, strict=True))
        others = sum(len(own - plain - {name}) for name, own in zip(names, groups, strict=True))
        print(f"  one class of objects, {drawn:12} found {found:2} of {len(names)}, others {others}", flush=True)


def told(title: str, answers: list[str], wanted: set[str]) -> None:
    named = sum(answer in wanted for answer in answers)
    print(f"  {title:34} found {sum(map(bool, answers)):2} of {len(answers)}, named {named}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--keep", type=Path, help="Where to keep what is drawn and embedded, for the next time.")
    options = parser.parse_args()
    source = options.data / "objects" / "images"
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        plant(source, root / "planted")
        objects, planted, styles = (
            Features(embed(folder, store=root / name, model=options.model).store)
            for name, folder in (("o", source), ("p", root / "planted"), ("s", options.data / "styles"))
        )
        encoder = texts.encoder_of(objects.store)
        names = words.conditions(objects.store, encoder)
        assert names is not None
        families = [family for family in (names, words.things(objects.store)) if family is not None]
        halves("objects", objects, sorted(objects.row), options.draws)
        for style in ("photo", *STYLES):
            halves(style, styles, [path for path in sorted(styles.row) if path.startswith(style)], options.draws)
        powers(objects, planted, styles)
        drifts(objects, planted, styles, families)
        planted_shortcuts(objects, planted, styles, names, encoder().encode_texts)
        overlaid(source, root / "planted")


if __name__ == "__main__":
    main()
