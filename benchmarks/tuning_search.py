"""Which tuning pays: detection of unknown classes, accuracy on known ones, and accuracy in styles not tuned on.

    python -m benchmarks.tuning_search DATA [--seeds 3] [--model starter] [--only WORDS]

DATA holds objects/ (images/, labelled/CLASS/, classes.txt, truth.csv with the columns path, truth, is_ood) and
styles/DOMAIN/CLASS/ with a domain `photo`. Every recipe is `ood_audit.tuning.trainer.fit` on three quarters of
objects/labelled; its class features then score objects/images. The OOD classes and the ID images there are split in
halves: recipes and defaults were chosen on one, the other confirms. For styles the prompts are tuned on photos alone.

A recipe runs all its epochs, so that the loss is seen and not the stopping; "stopped" ones end where leave-classes-out
says. AUROC and FPR95 (in %, mean ± standard deviation over seeds) are of ΔEnergy (c = 2, τ = 1, v = 0), the maximum
cosine, and the energy at τ = 0.01.
"""

import argparse
import csv
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from ood_audit.classes.vocabulary import Vocabulary, read_vocabulary
from ood_audit.embedding.run import embed
from ood_audit.encoders.clip import ClipEncoder, load_encoder
from ood_audit.scoring.metrics import auroc, fpr95
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.store.parts import iter_features
from ood_audit.tuning.settings import TuneSettings
from ood_audit.tuning.trainer import fit

FULL = TuneSettings(folds=0)  # all epochs
COOP = dataclasses.replace(FULL, loss="coop")
LITERAL = dataclasses.replace(FULL, ebm="literal", mask="top", lambda_=1.0)
STOPPED = TuneSettings().folds
RECIPES = {
    "CoOp": COOP,
    "CoOp, stopped": dataclasses.replace(COOP, folds=STOPPED),
    "CoOp, 16 random vectors": dataclasses.replace(COOP, init=None, context_vectors=16),
    "KgCoOp (CoOp + pull 4)": dataclasses.replace(COOP, pull=4.0),
    "EBM literal, mask top": LITERAL,
    "EBM literal, mask top 10%": dataclasses.replace(LITERAL, mask_proportion=0.1),
    "EBM literal, mask keep": dataclasses.replace(LITERAL, mask="keep"),
    "EBM renormalised, mask top": dataclasses.replace(FULL, mask="top"),
    "EBM renormalised, no pull": dataclasses.replace(FULL, pull=0.0),
    "EBM renormalised, λ = 0": dataclasses.replace(FULL, lambda_=0.0),
    "EBM renormalised": FULL,
    "EBM renormalised, 16 random": dataclasses.replace(FULL, init=None, context_vectors=16),
    "EBM renormalised, stopped": TuneSettings(),
}
HEAD = ["", "accuracy", "ΔE AUROC", "ΔE FPR95", "max AUROC", "max FPR95", "energy AUROC", "energy FPR95"]


def features(folder: Path, model: str) -> tuple[list[str], np.ndarray]:
    """The paths within `folder` and the (N, D) features of its images."""
    with tempfile.TemporaryDirectory() as store:
        batches = list(iter_features(embed(folder, store=store, model=model).store))
    return [path for batch in batches for path in batch.paths.to_pylist()], np.concatenate(
        [b.features for b in batches]
    )


def detection(images: np.ndarray, is_ood: np.ndarray, truth: np.ndarray, classes: np.ndarray) -> list[float]:
    """The figures of a row of HEAD, in %; `truth` is the class number, -1 for OOD."""
    cosines = torch.from_numpy(images @ classes.T)
    scores = [
        delta_energy(cosines, temperature=1.0, top_c=2, reset_to=0.0),
        cosines.max(1).values,
        (cosines / 0.01).logsumexp(1),
    ]
    correct = (cosines.argmax(1).numpy() == truth)[~is_ood].mean()
    found = [metric(is_ood, -score.numpy()) for score in scores for metric in (auroc, fpr95)]
    return [100 * float(value) for value in [correct, *found]]


