"""Whether flags by labelled images keep to the false alarms that were asked for, over random splits; what they catch.

    python -m benchmarks.labelled_flags DATA [--splits 20] [--shots 8 16] [--model starter] [--keep DIR]

DATA is objects/: images/, labelled/CLASS/, classes.txt, truth.csv (path, truth, kind, is_ood). All images of known
classes, of both folders, are put together. Each split draws which of them are labelled, some of each class, and audits
the others with all images of unknown classes: in one folder, so that nothing tells the class, and in the folders that
they lie in, the wrong ones among them. What is measured: of the audited images of known classes, the share that is
flagged, and that is called covariate; for --fdr the share of such images among the flagged ones; and the share of the
images of unknown classes that is flagged.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ood_audit
from benchmarks.splits import Embedded, link
from ood_audit import FindingSettings
from ood_audit.findings import decide as decisions
from ood_audit.store.views import connect, registered

RULES: list[dict[str, Any]] = [
    {"false_alarms": 0.01},
    {"false_alarms": 0.05},
    {"false_alarms": 0.1},
    {"fdr": 0.1},
    {"fdr": 0.2},
]
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--keep", type=Path, help="Where to keep what is embedded, for the next time.")
    options = parser.parse_args()
    labels = options.data / "classes.txt"
    with (options.data / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    strange = [options.data / "images" / row["path"] for row in rows if row["is_ood"] == "1"]
    shows = {options.data / "images" / row["path"]: row["truth"] for row in rows if row["is_ood"] != "1"}
    shows |= {path: path.parent.name for path in (options.data / "labelled").glob("*/*")}
    print("| labelled | audited in | asked | measured: mean ± sd, most | covariate | OOD flagged |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        both = [options.data / "images", options.data / "labelled"]
        embedded = Embedded.of(both, options.keep or root / "all", options.model)
        for shots in options.shots:
            for flat in (True, False):
                found: list[list[Figures]] = []
                for seed in range(options.splits):
                    place = root / f"{shots} {flat} {seed}"
                    found.append(split(embedded, place, shows, strange, labels, shots, flat, seed))
                for i, rule in enumerate(RULES):
                    print_row(f"{shots} a class", "one folder" if flat else "folders", rule, [f[i] for f in found])


def split(
    embedded: Embedded,
    place: Path,
    shows: dict[Path, str],
    strange: list[Path],
    labels: Path,
    shots: int,
    flat: bool,
    seed: int,
) -> list[Figures]:
    """One split under every rule; `shows` tells the class of each image of a known one."""
    draw = np.random.default_rng(seed)
    labelled = set()
    for name in sorted(set(shows.values())):
        own = sorted(path for path, shown in shows.items() if shown == name)
        labelled |= {own[i] for i in draw.choice(len(own), min(shots, len(own) // 2), replace=False)}
    rest = sorted(set(shows) - labelled)
    numbered = {f"{'' if flat else path.parent.name + '/'}{i:04d}{path.suffix}": path for i, path in enumerate(rest)}
    others = {f"{'' if flat else path.parent.name + '/'}x{i}{path.suffix}": path for i, path in enumerate(strange)}
    given = {f"{shows[path]}/{i:04d}{path.suffix}": path for i, path in enumerate(sorted(labelled))}
    store = embedded.store_of(link(numbered | others, place / "images"), place / "store")
    embedded.register(store, link(given, place / "labelled"), labels)
    figures = []
    done = ood_audit.report(store, top=1)
    for rule in RULES:
        with connect(store) as db:  # as `report` decides
            recipe = decisions.read_recipe(done.scores.path)
            table, _ = decisions.decide(db, recipe, {}, FindingSettings(**rule))
            with registered(db, decided=table):
                sql = "SELECT path, d.flagged, d.shift FROM scores JOIN decided AS d USING (image_id)"
                decided = db.execute(sql).fetchall()
        is_ood = np.array([path in others for path, _, _ in decided])
        flagged = np.array([flag for _, flag, _ in decided], bool)
        covariate = np.array([shift == "covariate" for _, _, shift in decided])
        alarms = (flagged & ~is_ood).sum()
        figures.append(
            {
                "measured": alarms / max(1, flagged.sum()) if "fdr" in rule else alarms / (~is_ood).sum(),
                "covariate": covariate[~is_ood].mean(),
                "caught": flagged[is_ood].mean(),
            }
        )
    embedded.keep_texts(store)
    return figures


def print_row(shots: str, where: str, rule: dict[str, float], found: list[Figures]) -> None:
    """A row of the table."""
    of = {name: 100 * np.array([figures[name] for figures in found]) for name in found[0]}
    ((name, level),) = rule.items()
    measured = f"{of['measured'].mean():.2f} ± {of['measured'].std():.2f}%, {of['measured'].max():.1f}%"
    cells = [shots, where, f"{name.replace('_', ' ')} {level:.0%}", measured]
    cells += [f"{of['covariate'].mean():.2f}%", f"{of['caught'].mean():.0f}%"]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
