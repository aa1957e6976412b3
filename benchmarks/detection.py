"""How well ΔEnergy finds the images that don't belong, beside maximum softmax and plain energy on the same features.

    python -m benchmarks.detection DATA [--model starter]

DATA holds images/, classes.txt and truth.csv (columns path, is_ood). One `embed`, one `report`; then AUROC, FPR95 (the
share of OOD images kept at the threshold that keeps 95% of ID), and how many of the planted ones the top of the ranking
holds.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score, roc_curve

from ood_audit.embedding import embed
from ood_audit.encoders.clip import load_encoder
from ood_audit.reports import report
from ood_audit.store.parts import iter_features
from ood_audit.vocabulary import read_vocabulary


def figures(is_ood: np.ndarray, ood_score: np.ndarray) -> tuple[float, float, float]:
    auroc = roc_auc_score(is_ood, ood_score)
    kept, recall, _ = roc_curve(~is_ood, -ood_score, drop_intermediate=False)
    fpr95 = kept[np.argmin(np.abs(recall - 0.95))]
    planted = int(is_ood.sum())
    precision = is_ood[np.argsort(-ood_score)[:planted]].mean()
    return auroc, float(fpr95), float(precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    with (options.data / "truth.csv").open(newline="") as file:
        truth = {row["path"]: row["is_ood"] == "1" for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as folder:
        done = embed(options.data / "images", store=folder, model=options.model)
        made = report(done.store, labels=options.data / "classes.txt", top=10**9)
        classes = read_vocabulary(options.data / "classes.txt").features(load_encoder(options.model).encode_texts)
        batches = list(iter_features(done.store))
    paths = [path for batch in batches for path in batch.paths.to_pylist()]
    cosines = np.concatenate([batch.features for batch in batches]).astype(np.float64) @ classes.T
    is_ood = np.array([truth[path] for path in paths])
    ours = {row["path"]: row["ood_score"] for row in made.rows}
    settings = ", ".join(f"{name} {value:g}" for name, value in made.scores.parameters.items())
    scores = {
        f"ΔEnergy ({settings})": np.array([ours[path] for path in paths]),
        "maximum softmax (τ = 1: MCM)": -softmax(cosines, axis=1).max(axis=1),
        "maximum softmax (τ = 0.01)": -softmax(cosines / 0.01, axis=1).max(axis=1),
        "energy (τ = 1)": -logsumexp(cosines, axis=1),
        "energy (τ = 0.01)": -logsumexp(cosines / 0.01, axis=1),
        "maximum cosine": -cosines.max(axis=1),
    }
    print(f"{len(paths)} images, {is_ood.sum()} of them OOD, {len(classes)} classes, model {options.model}")
    print(f"{'score':52} {'AUROC':>6} {'FPR95':>6}  precision at {is_ood.sum()}")
    for name, score in scores.items():
        auroc, fpr95, precision = figures(is_ood, score)
        print(f"{name:52} {100 * auroc:6.1f} {100 * fpr95:6.1f}  {100 * precision:6.1f}")


if __name__ == "__main__":
    main()
