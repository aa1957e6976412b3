"""Whether the feature of a second view of each image, a crop and flip of it, makes tuning better.

    python -m benchmarks.views STYLES [--seeds 6]

STYLES holds DOMAIN/CLASS/ with a domain `photo`; pictures and their second views are embedded with the starter. A view
is a random crop of half to all of the area, flipped or not, with one seed. Draws are those of benchmarks/tuning.py:
five classes, 8 labelled photos of each, a fifth of the photos audited of the other classes. A residual is tuned on the
labelled photos, on these and their views, with the audited photos unlabelled, and with these and their views so.
Printed are accuracy, AUROC and FPR95 on the audited photos in %, mean ± standard deviation over the seeds.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from benchmarks.tuning import CLIP, HEAD, draw, figures, in_styles, row
from ood_audit.tuning import residual
from ood_audit.tuning.settings import settings_of
from ood_audit.tuning.trainer import Beside


def view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of half to all of the area, flipped every other time."""
    share = float(np.sqrt(rng.uniform(0.5, 1)))
    width, height = (max(1, int(share * side)) for side in image.size)
    left, top = (int(rng.integers(0, side - own + 1)) for side, own in zip(image.size, (width, height), strict=True))
    cut = image.crop((left, top, left + width, top + height))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("styles", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    given = parser.parse_args()
    of, styles = in_styles(given.styles)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        for path in sorted(given.styles.glob("*/*/*")):
            place = Path(temporary, path.relative_to(given.styles)).with_suffix(".png")
            place.parent.mkdir(parents=True, exist_ok=True)
            view(Image.open(path).convert("RGB"), rng).save(place)
        second, again = in_styles(Path(temporary))
    if not np.array_equal(styles, again) or not np.array_equal(of.labels, second.labels):
        raise SystemExit("two pictures differ in their suffix alone")
    views = {image.tobytes(): other for image, other in zip(of.images, second.images, strict=True)}
    runs: dict[str, list[list[float]]] = {}
    for seed in range(given.seeds):
        one = draw(of, styles, seed)
        images, labels = one.audited["photo"]
        of_labelled, of_audited = (
            np.concatenate([rows, np.stack([views[image.tobytes()] for image in rows])])
            for rows in (one.images, images)
        )
        twice = np.tile(one.labels, 2)
        plain, unlabelled = (settings_of(method="residual", seed=seed, unlabelled=on) for on in (False, True))
        for title, features, own, settings, audited in (
            ("labelled photos", one.images, one.labels, plain, None),
            ("labelled photos and their views", of_labelled, twice, plain, None),
            ("labelled photos, unlabelled photos", one.images, one.labels, unlabelled, images),
            ("labelled photos, unlabelled photos and their views", one.images, one.labels, unlabelled, of_audited),
        ):
            beside = Beside(one.background, audited)
            found = residual.fit(features, own, one.texts, CLIP, settings, beside=beside)
            runs.setdefault(title, []).append(figures(images, labels, found.class_features, one.background))
        runs.setdefault("none", []).append(figures(images, labels, one.texts, one.background))
    table = [row(title, found) for title, found in runs.items()]
    print(tabulate(table, ["tuned on", *HEAD], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
