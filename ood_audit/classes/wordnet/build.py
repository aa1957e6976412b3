"""Make the data files of this package from WordNet 3.0.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python -m ood_audit.classes.wordnet.build wordnet/usr/share/wordnet

The formats that are read are described in wndb(5WN). Licence: LICENSE, beside this file, which is WordNet's own.
"""

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ood_audit.classes.wordnet import PLURALS, SYNSETS

# lexnames(5WN): the number of a synset's lexicographer file and its name.
_FILES = {
    0: "adj.all",
    1: "adj.pert",
    3: "noun.Tops",
    4: "noun.act",
    5: "noun.animal",
    6: "noun.artifact",
    7: "noun.attribute",
    8: "noun.body",
    9: "noun.cognition",
    10: "noun.communication",
    11: "noun.event",
    12: "noun.feeling",
    13: "noun.food",
    14: "noun.group",
    15: "noun.location",
    16: "noun.motive",
    17: "noun.object",
    18: "noun.person",
    19: "noun.phenomenon",
    20: "noun.plant",
    21: "noun.possession",
    22: "noun.process",
    23: "noun.quantity",
    24: "noun.relation",
    25: "noun.shape",
    26: "noun.state",
    27: "noun.substance",
    28: "noun.time",
    44: "adj.ppl",
}
_ADJECTIVE_MARKER = re.compile(r"\((a|p|ip)\)$")


def synsets(nouns: Path, adjectives: Path) -> pa.Table:
    """The synsets of data.noun and data.adj: lexicographer file, names, the rows of their hypernyms, and offset.

    Names are lower-case, with spaces. Nouns come first, as hypernyms are row numbers. Of an adjective's names only the
    first is kept. The offset in data.noun is the number in a WordNet id such as n02691156; adjectives have none.
    """
    rows: list[tuple[str, list[str], list[str], int | None]] = []
    row_of: dict[str, int] = {}  # by the offset in data.noun, by which hypernyms are named
    for path in (nouns, adjectives):
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            offset, file, _, count, *fields = line.split(" ")
            names = int(count, 16)
            lemmas = [_ADJECTIVE_MARKER.sub("", word).replace("_", " ").lower() for word in fields[: 2 * names : 2]]
            if path == nouns:
                pointers = fields[2 * names + 1 : 2 * names + 1 + 4 * int(fields[2 * names])]
                above = [
                    target
                    for symbol, target in zip(pointers[::4], pointers[1::4], strict=True)
                    if symbol in ("@", "@i")
                ]
                row_of[offset] = len(rows)
                rows.append((_FILES[int(file)], lemmas, above, int(offset)))
            else:
                rows.append((_FILES[int(file)], lemmas[:1], [], None))
    return pa.table(
        {
            "file": pa.array([file for file, *_ in rows]).dictionary_encode(),
            "names": pa.array([names for _, names, *_ in rows]),
            "hypernyms": pa.array([[row_of[o] for o in above] for _, _, above, _ in rows], pa.list_(pa.int32())),
            "offset": pa.array([offset for *_, offset in rows], pa.int32()),
        }
    )


def plurals(exceptions: Path) -> pa.Table:
    """The irregular plurals of noun.exc and their singulars; a plural may have several."""
    lines = [line.split() for line in exceptions.read_text(encoding="latin-1").lower().splitlines()]
    pairs = [
        (plural.replace("_", " "), singular.replace("_", " ")) for plural, *singulars in lines for singular in singulars
    ]
    return pa.table({"plural": [plural for plural, _ in pairs], "singular": [singular for _, singular in pairs]})


def main(folder: Path) -> None:
    """Read WordNet's dict folder, write the files beside this one."""
    for table, path in (
        (synsets(folder / "data.noun", folder / "data.adj"), SYNSETS),
        (plurals(folder / "noun.exc"), PLURALS),
    ):
        small = {"offset": "DELTA_BINARY_PACKED"} if "offset" in table.column_names else None  # offsets ascend
        pq.write_table(
            table, path, compression="zstd", compression_level=19, use_dictionary=["file"], column_encoding=small
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
