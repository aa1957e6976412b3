"""What each way to tune does: accuracy, accuracy in styles that were not tuned on, and detection of unknown classes.

    python -m benchmarks.tuning DATA [--seeds 3] [--first 0] [--only WORDS] [--names styles] [--keep FILE]

DATA has clip/, the .npz files that benchmarks/clip.py reads, and styles/DOMAIN/CLASS/ with a domain `photo`, which is
embedded with the starter. A part of the names of a set is the vocabulary: half of them, of styles five. Images of the
other names are out of distribution, a fifth of those audited. Up to 8 images of each class are labelled, at most half
of them; in styles they are photos, and the images audited are the other photos, and those of each other style.

AUROC and FPR95 are of ΔEnergy at τ = 0.01, c = 1, v = 0 with the background, where there is one; "in styles" is the
mean over the other styles. All figures are in %, mean ± standard deviation over the seeds, which draw names and images.
Prompts are tuned in styles alone: there is no text tower for clip/. "Weighed" is as a report weighs what was tuned, by
how alike audited and labelled images are. The last table has what the unlabelled images do where 0, 5 and 20% of them
are OOD.

What is measured is written to FILE, a line for each recipe, set and seed, and read from there the next time.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from benchmarks.clip import Floats, Set, clip_sets, embedded, unit
from ood_audit.classes import wordnet
from ood_audit.encoders.clip import ClipEncoder, load_encoder
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.scoring import metrics
from ood_audit.scoring.kinship import between, kinship
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.tuning import residual, trainer
from ood_audit.tuning.settings import TuneSettings, settings_of
from ood_audit.tuning.trainer import Beside

SHOTS = 8
SHARE = 0.2
CLIP = ScoreDefaults(0.01, 1, 0.0)
HEAD = ("accuracy", "AUROC", "FPR95")
learned = partial(settings_of, method="residual")
RECIPES: dict[str, TuneSettings | None] = {
    "none": None,
    "CoOp": settings_of(loss="coop"),
    "CoOp + OGEN": settings_of(loss="coop", regulariser="ogen"),
    "EBM as printed": settings_of(ebm="literal"),
    "EBM as found": settings_of(),
    "EBM as found, without its energy term": settings_of(lambda_=0.0),
    "EBM as found + OGEN": settings_of(regulariser="ogen"),
    "EBM as found, adaptive mask": settings_of(mask="adaptive"),
    "EBM as found + unlabelled": settings_of(unlabelled=True),
    "residual": learned(),
    "no residual, names moved": learned(epochs=0),
    "residual, no gap closed": learned(gap=0.0),
    "residual, spread not evened": learned(evened=0.0),
    "residual, neither": learned(gap=0.0, evened=0.0),
    "residual, not held apart": learned(apart=0.0),
    "residual, EBM as printed": learned(loss="ebm", ebm="literal"),
    "residual, EBM as found": learned(loss="ebm"),
    "residual, EBM as found, without its energy term": learned(loss="ebm", lambda_=0.0),
    "residual, EBM as found, adaptive mask": learned(loss="ebm", mask="adaptive"),
    "residual + pull": learned(regulariser="pull"),
    "residual + OGEN": learned(regulariser="ogen"),
    "residual + distillation": learned(distil=1000.0),
    "residual + unlabelled": learned(unlabelled=True),
}
WEIGHED = ("CoOp", "EBM as found", "residual")


@dataclass(frozen=True)
class Draw:
    """Labelled images and their labels; audited ones by style and theirs (−1: OOD); texts, background, names."""

    images: Floats
    labels: NDArray[np.int64]
    audited: dict[str, tuple[Floats, NDArray[np.int64]]]
    texts: Floats
    background: Floats | None
    names: list[str]


def draw(of: Set, styles: NDArray[np.str_], seed: int) -> Draw:
    """Names and images of a set; the first of the styles is the one to tune on."""
    rng = np.random.default_rng([seed, len(of.names)])
    kinds = list(dict.fromkeys(["photo", *styles.tolist()]))
    count = 5 if len(kinds) > 1 else (len(of.names) + 1) // 2
    kept = np.sort(rng.permutation(len(of.names))[:count])
    number = np.full(len(of.names) + 1, -1)
    number[kept] = np.arange(count)
    labels = number[of.labels]  # −1 is the last
    shown: list[int] = []
    for k in range(count):
        rows = rng.permutation(np.flatnonzero((labels == k) & (styles == "photo")))
        shown += rows[: min(SHOTS, len(rows) // 2)].tolist()
    audited = {}
    for kind in kinds:
        inside = np.setdiff1d(np.flatnonzero((labels >= 0) & (styles == kind)), shown)
        outside = np.flatnonzero((labels < 0) & (styles == kind))
        outside = rng.permutation(outside)[: round(SHARE / (1 - SHARE) * len(inside))]
        rows = np.r_[inside, outside]
        audited[kind] = of.images[rows], labels[rows]
    background = None
    if of.background is not None:
        names, features = of.background
        known = set().union(*(wordnet.same_thing(of.names[k]) | {of.names[k]} for k in kept))
        free = np.array([name not in known for name in names])
        background = features[free & ((features @ of.texts[kept].T).max(axis=1) <= 0.95)]
    return Draw(of.images[shown], labels[shown], audited, of.texts[kept], background, [of.names[k] for k in kept])


def figures(images: Floats, labels: NDArray[np.int64], classes: Floats, background: Floats | None) -> list[float]:
    """Those of HEAD, in %."""
    cosines = torch.from_numpy(images @ classes.T)
    outside = None if background is None else torch.from_numpy(images @ background.T)
    score = -delta_energy(cosines, temperature=0.01, top_c=1, reset_to=0.0, background=outside).double().numpy()
    known = labels >= 0
    right = (cosines.argmax(1).numpy() == labels)[known].mean()
    return [100 * float(v) for v in (right, metrics.auroc(~known, score), metrics.fpr95(~known, score))]


def tuned(
    of: Draw, recipe: TuneSettings | None, seed: int, encoder: ClipEncoder | None, unlabelled: Floats
) -> tuple[Floats, Floats | None]:
    """(K, D) class features, and (D + 1, D) how the background is moved beside them, None for not at all."""
    if recipe is None:
        return of.texts, None
    settings = replace(recipe, seed=seed)
    beside = Beside(of.background, unlabelled)
    if settings.method == "residual":
        found = residual.fit(of.images, of.labels, of.texts, CLIP, settings, beside=beside)
        return found.class_features, found.move
    assert encoder is not None
    names = [(name,) for name in of.names]
    return trainer.fit(of.images, of.labels, names, encoder, settings, beside=beside).class_features, None


def beside_names(background: Floats | None, move: Floats | None, weight: float = 1.0) -> Floats | None:
    """The background, by so much of a move."""
    if background is None or move is None:
        return background
    return unit((1 - weight) * background + weight * (background @ move[:-1] + move[-1]))


class Kept:
    """Figures that were measured before, in a file of JSON lines; without a file, in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        self.known: dict[str, list[list[float]]] = dict(map(json.loads, lines))

    def get(self, key: list[Any], measure: Callable[[], list[list[float]]]) -> list[list[float]]:
        name = json.dumps(key)
        if name not in self.known:
            self.known[name] = measure()
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, self.known[name]]) + "\n")
        return self.known[name]