def halves(is_ood: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to choose on and rows to confirm on: OOD by class, ID by image."""
    generator = np.random.default_rng(0)
    unknown = generator.permutation(sorted(set(truth[is_ood])))
    first = np.where(is_ood, np.isin(truth, unknown[: (len(unknown) + 1) // 2]), generator.random(len(truth)) < 0.5)
    return np.flatnonzero(first), np.flatnonzero(~first)


def objects(folder: Path, encoder: ClipEncoder, seeds: int, only: str) -> None:
    vocabulary = read_vocabulary(folder / "classes.txt")
    with (folder / "truth.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    paths, images = features(folder / "images", encoder.identity.model)
    is_ood = np.array([rows[path]["is_ood"] == "1" for path in paths])
    names = np.array([rows[path]["truth"] for path in paths])
    truth = np.array([vocabulary.names.index(n) if n in vocabulary.names else -1 for n in names])
    labelled_paths, labelled = features(folder / "labelled", encoder.identity.model)
    labels = np.array([vocabulary.names.index(Path(path).parts[0].replace("_", " ")) for path in labelled_paths])
    first, second = halves(is_ood, names)

    def evaluate(classes: np.ndarray) -> list[float]:
        parts = (detection(images[rows], is_ood[rows], truth[rows], classes) for rows in (first, second))
        return [value for part in parts for value in part]

    table = compare(labelled, labels, vocabulary, encoder, (seeds, only), evaluate)
    count = len(HEAD)
    for title, start in (("the half chosen on", 1), ("the half that confirms", count)):
        part = [[row[0], *row[start : start + count - 1], row[-1]] for row in table]
        print(f"\nobjects, {title}\n{tabulate(part, [*HEAD, 'epoch'], disable_numparse=True)}", flush=True)


def styles(folder: Path, encoder: ClipEncoder, seeds: int, only: str) -> None:
    paths, images = features(folder, encoder.identity.model)
    domains, names = (np.array([Path(path).parts[i] for path in paths]) for i in (0, 1))
    classes, labels = np.unique(names, return_inverse=True)
    vocabulary = Vocabulary(tuple((name.replace("_", " "),) for name in classes.tolist()))
    photo = domains == "photo"
    others = [domain for domain in np.unique(domains) if domain != "photo"]

    def evaluate(class_features: np.ndarray) -> list[float]:
        correct = (images @ class_features.T).argmax(1) == labels
        found = [100 * float(correct[domains == domain].mean()) for domain in others]
        return [*found, float(np.mean(found))]

    table = compare(images[photo], labels[photo], vocabulary, encoder, (seeds, only), evaluate)
    print(f"\nstyles, accuracy\n{tabulate(table, ['', *others, 'mean', 'epoch'], disable_numparse=True)}", flush=True)


def compare(
    labelled: np.ndarray,
    labels: np.ndarray,
    vocabulary: Vocabulary,
    encoder: ClipEncoder,
    extent: tuple[int, str],
    evaluate: Callable[[np.ndarray], list[float]],
) -> list[list[str]]:
    """A row for the hand-written prompt and for each recipe: its name, the figures, the epochs kept."""
    untuned = evaluate(vocabulary.features(encoder.encode_texts))
    table = [["untuned", *(f"{value:.1f}" for value in untuned), "0"]]
    seeds, only = extent
    for name, settings in RECIPES.items():
        if only not in name:
            continue
        runs = [
            fit(labelled, labels, vocabulary.classes, encoder, dataclasses.replace(settings, seed=seed))
            for seed in range(seeds)
        ]
        found = np.array([evaluate(run.class_features) for run in runs])
        spread = zip(found.mean(0), found.std(0), strict=True)
        table.append([name, *(f"{m:.1f} ± {s:.1f}" for m, s in spread), ", ".join(str(run.epoch) for run in runs)])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--only", default="", help="recipes whose name has these words")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    objects(options.data / "objects", encoder, options.seeds, options.only)
    styles(options.data / "styles", encoder, options.seeds, options.only)


if __name__ == "__main__":
    main()
