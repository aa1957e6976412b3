"""Leaks and faults that are planted in pictures, and which of them ood-audit, CleanVision and fastdup find.

    python -m benchmarks.peers_planted DATA [--images 2000] [--seed 0] [--keep DIR]

The pictures are those of `benchmarks.leaks` and `benchmarks.quality`, and so are the rules. The peers know nothing of
splits: a picture of `test` counts as found where they have it in a group with one of `train`. fastdup makes no list of
faults. It measures the pictures, and shows those at the ends: as many as were planted are counted. The peers are
installed from PyPI, each in a virtual environment of its own.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ood_audit
from benchmarks import leaks, quality
from benchmarks.peers import peer
from benchmarks.planted import planted_options
from ood_audit.findings.quality import odd
from ood_audit.store.views import connect

CLEANVISION = """
import json, os, sys
from cleanvision import Imagelab

images, work, out = sys.argv[1:]
lab = Imagelab(data_path=images)
lab.find_issues()
name = lambda path: os.path.relpath(path, images)
issues = {"dark": "dark", "bright": "light", "blurred": "blurry", "little information": "low_information",
          "odd size": "odd_size", "odd aspect ratio": "odd_aspect_ratio", "grey": "grayscale"}
json.dump({
    "groups": [[name(p) for p in some]
               for kind in ("exact_duplicates", "near_duplicates") for some in lab.info[kind]["sets"]],
    "faults": {fault: [name(p) for p in lab.issues.index[lab.issues[f"is_{issue}_issue"]]]
               for fault, issue in issues.items()},
}, open(out, "w"))
"""

FASTDUP = """
import json, os, sys
import fastdup

images, work, out = sys.argv[1:]
fd = fastdup.create(work_dir=work, input_dir=images)
fd.run()
name = lambda path: os.path.relpath(os.path.abspath(path), images)  # it may name them from where it runs
pairs = fd.similarity()
pairs = pairs[pairs["distance"] >= 0.9999]
groups = fd.connected_components_grouped()
stats = fd.img_stats()
measures = {"dark": ("mean", True), "bright": ("mean", False), "blurred": ("blur", True),
            "low contrast": ("stdv", True), "little information": ("unique", True)}
json.dump({
    "groups": [[name(a), name(b)] for a, b in zip(pairs["filename_from"], pairs["filename_to"])]
              + [[name(p) for p in files] for files in groups["files"]],
    "faults": {fault: [name(p) for p in stats.sort_values(column, ascending=up)["filename"][:int(os.environ["MOST"])]]
               for fault, (column, up) in measures.items()},
}, open(out, "w"))
"""
PEERS = {"cleanvision": CLEANVISION, "fastdup": FASTDUP}


def told(planted: Collection[str], found: Collection[str] | None, right: Collection[str]) -> str:
    """Recall and precision; nothing where a tool does not look for it."""
    if found is None:
        return "–"
    hits, correct = len(set(planted) & set(found)), len(set(right) & set(found))
    return f"{hits / len(planted):.2f}, {correct / max(1, len(found)):.2f}"


def show(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def leaked(groups: list[list[str]]) -> set[str]:
    """The pictures of `test` that are in a group with one of `train`."""
    both = [group for group in groups if any(path.startswith("train/") for path in group)]
    return {path for group in both for path in group if path.startswith("test/")}


def of_leaks(data: Path, work: Path, count: int, seed: int) -> dict[str, Any]:
    """Plant leaks, and give what each tool finds, by tool, with the planted ones under an empty name."""
    planted = leaks.plant(data, work / "images", count, seed)
    audit = ood_audit.open(work / "store")
    audit.embed(work / "images", model="starter")
    audit.report(auto=False)
    found = {"ood-audit": {finding.path for finding in audit.findings("leak")}}
    versions = {"ood-audit": ood_audit.__version__}
    for name, script in PEERS.items():
        said = peer(name, script, work / "images", work, MOST=str(quality.EACH))
        found[name], versions[name] = leaked(said["groups"]), said["version"]
    return {"planted": planted, "found": found, "versions": versions}


def of_faults(data: Path, work: Path, count: int, seed: int) -> dict[str, Any]:
    """The same for the quality of pictures, by fault."""
    planted = quality.plant(data, work / "images", count, seed)
    store = ood_audit.embed(work / "images", store=work / "store", model="starter").store
    own: dict[str, set[str]] = {fault: set() for fault in quality.FAULTS}
    with connect(store) as db:
        paths = dict(db.execute("SELECT image_id, path FROM images").fetchall())
        for image_id, reasons in odd(db).items():
            for _, fault, _ in reasons:
                own[fault].add(paths[image_id])
    found: dict[str, Any] = {"ood-audit": own}
    for name, script in PEERS.items():
        found[name] = peer(name, script, work / "images", work, MOST=str(quality.EACH))["faults"]
    return {"planted": planted, "found": found}


def main() -> None:
    options = planted_options(__doc__ or "")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.keep or Path(temporary)).resolve()
        for name in ("leaks", "faults"):
            (work / name).mkdir(parents=True, exist_ok=True)
        about_leaks = of_leaks(options.data.resolve(), work / "leaks", options.images, options.seed)
        about_faults = of_faults(options.data.resolve(), work / "faults", options.images, options.seed)
    planted, found, versions = (about_leaks[name] for name in ("planted", "found", "versions"))
    show(["planted", "pictures", *(f"{name} {version}" for name, version in versions.items())])
    show(["---"] * (2 + len(versions)))
    for level, said in {"bytes": "same bytes", "picture": "same picture", "recording": "same recording"}.items():
        wanted = {path for path, kind in planted.items() if kind == level}
        recalls = [f"{len(wanted & found[name]) / len(wanted):.2f}" for name in versions]
        show([f"leak: {said}", str(len(wanted)), *recalls])
    show(["all leaks", str(len(planted)), *(told(planted, found[name], planted) for name in versions)])
    planted, found = about_faults["planted"], about_faults["found"]
    for fault in quality.FAULTS:
        wanted = {path for path, kind in planted.items() if kind == fault}
        cells = [told(wanted, found[name].get(fault), planted) for name in versions]
        show([fault, str(len(wanted)), *cells])


if __name__ == "__main__":
    main()