def measured(of: Draw, recipe: TuneSettings | None, seed: int, encoder: ClipEncoder | None) -> list[list[float]]:
    """Figures of each style in turn, of what was tuned as it is; then the same as reports weigh it."""
    every = np.concatenate([images for images, _ in of.audited.values()])
    classes, move = tuned(of, recipe, seed, encoder, every)
    plain, weighed = [], []
    for images, truth in of.audited.values():
        plain += figures(images, truth, classes, beside_names(of.background, move))
        alike = kinship(of.images, of.labels, images, of.texts)
        names = beside_names(of.background, move, alike)
        weighed += figures(images, truth, between(of.texts, classes, alike), names)
    return [plain, weighed]


def row(title: str, runs: list[list[float]]) -> list[str]:
    spread = zip(np.mean(runs, axis=0), np.std(runs, axis=0), strict=True)
    return [title, *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in spread)]


def across(run: list[float]) -> list[float]:
    """Figures of each style → accuracy in each, AUROC and FPR95 in the first, and their means over the others."""
    table = np.array(run).reshape(-1, len(HEAD))
    return [*table[:, 0], *table[0, 1:], *(table[1:, 1:].mean(axis=0) if len(table) > 1 else [])]


def compare(
    sets: list[tuple[Set, NDArray[np.str_]]], encoder: ClipEncoder | None, seeds: range, only: str, kept: Kept
) -> None:
    """Print the table of some sets, which are tuned in the same ways."""
    head = ["tuned by"]
    draws = [[draw(of, styles, seed) for of, styles in sets] for seed in seeds]
    for (of, _), one in zip(sets, draws[0], strict=True):
        _, *others = list(one.audited)
        columns = ["accuracy", *(f"{kind} accuracy" for kind in others), "AUROC", "FPR95"]
        columns += ["AUROC in styles", "FPR95 in styles"] if others else []
        head += [f"{of.name}: {columns[0]}", *columns[1:]]
    print(f"\n| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for title, recipe in RECIPES.items():
        if only not in title or (recipe is not None and recipe.method == "prompt" and encoder is None):
            continue
        runs: list[list[list[float]]] = []  # by seed: of what was tuned as it is, and weighed
        for seed, drawn in zip(seeds, draws, strict=True):
            found = []
            for (of, _), one in zip(sets, drawn, strict=True):
                key = [of.name, title, None if recipe is None else asdict(recipe), seed]
                found.append(kept.get(key, partial(measured, one, recipe, seed, encoder)))
            runs.append([[v for run in found for v in across(run[weighed])] for weighed in range(2)])
        for weighed in range(2 if encoder is not None and title in WEIGHED else 1):
            name = f"{title}, weighed" if weighed else title
            print(f"| {' | '.join(row(name, [run[weighed] for run in runs]))} |", flush=True)


def shares(of: Set, seeds: range, kept: Kept) -> list[list[str]]:
    """What unlabelled images do by the share of OOD images among them."""
    table = []
    for share in (None, 0.0, 0.05, 0.2):
        recipe = settings_of(method="residual", unlabelled=share is not None)

        def measure(seed: int, share: float | None = share, recipe: TuneSettings = recipe) -> list[list[float]]:
            one = draw(of, np.full(len(of.images), "photo"), seed)
            images, labels = one.audited["photo"]
            inside, outside = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
            some = outside[: round((share or 0.0) / (1 - (share or 0.0)) * len(inside))]
            classes, move = tuned(one, recipe, seed, None, images[np.r_[inside, some]])
            return [figures(images, labels, classes, beside_names(one.background, move))]

        key = [of.name, "share", share, asdict(recipe)]
        runs = [kept.get([*key, seed], partial(measure, seed))[0] for seed in seeds]
        table.append(row(f"{of.name}, " + ("without" if share is None else f"{share:.0%} OOD"), runs))
    return table


def in_styles(folder: Path) -> tuple[Set, NDArray[np.str_]]:
    """The starter's features of DOMAIN/CLASS/ and the domain of each."""
    names = sorted({path.name for path in folder.glob("*/*") if path.is_dir()})
    domains: list[str] = []

    def class_of(path: str) -> str:
        domain, name = Path(path).parts[:2]
        domains.append(domain)
        return name

    return embedded("styles, starter", folder, names, class_of), np.array(domains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="recipes whose name has these words")
    parser.add_argument("--names", default="", help="sets whose name has these words")
    parser.add_argument("--keep", type=Path, help="a file of what was measured, for the next time")
    given: Any = parser.parse_args()
    kept, seeds = Kept(given.keep), range(given.first, given.first + given.seeds)
    if given.names in "styles":
        compare([in_styles(given.data / "styles")], load_encoder("starter", device="cpu"), seeds, given.only, kept)
    of_clip = [of for of in clip_sets(given.data / "clip") if given.names in of.name]
    if of_clip:
        compare([(of, np.full(len(of.images), "photo")) for of in of_clip], None, seeds, given.only, kept)
        rest = [line for of in of_clip for line in shares(of, seeds, kept)]
        print(f"\nresidual + unlabelled\n{tabulate(rest, ['', *HEAD], tablefmt='github', disable_numparse=True)}")


if __name__ == "__main__":
    main()
