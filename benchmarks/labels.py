"""How well label issues are found, and how many are found where there is none.

    python -m benchmarks.labels DATA [--model starter] [--seeds 5]

DATA holds objects/ (images/, classes.txt, labelled/, truth.csv with columns path, truth and kind; the swaps are of the
kind mislabelled) and styles/photo/CLASS/, in which a tenth of the images is put into other folders, by seed. Where
there are N swaps, the precision of the ranking is that of its first N.
"""

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from ood_audit.embedding.run import embed
from ood_audit.findings import label_issues
from ood_audit.scoring.run import score
from ood_audit.scoring.settings import ScoreSettings
from ood_audit.store import Store
from ood_audit.store.views import connect, registered
from ood_audit.tuning.tune import tune

SHARE = 0.1


def measure(title: str, store: Store, truth: dict[str, str | None], labels: Path | None = None, **options) -> None:
    """Print a row. `truth` is what an image shows, by its path; None for something else than the classes."""
    score(store, labels=labels, settings=ScoreSettings(**options))
    with connect(store) as db, registered(db, judged=label_issues.find(db).table):
        rows = db.execute(
            "SELECT path, given_label, suggested_label, label_issue, found FROM judged JOIN scores USING (image_id)"
        ).fetchall()
    shows = np.array([truth[path] for path, *_ in rows], dtype=object)
    given, suggested, _, found = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    issue = np.array([row[3] for row in rows])
    outside = np.array([what is None for what in shows])
    swapped = ~outside & (shows != given)
    count = int(swapped.sum())
    top = np.argsort(-issue, kind="stable")[:count]
    right = swapped & (suggested == shows)
    ranking = f"{swapped[top].mean():.2f}  {average_precision_score(swapped, issue):.3f}" if count else "   -      -"
    decided = (
        f"{(found & swapped).sum() / max(1, found.sum()):.2f}   {(found & swapped).sum() / count:.2f}"
        if count
        else "   -      -"
    )
    print(
        f"{title:32} {len(rows):5} {count:6}   {ranking}   {found.sum():4}   {decided}   "
        f"{(found & outside).sum():4} {(found & ~outside & ~swapped).sum():6} {(found & right).sum():6}",
        flush=True,
    )


def plant(source: Path, shows: dict[str, str | None], target: Path, share: float, seed: int) -> dict[str, str | None]:
    """Link images into folders of what they show, a share of them into others.

    Args:
        source: where the images are.
        shows: what they show, by path; those that show something else stay in the folder that they are in.
        target: where to make the folders.
        share: of the images.
        seed: of the choice.

    Returns:
        what each image shows, by its new path.

    """
    draw = np.random.default_rng(seed)
    known = sorted(path for path, shown in shows.items() if shown is not None)
    classes = sorted({str(shows[path]) for path in known})
    swapped = {known[i] for i in draw.choice(len(known), round(share * len(known)), replace=False)}
    truth: dict[str, str | None] = {}
    for path, shown in sorted(shows.items()):
        folder = path.rpartition("/")[0]
        if path in swapped:
            folder = str(draw.choice([name for name in classes if name != shown]))
        elif shown is not None:
            folder = shown
        new = f"{folder}/{path.replace('/', ' ')}"
        (target / folder).mkdir(parents=True, exist_ok=True)
        (target / new).symlink_to((source / path).resolve())
        truth[new] = shown
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    objects = options.data / "objects"
    labels = objects / "classes.txt"
    with (objects / "truth.csv").open(newline="") as file:
        truth = {row["path"]: None if row["kind"] == "ood" else row["truth"] for row in csv.DictReader(file)}
    print(f"{'':32} {'':5} {'':6}  of the ranking         of what is listed as an issue")
    print(f"{'':32} images  swaps  prec.  AP     listed  prec.  recall  OOD  wrong  right label")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        store = embed(objects / "images", store=root / "objects", model=options.model).store
        measure("objects: text", store, truth, labels=labels, prompts="none", prototypes=False)
        measure("objects: folders", store, truth, labels=labels)
        tune(store, labels=labels, folder=objects / "labelled")
        measure("objects: tuned", store, truth, labels=labels)
        photo = options.data / "styles" / "photo"
        shows: dict[str, str | None] = {
            f"{path.parent.name}/{path.name}": path.parent.name for path in photo.glob("*/*")
        }
        planted = [("objects", objects / "images", truth, 0.0, 0), ("photo", photo, shows, 0.0, 0)]
        planted += [("photo", photo, shows, SHARE, seed) for seed in range(options.seeds)]
        for name, source, shown, share, seed in planted:
            where = root / f"{name} {share} {seed}"
            moved = plant(source, shown, where / "images", share, seed)
            made = embed(where / "images", store=where / "store", model=options.model).store
            shutil.copytree(store.vocabularies, made.vocabularies)  # the names of other things, encoded
            measure(f"{name}: folders, {share:.0%} swaps, seed {seed}", made, moved)


if __name__ == "__main__":
    main()
