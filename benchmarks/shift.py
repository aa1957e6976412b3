"""How well the kinds of shift are told apart: in distribution, covariate, semantic.

    python -m benchmarks.shift DATA [--splits 5] [--false-alarms 0.05] [--model starter] [--keep DIR]

DATA holds styles/DOMAIN/CLASS/ with a domain `photo`, and objects/ (images/, labelled/, classes.txt, truth.csv). Of the
photos 12 a class are labelled, by split; the others are in distribution, the drawings of the same classes covariate.
Semantic are (a) the images of objects/ of other classes, (b) photos of three classes of styles/, drawn by split, that
are left out of the vocabulary; their drawings are shown apart. (c) is objects/ with labelled/, which has no covariate
images. All images under audit lie in one folder. Prints the share of each kind, by the truth, in percent, and the mean
number of images; over the splits.
"""

import argparse
import csv
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import ood_audit
from benchmarks.methods import SHARED
from benchmarks.splits import Embedded, link
from ood_audit import FindingSettings
from ood_audit.findings.shift import NAMES

LABELLED = 12  # photos a class
Truth = dict[Path, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--false-alarms", type=float, default=0.05)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--keep", type=Path, help="Where to keep what is embedded, for the next time.")
    options = parser.parse_args()
    styles, objects = options.data / "styles", options.data / "objects"
    drawn = {path: (path.parts[-3], path.parts[-2]) for path in sorted(styles.glob("*/*/*"))}
    with (objects / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    others: Truth = {objects / "images" / r["path"]: "semantic" for r in rows if r["truth"] not in SHARED}
    classes = sorted({name for _, name in drawn.values()})
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        both = [styles, objects / "images", objects / "labelled"]
        embedded = Embedded.of(both, options.keep or root / "all", options.model)
        a, b = [], []
        for seed in range(options.splits):
            labelled, truth = split(drawn, classes, seed)
            a.append(audit(embedded, root / f"a{seed}", labelled, truth | others, options.false_alarms))
            known = sorted(np.random.default_rng(seed).choice(classes, 4, replace=False))
            labelled, truth = split(drawn, known, seed)
            b.append(audit(embedded, root / f"b{seed}", labelled, truth, options.false_alarms))
        show("(a) photos of 7 classes; images of other classes from objects/ are semantic", a)
        show("(b) photos of 4 classes; photos of the 3 others are semantic", b)
        labelled = {path: path.parent.name for path in sorted((objects / "labelled").glob("*/*"))}
        truth = {
            objects / "images" / row["path"]: "semantic" if row["is_ood"] == "1" else "in-distribution" for row in rows
        }
        show("(c) objects/", [audit(embedded, root / "c", labelled, truth, options.false_alarms)])


def split(drawn: dict[Path, tuple[str, str]], known: list[str], seed: int) -> tuple[Truth, Truth]:
    """The class of the labelled photos; and of the other images what kind of shift they show."""
    draw = np.random.default_rng(seed)
    labelled: Truth = {}
    truth: Truth = {}
    for name in known:
        photos = [path for path, what in drawn.items() if what == ("photo", name)]
        labelled |= {photos[i]: name for i in draw.choice(len(photos), LABELLED, replace=False)}
    for path, (style, name) in drawn.items():
        if path not in labelled and name in known:
            truth[path] = "in-distribution" if style == "photo" else style
        elif path not in labelled:
            truth[path] = "semantic" if style == "photo" else "drawing of an unknown class"
    return labelled, truth


def audit(embedded: Embedded, place: Path, labelled: Truth, truth: Truth, level: float) -> Counter[tuple[str, str]]:
    """How many images of each truth are called each kind."""
    labels = place / "classes.txt"
    given = {f"{name}/{i:04d}{path.suffix}": path for i, (path, name) in enumerate(labelled.items())}
    folder = link(given, place / "labelled")
    labels.write_text("\n".join(sorted(set(labelled.values()))))
    called = {f"{i:04d}{path.suffix}": path for i, path in enumerate(truth)}
    store = embedded.store_of(link(called, place / "images"), place / "store")
    embedded.register(store, folder, labels)
    ood_audit.report(store, top=1, find=FindingSettings(false_alarms=level))
    embedded.keep_texts(store)
    rows = store.query("SELECT path, shift FROM report").rows
    return Counter((truth[called[path]], shift) for path, shift in rows)


def show(title: str, found: list[Counter[tuple[str, str]]]) -> None:
    """Print the table of all splits."""
    print(f"\n{title}\n\n| truth | {' | '.join(NAMES)} | images |\n{'| --- ' * (len(NAMES) + 2)}|")
    kinds = sorted({kind for counts in found for kind, _ in counts})
    styles = [kind for kind in kinds if kind not in NAMES and " " not in kind]
    groups = [("in-distribution", ["in-distribution"]), *((kind, [kind]) for kind in styles)]
    groups += [("covariate, all", styles)] if styles else []
    groups += [(kind, [kind]) for kind in kinds if kind == "semantic" or " " in kind]
    for name, those in groups:
        cells = []
        sums = [sum(counts[kind, called] for kind in those for counts in found) for called in NAMES]
        per_split = [sum(counts[kind, called] for kind in those for called in NAMES) for counts in found]
        cells = [f"{100 * n / sum(sums):.0f}% ({n / len(found):.1f})" for n in sums]
        print(f"| {name} | {' | '.join(cells)} | {np.mean(per_split):.0f} |", flush=True)


if __name__ == "__main__":
    main()
