"""What a report costs from the command line: wall and processor seconds and peak memory, each beside its limit.

    python -m benchmarks.report IMAGES [--labels classes.txt] [--store STORE] [--images 100000]

IMAGES is a folder, such as the one of 5,000 pictures that `benchmarks.peers --keep DIR` leaves in DIR/images. It is
embedded first, unless STORE has been. With `--images N`, N images are made of these (`benchmarks.made.multiply`): real
files in the same folders, features and hashes that are made up, one in fifty a near copy. The first report scores the
images and looks for duplicates, the second has the scores and the duplicates in the store. Each is a process of its
own; memory is that of all its processes (PSS). The limits are on two cores with nothing else to do.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.made import multiply
from benchmarks.peers import timed
from ood_audit.store import open_store

SECONDS, MEMORY = 8.0, 1000.0  # of either report, of 5,000 pictures
MANY_SECONDS = 40.0  # of 100,000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="IMAGES")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--store", type=Path, help="a store of these images without scores; it is copied")
    parser.add_argument("--images", type=int, metavar="N", help="make so many images of them")
    options = parser.parse_args()
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with tempfile.TemporaryDirectory() as folder:
        store, log = Path(folder) / "store", Path(folder) / "log"
        program = [sys.executable, "-m", "ood_audit"]
        if options.store:
            shutil.copytree(options.store, store)
        else:
            figures = timed([*program, "embed", options.folder.resolve(), "--store", store], log, **path)
            print(f"embed         {figures['wall']:6.1f} s  {figures['cpu']:6.1f} s CPU  {figures['memory']:6.0f} MB")
        if options.images:
            store = multiply(open_store(store), Path(folder) / "images", Path(folder) / "many", options.images).root
        seconds, memory = (MANY_SECONDS, "") if options.images else (SECONDS, f" (limit {MEMORY:.0f})")
        labels = ["--labels", options.labels.resolve()] if options.labels else []
        for name in ("first report", "second report"):
            figures = timed([*program, "report", *labels, "--top", 100, "--store", store], log, **path)
            print(
                f"{name:13} {figures['wall']:6.1f} s (limit {seconds:.0f})  {figures['cpu']:6.1f} s CPU  "
                f"{figures['memory']:6.0f} MB{memory}",
                flush=True,
            )
        counted = open_store(store).query("SELECT kind, count(*) FROM findings GROUP BY kind ORDER BY kind").rows
        print(f"findings: {', '.join(f'{kind} {count:,}' for kind, count in counted)}")


if __name__ == "__main__":
    main()
