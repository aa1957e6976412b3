"""What bfloat16 does to the features of an encoder, and to what is decided by them, beside float32 and the limits.

    python -m benchmarks.bf16 DATA [--model starter] [--weights FILE]

DATA has `images/CLASS/`, `classes.txt` and `truth.csv` (path, is_ood, …). Its pictures are embedded in both precisions,
whatever the processor has in hardware, and each store is reported on with the defaults. Compared are the cosines of the
features; the ranks and the AUROC of ΔEnergy by names and background alone, and of the default score; and what is listed
as a near duplicate and as a wrong label, all of it and what is planted. `embed` holds the pictures that it tries to the
limits on cosines, see `encoders.clip.agree`.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.encoders.clip import LEAST_AGREEMENT, MEAN_AGREEMENT
from ood_audit.scoring import metrics
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

SPEARMAN, POINTS, SHARE = 0.999, 0.2, 0.05
PLANTED = {"near-duplicate": "near-duplicate", "label": "mislabelled"}  # findings, and their kind in truth.csv
BY_NAMES = ScoreSettings(method="delta-energy", auto=False)


def features(store: Store) -> NDArray[np.float32]:
    found = {
        str(path): row
        for batch in iter_features(store)
        for path, row in zip(batch.paths.to_pylist(), batch.features, strict=True)
    }
    rows = np.stack([found[path] for path in sorted(found)]).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def scores(store: Store, labels: Path, settings: ScoreSettings) -> NDArray[np.float64]:
    ood_audit.score(store, labels=labels, settings=settings)
    return np.array([score for (score,) in store.query("SELECT ood_score FROM scores ORDER BY path").rows])


def listed(store: Store, kind: str) -> set[str]:
    return {path for (path,) in store.query(f"SELECT path FROM issues WHERE kind = '{kind}'").rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--weights")
    options = parser.parse_args()
    labels = options.data / "classes.txt"
    with (options.data / "truth.csv").open() as file:
        truth = {row["path"]: row for row in csv.DictReader(file)}
    is_ood = np.array([truth[path]["is_ood"] == "1" for path in sorted(truth)])
    held = []

    def show(what: str, value: str, limit: str, holds: bool) -> None:
        held.append(holds)
        print(f"{what:58} {value:>18}  {limit:>8}  {'holds' if holds else 'MISSED'}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        stores = {}
        for precision in ("fp32", "bf16"):
            stores[precision] = ood_audit.embed(
                options.data / "images",
                store=Path(temporary) / precision,
                model=options.model,
                weights=options.weights,
                device="cpu",
                precision=precision,
            ).store
        plain, half = (features(store) for store in stores.values())
        cosines = (plain * half).sum(axis=1)
        print(f"{options.model}, {len(cosines)} pictures: bf16 beside float32" + " " * 30 + "limit")
        mean, least = float(cosines.mean()), float(cosines.min())
        show("cosine, mean", f"{mean:.5f}", f"≥ {MEAN_AGREEMENT}", mean >= MEAN_AGREEMENT)
        show("cosine, least", f"{least:.5f}", f"≥ {LEAST_AGREEMENT}", least >= LEAST_AGREEMENT)
        for title, settings in (("ΔEnergy by names and background", BY_NAMES), ("the default score", ScoreSettings())):
            one, other = (scores(store, labels, settings) for store in stores.values())
            ranks = float(spearmanr(one, other).statistic)
            show(f"{title}, ranks (Spearman)", f"{ranks:.5f}", f"≥ {SPEARMAN}", ranks >= SPEARMAN)
            before, after = (100 * metrics.auroc(is_ood, values) for values in (one, other))
            apart = abs(after - before)
            show(f"{title}, AUROC in %", f"{before:.2f} → {after:.2f}", f"± {POINTS}", apart <= POINTS)
        for store in stores.values():
            ood_audit.report(store, labels=labels)
        for kind, planted in PLANTED.items():
            was, now = (listed(store, kind) for store in stores.values())
            both = f"{len(was)} → {len(now)}, {len(was ^ now)} differ"
            show(f"listed as {kind}", both, f"≤ {SHARE:.0%}", len(was ^ now) <= SHARE * len(was | now))
            known = {path for path, row in truth.items() if row["kind"] == planted}
            both = f"{len(was & known)} → {len(now & known)} of {len(known)}"
            show(f"planted ones among them ({planted})", both, "the same", was & known == now & known)
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
