"""The columns of the files of scores, written once. Importing this imports PyArrow."""

import pyarrow as pa

WORD = pa.dictionary(pa.int32(), pa.string())
_OWN = [  # what a score says about an image by itself
    ("image_id", pa.string()),
    ("path", pa.string()),
    ("ood_score", pa.float32()),
    ("delta_energy", pa.float32()),
    ("energy", pa.float32()),
    ("max_cosine", pa.float32()),
    ("label", WORD),
    ("label_2", WORD),
    ("margin", pa.float32()),
    ("given_label", WORD),
    ("confidence", pa.float32()),
    ("given_confidence", pa.float32()),
    ("distance", pa.float32()),
    ("lead", pa.float32()),
    ("folder_rank", pa.int32()),
]
SCORES = pa.schema([*_OWN, ("novelty", pa.float32()), ("unlike", WORD)])
EVIDENCE = pa.schema([*_OWN, ("evidence_1", pa.float64()), ("evidence_2", pa.float64())])  # a file that is not kept
PARQUET = {"compression": "zstd", "use_dictionary": ["label", "label_2", "given_label"]}
