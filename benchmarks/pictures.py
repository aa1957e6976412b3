"""Whether it pays to join evidence from pictures of the classes with ΔEnergy: labelled images, and class folders.

    python -m benchmarks.pictures CLIP OBJECTS [--draws 3] [--share 0.05] [--only whurs19]

CLIP is the folder of features that benchmarks/clip.py reads, OBJECTS a folder with images/, classes.txt and truth.csv,
which is embedded with the starter. The vocabulary is half of the names of a set of features, all of OBJECTS. Images of
other classes make up a share of all. Either eight images of each class are labelled, or two where there are only four,
and the others are ranked; or all lie in class folders as benchmarks/flags.py has it: 3% of those in distribution in a
wrong one, the others by chance. All is scored by the product's own functions.

Printed are AUROC / FPR95 in %, the means over the draws: ΔEnergy by names and background alone, ΔEnergy with settings
that leaving classes out chose, and the default, which joins evidence from the pictures where that tells left-out
classes better; then in how many of the draws it does.
"""

import argparse
import csv
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ood_audit
from benchmarks import clip
from benchmarks.flags import OBJECTS, Draw, draw
from ood_audit import ScoreSettings
from ood_audit.classes import labelled
from ood_audit.embedding.imported import FeatureColumns, import_features
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.scoring import metrics
from ood_audit.store.files import write_json

SHOTS = 8
TITLES = ("ΔEnergy, names alone", "ΔEnergy, chosen", "default")


def shown(of: clip.Set, drawn: Draw, seed: int) -> NDArray[np.int64]:
    """The places of the images that are labelled."""
    rng, labels = np.random.default_rng(seed), of.labels[drawn.rows]
    found = []
    for k in np.unique(labels[~drawn.is_ood]):
        own = np.flatnonzero((labels == k) & ~drawn.is_ood)
        found.append(rng.choice(own, min(SHOTS, len(own) // 2), replace=False))
    return np.concatenate(found)


def measure(
    of: clip.Set, drawn: Draw, root: Path, given: NDArray[np.int64] | None
) -> tuple[dict[str, list[float]], bool]:
    """AUROC and FPR95 by each of `TITLES`, and whether pictures were joined; `given` None for class folders."""
    names = np.array(of.names)
    paths = np.array([f"{i:06d}.jpg" for i in range(len(drawn.rows))])
    np.savez(root / "images.npz", images=of.images[drawn.rows], paths=paths, folders=names[drawn.folders])
    np.savez(root / "texts.npz", texts=of.texts[drawn.kept], names=names[drawn.kept])
    background = None
    if of.background is not None:
        background = root / "background.npz"
        np.savez(background, texts=of.background[1].astype(np.float16), names=np.array(of.background[0]))
    store = import_features(
        root / "images.npz",
        store=root / "store",
        columns=FeatureColumns(path="paths", label="folders" if given is None else None),
        texts=root / "texts.npz",
        background=background,
    ).store
    write_json(store.root / "score_defaults.json", asdict(ScoreDefaults(clip.TEMPERATURE, 1, 0.0, of.duplicate)))
    if of.looks is not None:
        clip.add_looks(store, of.looks[drawn.rows])
    ranked = np.ones(len(paths), bool)
    if given is not None:
        ranked[given] = False
        with (root / "labelled.csv").open("w", encoding="utf-8", newline="") as file:
            rows = zip(paths[given], names[of.labels[drawn.rows[given]]], strict=True)
            csv.writer(file).writerows([("path", "label"), *rows])
        labelled.add(store, root / "labelled.csv")
    figures, joined = {}, False
    by_names = ScoreSettings(method="delta-energy", auto=False, background=of.background is not None)
    for title, settings in zip(TITLES, (by_names, ScoreSettings(method="delta-energy"), ScoreSettings()), strict=True):
        scored = ood_audit.score(store, labels=names[drawn.kept].tolist(), settings=settings)
        values = np.array([row[0] for row in store.query("SELECT ood_score FROM scores ORDER BY path").rows])[ranked]
        is_ood = drawn.is_ood[ranked]
        figures[title] = [metrics.auroc(is_ood, values), metrics.fpr95(is_ood, values)]
        joined |= "pictures" in scored.parameters
    return figures, joined


def table(of: clip.Set, kept: int, share: float, draws: int) -> None:
    """Print the rows of a set."""
    for title in ("labelled", "class folders"):
        measured = []
        for seed in range(draws):
            with tempfile.TemporaryDirectory() as root:
                drawn = draw(of, kept, share, seed)
                given = shown(of, drawn, seed) if title == "labelled" else None
                measured.append(measure(of, drawn, Path(root), given))
        means = [100 * np.mean([figures[name] for figures, _ in measured], axis=0) for name in TITLES]
        cells = " | ".join(f"{auroc:.1f} / {fpr95:.0f}" for auroc, fpr95 in means)
        print(f"| {of.name}, {title} | {cells} | {sum(joined for _, joined in measured)} of {draws} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("clip", "objects"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--only", default="", help="only sets with this in their name")
    options = parser.parse_args()
    print(f"| set, known | {' | '.join(TITLES)} | joined |\n|{' --- |' * (len(TITLES) + 2)}")
    for of in clip.clip_sets(options.clip):
        if options.only in of.name:
            table(of, (len(of.names) + 1) // 2, options.share, options.draws)
    if options.only in OBJECTS:
        objects = clip.objects(options.objects)
        table(objects, len(objects.names), options.share, options.draws)


if __name__ == "__main__":
    main()
