"""How good the names are that `labels suggest` gives to images whose classes are known, but not to it.

    python -m benchmarks.suggest DATA [--model starter] [--names 10 20 30 50]

DATA holds objects/ (images/, truth.csv with columns path and truth) and styles/photo/CLASS/. A class is found by its
name where the suggestions have it or a synonym of it in WordNet, and more widely where they have what it is a kind of
(direct hypernyms) or a kind of it (direct hyponyms). For a report with the first names of the list as its classes, a
name stands for the class that most of the images have which `suggest` gave it to; accuracy is over all images, also
those whose class no name stands for.
"""

import argparse
import csv
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from ood_audit import ScoreSettings
from ood_audit.classes import wordnet
from ood_audit.embedding.run import embed
from ood_audit.findings.naming import as_labels, suggest
from ood_audit.scoring.run import score
from ood_audit.store import Store


def around(name: str) -> tuple[set[str], set[str]]:
    """The synonyms of a name, and the names directly above and below it too."""
    nouns = wordnet._nouns()
    senses = nouns.synsets[name]
    beside = [row for sense in senses for row in [*nouns.hypernyms[sense], *nouns.hyponyms[sense]]]
    synonyms = {name}.union(*(nouns.names[row] for row in senses))
    return synonyms, synonyms.union(*(nouns.names[row] for row in beside))


def measure(title: str, store: Store, truth: dict[str, str], counts: list[int]) -> None:
    """Print a row for each number of names."""
    classes = sorted(set(truth.values()))
    for count in counts:
        found = suggest(store, most=count)
        names = {row.name for row in found.rows}
        by_name = [c for c in classes if names & around(c)[0]]
        widely = [c for c in classes if names & around(c)[1]]
        labels = store.root / "suggested.txt"
        labels.write_text(as_labels(found))
        score(store, labels=labels, settings=ScoreSettings(prompts="none"))
        rows = store.query("SELECT path, label FROM scores").rows
        stands: dict[str, Counter[str]] = {}
        for path, label in rows:
            stands.setdefault(label, Counter())[truth[path]] += 1
        right = sum(several.most_common(1)[0][1] for several in stands.values())
        print(
            f"{title:10} {len(truth):6} {len(classes):7} {count:5} {len(found.rows):9} {len(by_name):7} {len(widely):6}"
            f"   {1 - found.unnamed / found.images:.2f}   {right / len(truth):.2f}",
            flush=True,
        )
    print(f"  {', '.join(f'{row.name} {row.images}' for row in found.rows)}")
    print(f"  not found: {', '.join(c for c in classes if c not in widely)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--names", type=int, nargs="+", default=[10, 20, 30, 50])
    options = parser.parse_args()
    with (options.data / "objects" / "truth.csv").open(newline="") as file:
        objects = {row["path"]: row["truth"] for row in csv.DictReader(file)}
    photo = options.data / "styles" / "photo"
    photos = {f"{path.parent.name}/{path.name}": path.parent.name for path in sorted(photo.glob("*/*"))}
    print("data       images classes names suggested by name widely   named   accuracy of a report with them")
    with tempfile.TemporaryDirectory() as temporary:
        for title, folder, truth in (
            ("objects", options.data / "objects" / "images", objects),
            ("photo", photo, photos),
        ):
            store = embed(folder, store=Path(temporary) / title, model=options.model).store
            if title != "objects":  # the nouns are encoded once
                for file in (Path(temporary) / "objects" / "vocabularies").glob("wordnet-*"):
                    store.vocabularies.mkdir(exist_ok=True)
                    shutil.copy(file, store.vocabularies)
            measure(title, store, truth, options.names)


if __name__ == "__main__":
    main()
