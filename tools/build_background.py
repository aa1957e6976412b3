"""Make the two files of the background: the order of its names, and their features under the bundled starter.

    python -m tools.build_background

The order is from coarse to fine. The starter's text features are clustered ever more finely; at each step the names
nearest to the centres come next, if they are not there yet. The rest follows in random order. The features are of rank
96: they are kept as coordinates in 96 directions, in 16 bits each.
"""

import os

import faiss
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ood_audit.classes import background as corpora
from ood_audit.classes import wordnet
from ood_audit.classes.vocabulary import DEFAULT_TEMPLATE
from ood_audit.encoders.clip import load_encoder

RANK = 96
CLUSTERS = (64, 512, 4096)


def coarse_to_fine(features: NDArray[np.float32]) -> NDArray[np.uint16]:
    """An order of the (M, D) features of length 1."""
    order: dict[int, None] = {}
    for count in CLUSTERS:
        kmeans = faiss.Kmeans(features.shape[1], count, niter=8, seed=0, spherical=True, min_points_per_centroid=1)
        kmeans.train(features)
        nearest = faiss.IndexFlatIP(features.shape[1])
        nearest.add(features)
        _, rows = nearest.search(kmeans.centroids, 1)
        order.update(dict.fromkeys(rows[:, 0].tolist()))
    rest = np.setdiff1d(np.arange(len(features)), np.array(list(order)))
    order.update(dict.fromkeys(np.random.default_rng(0).permutation(rest).tolist()))
    return np.array(list(order), np.uint16)


def _coordinates(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(M, 96) coordinates and the (96, D) directions that they are in."""
    _, vectors = np.linalg.eigh((features.T @ features).astype(np.float64))
    directions = vectors[:, ::-1][:, :RANK].T
    return features @ directions.T, directions


def main() -> None:
    """Write both files into the package."""
    names = sorted(corpora.background_names())
    encoder = load_encoder("starter", device="cpu", precision="fp32")
    features = encoder.encode_texts([DEFAULT_TEMPLATE.replace("{}", name) for name in names])
    order = coarse_to_fine(_coordinates(features)[0].astype(np.float32))
    np.save(wordnet.ORDER, order)
    wordnet.coarse_to_fine.cache_clear()
    corpus = corpora.CORPORA["background"]()
    ordered = features[order].astype(np.float64)
    coordinates, directions = _coordinates(ordered)
    scales = np.abs(coordinates).max(axis=0) / 32_767
    arrays = {
        "codes": np.round(coordinates / scales).astype(np.int16),
        "scales": scales.astype(np.float32),
        "directions": np.ascontiguousarray(directions, np.float32),
    }
    save_file(arrays, corpora.BUNDLED, {"corpus": corpus.key, "weights_sha256": encoder.identity.weights_sha256})
    os.chmod(corpora.BUNDLED, 0o644)
    corpora._about_bundled.cache_clear()
    corpora._bundled.cache_clear()
    kept = corpora._bundled().vectors().astype(np.float64)
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    print(f"{len(names)} names; least cosine of a kept feature with its own {(kept * ordered).sum(axis=1).min():.7f}")


if __name__ == "__main__":
    main()
