"""How well each score finds what does not belong: untuned, tuned by CoOp and by EBM, with and without prototypes.

    python -m benchmarks.methods DATA [--seeds 3] [--model starter] [--tables abc] [--skip csp] [--only chosen]

DATA holds objects/ (images/, labelled/CLASS/, classes.txt, truth.csv with the columns path, truth, is_ood) and
styles/DOMAIN/CLASS/ with a domain `photo`. Prints, as Markdown, the tables of the README:

(a) objects/, with images in one folder, so that nothing tells their class: every score, text alone and with
    prototypes of the labelled subset, for prompts as they are and tuned by CoOp and by EBM; mean and spread over seeds.
(b) what is known: nothing, the labelled subset, the folders that images lie in, or both; what was forecast, and how
    well the forecasts of all settings rank them (Spearman).
(c) styles/: tuned on photos alone; accuracy in the other styles, and detection of objects/ images of other classes
    among the images of each style.

The searches behind the defaults of `tune` are in benchmarks/tuning_search.py.
"""

import argparse
import csv
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.arrays import to_numpy
from ood_audit.classes import prompts
from ood_audit.classes import vocabulary as vocabularies
from ood_audit.classes.pools import load as load_pool
from ood_audit.classes.vocabulary import read_vocabulary
from ood_audit.scoring import metrics, references, selection
from ood_audit.scoring.context import Context
from ood_audit.scoring.plan import prepare
from ood_audit.scoring.scores import load
from ood_audit.scoring.settings import described
from ood_audit.scoring.similarity import chunks
from ood_audit.store import Store, open_store
from ood_audit.tuning.settings import TuneSettings

# Classes of objects/ that show a class of styles/ (dog, elephant, giraffe, guitar, horse, house, person).
SHARED = {"elephant", "electric guitar", "dalmatian", "cartoon dog"}
SCORES: dict[str, dict[str, Any]] = {
    "ΔEnergy, chosen": {"method": "delta-energy"},
    "best, chosen": {"method": "best"},
    "ΔEnergy, the encoder's": {"method": "delta-energy", "auto": False},
    "ΔEnergy, τ .015 c 1, background": {
        "method": "delta-energy",
        "auto": False,
        "background": True,
        "temperature": 0.015,
        "top_c": 1,
        "reset_to": 0.0,
    },
    "maximum cosine": {"method": "maxlogit"},
    "MCM (τ 1)": {"method": "mcm"},
    "maximum softmax (τ .01)": {"method": "mcm", "temperature": 0.01},
    "energy (τ .01)": {"method": "energy", "temperature": 0.01},
    "LogitGap": {"method": "logitgap"},
    "SimLabel": {"method": "simlabel"},
    "NegLabel": {"method": "neglabel"},
    "CSP": {"method": "csp"},
    "k-NN (labelled)": {"method": "knn"},
}
Figures = tuple[float, float, float]  # AUROC, FPR95, accuracy, in %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tables", default="abc", help="Which of them; without seeds there are no tuned columns.")
    parser.add_argument("--skip", action="append", default=[], help="A score to leave out; csp takes minutes.")
    parser.add_argument("--only", default="", help="Of table (a) only rows with this in their name.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if set(options.tables) & {"a", "b"}:
            objects(options.data / "objects", work, options)
        if "c" in options.tables:
            styles(options.data, work, options)


def objects(data: Path, work: Path, options: argparse.Namespace) -> None:
    with (data / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = {flat(row["path"]): (row["is_ood"] == "1", row["truth"]) for row in rows}
    labels = data / "classes.txt"
    one_folder = work / "objects"
    one_folder.mkdir()
    for row in rows:
        shutil.copy(data / "images" / row["path"], one_folder / flat(row["path"]))
    store = ood_audit.embed(one_folder, store=work / "flat", model=options.model).store
    if "b" in options.tables:
        print("\n(b) what is known; the default, seed 0\n")
        print_row(["known", "forecast AUROC", "AUROC", "FPR95", "accuracy", "Spearman", "settings"])
        print_row(["---"] * 7)
        known(store, truth, labels, "none", "nothing")  # before `tune` registers the labelled images
    columns = tuned(store, labels, data / "labelled", options.seeds)
    if "b" in options.tables:
        with_labels(store, truth, rows, columns, data, work, options)
    if "a" in options.tables:
        every_score(store, truth, labels, columns, options)


def with_labels(
    store: Store,
    truth: dict[str, tuple[bool, str]],
    rows: list[dict[str, str]],
    columns: dict[str, list[str]],
    data: Path,
    work: Path,
    options: argparse.Namespace,
) -> None:
    """Print the other rows of table (b)."""
    labels = data / "classes.txt"
    in_folders = ood_audit.embed(data / "images", store=work / "folders", model=options.model).store
    by_folder = {row["path"]: (row["is_ood"] == "1", row["truth"]) for row in rows}
    known(store, truth, labels, columns["untuned"][0], "labelled subset")
    known(in_folders, by_folder, labels, "none", "folders")
    own = tuned(in_folders, labels, data / "labelled", min(1, options.seeds))
    known(in_folders, by_folder, labels, own["untuned"][0], "folders and labelled subset")
    if "EBM" in own:
        known(in_folders, by_folder, labels, own["EBM"][0], "the same, EBM prompts")


def every_score(
    store: Store,
    truth: dict[str, tuple[bool, str]],
    labels: Path,
    columns: dict[str, list[str]],
    options: argparse.Namespace,
) -> None:
    """Print table (a)."""
    print(
        f"\n(a) {len(truth)} images in one folder, {sum(ood for ood, _ in truth.values())} OOD; AUROC / FPR95, in %\n"
    )
    header = [f"{name}{' + prototypes' * with_}" for name in columns for with_ in (False, True)]
    print_row(["score", *header])
    print_row(["---"] * (len(header) + 1))
    for title, settings in SCORES.items():
        if settings["method"] in options.skip or options.only not in title:
            continue
        cells = []
        for names in columns.values():
            for with_ in (False, True):
                found = [
                    figures(store, truth, labels=labels, prompts=name, prototypes=with_, seed=seed, **settings)
                    for seed, name in enumerate(names)
                ]
                cells.append(cell(found))
        print_row([title, *cells])
    print_row(
        ["*accuracy*"]
        + [
            spread([figures(store, truth, labels=labels, prompts=n, prototypes=w, auto=False)[2] for n in names])
            for names in columns.values()
            for w in (False, True)
        ]
    )


def styles(data: Path, work: Path, options: argparse.Namespace) -> None:
    domains = [folder.name for folder in sorted((data / "styles").iterdir()) if folder.is_dir()]
    classes = sorted(folder.name for folder in (data / "styles" / "photo").iterdir())
    labels = work / "styles.txt"
    labels.write_text("\n".join(classes))
    one_folder = work / "styles"
    one_folder.mkdir()
    truth: dict[str, dict[str, tuple[bool, str]]] = {domain: {} for domain in domains}
    for path in (data / "styles").glob("*/*/*"):
        name = flat(str(path.relative_to(data / "styles")))
        shutil.copy(path, one_folder / name)
        truth[path.parts[-3]][name] = (False, path.parts[-2])
    with (data / "objects" / "truth.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["truth"] not in SHARED:
                shutil.copy(data / "objects" / "images" / row["path"], one_folder / flat(row["path"]))
                for domain in domains:
                    truth[domain][flat(row["path"])] = (True, row["truth"])
    store = ood_audit.embed(one_folder, store=work / "styles-store", model=options.model).store
    columns = tuned(store, labels, data / "styles" / "photo", options.seeds)
    others = [domain for domain in domains if domain != "photo"]
    print("\n(c) tuned on photos: accuracy in other styles; AUROC / FPR95 of objects among them, ΔEnergy, in %\n")
    print_row(["prompts", *(f"{d} {what}" for d in others for what in ("accuracy", "detection"))])
    print_row(["---"] * (1 + 2 * len(others)))
    for name, tunings in columns.items():
        for with_ in (False, True):
            cells = []
            for domain in others:
                found = [
                    figures(store, truth[domain], labels=labels, prompts=p, prototypes=with_, seed=seed)
                    for seed, p in enumerate(tunings)
                ]
                cells += [spread([f[2] for f in found]), cell(found)]
            print_row([f"{name}{' + prototypes' * with_}", *cells])
    print("\nSpearman of forecast and truth over all settings, by style (labelled: photos):\n")
    for domain in others:
        known(store, truth[domain], labels, columns["untuned"][0], domain)


def tuned(store: Store, labels: Path, labelled: Path, seeds: int) -> dict[str, list[str]]:
    """Prompts by recipe; the untuned ones only register the labelled images."""
    recipes: dict[str, Callable[[int], TuneSettings]] = {
        "untuned": lambda seed: TuneSettings(epochs=0, seed=seed),
        "CoOp": lambda seed: TuneSettings(loss="coop", seed=seed),
        "EBM": lambda seed: TuneSettings(seed=seed),
    }
    names: dict[str, list[str]] = {}
    for recipe, settings in recipes.items():
        for seed in range(1 if recipe == "untuned" else seeds):
            name = f"{recipe.lower()}-{seed}"
            ood_audit.tune(store, labels=labels, folder=labelled, settings=settings(seed), name=name)
            names.setdefault(recipe, []).append(name)
    return names


def figures(store: Store, truth: dict[str, tuple[bool, str]], labels: Path, **options: Any) -> Figures:
    """AUROC, FPR95 and accuracy of a score."""
    ood_audit.score(store, labels=labels, settings=ScoreSettings(**options))
    rows = [row for row in store.query("SELECT path, ood_score, label FROM scores").rows if row[0] in truth]
    is_ood = np.array([truth[path][0] for path, _, _ in rows])
    ood_score = np.array([score for _, score, _ in rows], dtype=np.float64)
    right = [label == truth[path][1] for path, _, label in rows if not truth[path][0]]
    return 100 * metrics.auroc(is_ood, ood_score), 100 * metrics.fpr95(is_ood, ood_score), 100 * float(np.mean(right))


def known(store: Store, truth: dict[str, tuple[bool, str]], labels: Path, prompt: str, title: str) -> None:
    """A row of table (b), and the rank correlation of forecast and true AUROC over the candidates."""
    scores = ood_audit.score(store, labels=labels, settings=ScoreSettings(prompts=prompt))
    auroc, fpr95, accuracy = figures(store, truth, labels=labels, prompts=prompt)
    rank = spearman(store, truth, labels, prompt)
    words = described("delta-energy", scores.parameters)
    forecast = "–" if scores.forecast is None else f"{100 * scores.forecast:.1f}"
    print_row([title, forecast, f"{auroc:.1f}", f"{fpr95:.1f}", f"{accuracy:.1f}", f"{rank:.2f}", words])


def spearman(store: Store, truth: dict[str, tuple[bool, str]], labels: Path, prompt: str) -> float:
    """Of the forecast and the true AUROCs of all candidates."""
    vocabulary = read_vocabulary(labels)
    own = prompts.choose(store, vocabulary, prompt)
    defaults = {"temperature": 1.0, "top_c": 2, "reset_to": 0.0}
    cached = vocabularies.cached_features(store, vocabulary, lambda: None)  # type: ignore[arg-type, return-value]
    text = own.class_features if own else cached
    _, found = references.collect(store, vocabulary, text, own.labelled if own else None, defaults)
    sample = references.thinned(found, seed=0)
    pool = load_pool(store, vocabulary, "background", lambda: None)  # type: ignore[arg-type, return-value]
    plan = prepare(Context(store, vocabulary, "cpu", print), ScoreSettings(), ["delta-energy"], own)
    plan.target.pools["background"] = pool
    chosen = selection.select(sample, text, defaults, background=pool)
    function = load("delta-energy")
    paths: list[str] = []
    raw: list[np.ndarray] = []
    for chunk in chunks(open_store(store.root), plan.target, "cpu"):
        paths += chunk.paths
        raw.append(np.stack([to_numpy(chunk.raw(function, settings)) for _, settings in chosen.candidates], axis=1))
    values = np.concatenate(raw).astype(np.float64)
    rows = [i for i, path in enumerate(paths) if path in truth]
    is_ood = np.array([truth[paths[i]][0] for i in rows])
    true = [metrics.auroc(is_ood, -column) for column in np.nan_to_num(values[rows], posinf=1e30).T]
    return float(spearmanr(chosen.aurocs, true).statistic)


def flat(path: str) -> str:
    return path.replace("/", "__")


def cell(found: list[Figures]) -> str:
    return f"{spread([f[0] for f in found])} / {spread([f[1] for f in found])}"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 else "")


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
