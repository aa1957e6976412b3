"""The table of scores: its columns, computed chunk by chunk and streamed into a Parquet file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ood_audit.arrays import Array, beside, namespace, to_numpy
from ood_audit.classes.prototypes import DEFAULT_WEIGHT, save
from ood_audit.progress import counting
from ood_audit.scoring import joining, pictures
from ood_audit.scoring.context import Context
from ood_audit.scoring.joining import UNLIKE, Evidence, Joined, Seen
from ood_audit.scoring.pictures import PictureEvidence
from ood_audit.scoring.plan import Plan
from ood_audit.scoring.ranks import Numbers
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.scoring.similarity import Chunk, Target, chunk_of, map_chunks
from ood_audit.store import Store, schema
from ood_audit.store.files import replacing
from ood_audit.store.parts import iter_features, iter_looks

_Columns: TypeAlias = dict[str, pa.Array]
_SCORES = schema.arrow(schema.SCORES, schema.NAMES)
# A file that is not kept: what is joined with the other images is not known yet.
_WITH_EVIDENCE = _SCORES.append(pa.field("evidence_1", pa.float64())).append(pa.field("evidence_2", pa.float64()))
_PARQUET = {"compression": "zstd", "use_dictionary": list(schema.NAMES)}
_NEIGHBOURS = 512  # neighbours compared with all names at a time
_GROUP_ROWS = 131_072  # smaller row groups make queries slow


def write(context: Context, path: Path, plan: Plan, method: str, total: int) -> Joined | None:
    """Stream the store through a score of a plan into a Parquet file.

    Args:
        context: What is scored.
        path: The file; a name that ends in `.tmp`, of which another is made beside it where evidence is joined.
        plan: The plan.
        method: The score.
        total: How many images the store has, for the progress.

    Returns:
        What was joined for `auto`, else None.

    """
    labels = pa.array(context.vocabulary.names)
    class_of = lru_cache(maxsize=65_536)(context.vocabulary.class_of)
    columns = partial(_columns, plan=plan, method=method, labels=labels, class_of=class_of)
    if plan.joint is None and plan.pictures is None:
        _stream(context, path, plan, columns, _SCORES, total)
        return None
    first = path.with_name(path.name.removesuffix(".tmp") + ".first.tmp")
    try:
        evidence = partial(_columns_and_evidence, plan=plan, method=method, columns=columns)
        _stream(context, first, plan, evidence, _WITH_EVIDENCE, total)
        return _join(context, first, path, plan, method)
    finally:
        first.unlink(missing_ok=True)


def _stream(
    context: Context,
    path: Path,
    plan: Plan,
    columns: Callable[[Chunk], _Columns],
    kinds: pa.Schema,
    total: int,
) -> None:
    """Write the columns of all chunks into a Parquet file, beside the computation."""
    on_progress = counting(context.on_progress, "scoring")
    done, waiting, rows, columns_of = 0, [], 0, list(kinds)
    with (
        pq.ParquetWriter(path, kinds, **_PARQUET) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="scores") as thread,
    ):
        writing_of = thread.submit(lambda: None)
        for found in map_chunks(context.store, plan.target, context.device, columns, plan.parts):
            size = len(found["image_id"])
            arrays = [found[of.name] if of.name in found else pa.nulls(size, of.type) for of in columns_of]
            waiting.append(pa.RecordBatch.from_arrays(arrays, schema=kinds))
            rows += size
            done += size
            if rows >= _GROUP_ROWS:
                writing_of.result()
                writing_of = thread.submit(writer.write_table, pa.Table.from_batches(waiting), rows)
                waiting, rows = [], 0
            on_progress(done, total)
        writing_of.result()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), rows)


def _join(context: Context, first: Path, path: Path, plan: Plan, method: str) -> Joined:
    """Join the evidence in a file of scores, and write it with the joined score in place of its own."""
    on_progress = counting(context.on_progress, "comparing with the folder")
    read = pq.read_table(first, columns=["ood_score", "evidence_1", "evidence_2"])
    evidence = [read[name].to_numpy().astype(np.float64) for name in read.column_names]
    joined = joined_with(context.store, plan, method, evidence, on_progress)
    start = 0
    with pq.ParquetFile(first) as file, pq.ParquetWriter(path, _SCORES, **_PARQUET) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=_SCORES.names)
            rows = slice(start, start + len(table))
            start = rows.stop
            own = {"ood_score": pa.array(joined.ood_score[rows].astype(np.float32))}
            if plan.joint is not None:
                own["novelty"] = pa.array(joined.novelty[rows].astype(np.float32))
                own["unlike"] = pa.DictionaryArray.from_arrays(joined.unlike[rows].astype(np.int32), list(UNLIKE))
            writer.write_table(pa.table([own.get(name, table[name]) for name in _SCORES.names], _SCORES))
    return joined


def joined_with(
    store: Store,
    plan: Plan,
    method: str,
    evidence: Sequence[Numbers],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Joined:
    """Join evidence about all images, see `scoring.joining` and `scoring.pictures`.

    Args:
        store: the store that is scored.
        plan: a plan with a `joint` or with `pictures`.
        method: the score of the plan.
        evidence: (N,) float64 each: the ood_score by the score alone, and what `evidence_of` gives.
        on_progress: called with the number of images compared with their neighbours, and of all images.

    """
    if plan.pictures is not None:
        return _joined_by_pictures(store, plan, method, evidence)
    joint = plan.joint
    assert joint is not None  # noqa: S101  the caller has asked
    temperature = float(plan.runs[method][1]["temperature"])
    energy, standing, outside = evidence
    own = Evidence(energy, standing, outside, temperature)
    of_neighbours = own
    if not joint.is_whole:
        names = [""] * len(joint.neighbours)
        of_neighbours = Evidence(*_evidence_about(names, joint.neighbours, plan.target, plan, method), temperature)
    calibration = None
    if plan.calibration is not None:
        apart = plan.calibration
        about = _evidence_about(apart.names, apart.features, apart.target(plan.target), plan, method)
        calibration = (apart.features, apart.looks), Evidence(*about, temperature)
    images = _seen(store, plan.parts, looks=joint.looks is not None)
    return joining.join(joint, own, of_neighbours, images, on_progress, calibration=calibration)


def _evidence_about(
    names: Sequence[str], features: NDArray[np.float32], target: Target, plan: Plan, method: str
) -> tuple[Numbers, Numbers, Numbers]:
    """The ood_score by the score alone, and what `evidence_of` gives, of images that are not read from the store."""
    found = []
    for start in range(0, len(features), _NEIGHBOURS):
        rows = slice(start, start + _NEIGHBOURS)
        chunk = chunk_of(names[rows], features[rows], target)
        found.append((raw_of(chunk, plan, method), *evidence_of(chunk, plan, method)))
    alone, first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return alone, first, second


def _seen(store: Store, parts: list[Path], *, looks: bool) -> Iterator[Seen]:
    """The features of all images, and their looks where asked for."""
    batches = iter_features(store, parts=parts)
    seen = iter_looks(store, parts=parts) if looks else repeat(None)
    return ((batch.features, own) for batch, own in zip(batches, seen, strict=looks))


def _joined_by_pictures(store: Store, plan: Plan, method: str, evidence: Sequence[Numbers]) -> Joined:
    """Join evidence by `scoring.pictures`; also that about the calibration images."""
    shown = plan.pictures
    assert shown is not None  # noqa: S101  the caller has asked
    energy, distance, nearest = evidence
    if shown.looks is not None:
        of_blocks = [pictures.nearest(block, shown, looks) for block, looks in _seen(store, plan.parts, looks=True)]
        nearest = np.concatenate(of_blocks)
    of_images = PictureEvidence(energy, distance, nearest)
    of_calibration = None
    if plan.calibration is not None:
        apart = plan.calibration
        energy, distance, nearest = _evidence_about(
            apart.names, apart.features, apart.target(plan.target), plan, method
        )
        if shown.looks is not None:
            nearest = pictures.nearest(apart.features, shown, apart.looks)
        of_calibration = pictures.join(of_images, shown.weight, PictureEvidence(energy, distance, nearest))
    count = len(of_images.energy)
    nothing = np.full(count, np.nan), np.zeros(count, np.int8)
    return Joined(pictures.join(of_images, shown.weight), *nothing, 0.0, 0, of_calibration)


def evidence_of(chunk: Chunk, plan: Plan, method: str) -> tuple[Numbers, Numbers]:
    """What is joined with the score of a chunk, (N,) float64 each: see `scoring.joining` and `scoring.pictures`."""
    if plan.pictures is not None:
        return pictures.evidence_of(chunk, plan.pictures)
    settings = plan.runs[method][1]
    assert plan.joint is not None  # noqa: S101  the caller has asked
    return joining.evidence_of(chunk, plan.joint, settings["temperature"], settings["background"])


def raw_of(chunk: Chunk, plan: Plan, method: str) -> Numbers:
    """(N,) float64, the ood_score of a chunk by the score alone."""
    raw: Numbers = to_numpy(chunk.raw(*plan.runs[method])).astype(np.float64)  # Apple's GPUs have no float64
    return -raw


def _columns_and_evidence(chunk: Chunk, plan: Plan, method: str, columns: Callable[[Chunk], _Columns]) -> _Columns:
    """The columns of a chunk's scores that do not depend on other images, and what the others are computed from."""
    evidence_1, evidence_2 = map(pa.array, evidence_of(chunk, plan, method))
    return columns(chunk) | {"evidence_1": evidence_1, "evidence_2": evidence_2}


def keep_prototypes(path: Path, plan: Plan, method: str) -> None:
    """Keep the prototypes that a score is made with, so that a report can show the same similarities."""
    if plan.runs[method][1]["prototypes"] and any(plan.target.prototypes):
        with replacing(path) as temporary:
            save(temporary, plan.target.prototypes)


def _columns(
    chunk: Chunk, plan: Plan, method: str, labels: pa.Array, class_of: Callable[[str], int | None]
) -> _Columns:
    """The columns of a chunk's scores, as Arrow arrays; what is not known yet is left out, and null."""
    numbers, best, index = _numbers(chunk, plan, method)
    given, known = _beside(chunk, plan, plan.runs[method][1]["prototypes"], index[:, 0], class_of)
    columns = {
        "image_id": chunk.batch.image_ids,
        "path": chunk.batch.paths,
        "label": pa.DictionaryArray.from_arrays(pa.array(index[:, 0], pa.int32()), labels),
        "given_label": pa.DictionaryArray.from_arrays(pa.array(given, pa.int32(), mask=given < 0), labels),
        "folder_rank": pa.array(_folder_ranks(chunk, plan, given), pa.int32(), mask=~np.isin(given, plan.folders)),
    }
    columns |= {name: pa.array(to_numpy(values).astype(np.float32, copy=False)) for name, values in numbers.items()}
    columns |= {name: pa.array(values, pa.float32(), from_pandas=True) for name, values in known.items()}
    if len(labels) > 1:
        columns["label_2"] = pa.DictionaryArray.from_arrays(pa.array(index[:, 1], pa.int32()), labels)
        columns["margin"] = pa.array(best[:, 0] - best[:, 1])
    return columns


def _numbers(chunk: Chunk, plan: Plan, method: str) -> tuple[dict[str, Array], NDArray[np.float32], NDArray[np.int64]]:
    """The (N,) scores of a chunk by column; its two largest similarities and their classes."""
    function, settings = plan.runs[method]
    raw = chunk.raw(function, settings)
    change, energy = chunk.energies(settings if function is delta_energy else plan.delta)
    best, index = (to_numpy(found) for found in chunk.largest(settings["prototypes"], 2))
    max_cosine = chunk.largest(0.0, 1)[0][:, 0]
    return {"ood_score": -raw, "delta_energy": change, "energy": energy, "max_cosine": max_cosine}, best, index


def _beside(
    chunk: Chunk, plan: Plan, weight: float, nearest: NDArray[np.int64], class_of: Callable[[str], int | None]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.floating]]]:
    """What tells label issues and covariate shift, NaN where it is not known.

    Returns:
        (N,) int: the class that each image is labelled with, by its folder or by hand, −1 for none; and by column, (N,)
        each: the probabilities of the nearest class and of that one, 1 − cosine to the prototype of the nearest class,
        and `Chunk.lead`.

    """
    given = _given(chunk, plan, class_of)
    similarities = chunk.similarities(weight)
    normalizer = chunk.log_sum(weight, plan.sharpness)
    xp = namespace(similarities)
    both = beside(np.stack([nearest, given.clip(0)], axis=1), similarities)
    of_both = xp.take_along_axis(similarities, both, axis=1)
    shares = to_numpy(xp.exp(of_both / plan.sharpness - normalizer[:, None]))
    distance = np.full(len(given), np.nan)
    if any(plan.target.prototypes):
        distance = 1 - to_numpy(xp.take_along_axis(chunk.to_prototypes, both[:, :1], axis=1)[:, 0])
    lead = to_numpy(chunk.lead) if leads(plan.target) else np.full(len(given), np.nan)
    given_confidence = np.where(given < 0, np.nan, shares[:, 1])
    return given, {
        "confidence": shares[:, 0],
        "given_confidence": given_confidence,
        "distance": distance,
        "lead": lead,
    }


def _folder_ranks(chunk: Chunk, plan: Plan, given: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) int: how many of the classes that have a folder each image resembles more than the class it is labelled as.

    By prototypes at their usual weight whatever the score: they have not seen the image, and know the classes best.
    """
    similarities = chunk.similarities(DEFAULT_WEIGHT)
    xp = namespace(similarities)
    own = xp.take_along_axis(similarities, beside(given.clip(0)[:, None], similarities), axis=1)
    those = xp.take(similarities, beside(plan.folders, similarities), axis=1)
    found: NDArray[np.int64] = to_numpy(xp.sum(those > own, axis=1))
    return found


def leads(target: Target) -> bool:
    """Whether the lead of the class names is known, and something to hold it against."""
    return "background" in target.pools and len(target.text) > 1


def _given(chunk: Chunk, plan: Plan, class_of: Callable[[str], int | None]) -> NDArray[np.int64]:
    """(N,) int64: the class that each image is labelled with, −1 for none."""
    folders = chunk.batch.folders.dictionary_encode()
    classes = [-1 if (k := class_of(folder)) is None else k for folder in folders.dictionary.to_pylist()]
    given: NDArray[np.int64] = np.array(classes, np.int64)[folders.indices.to_numpy()]
    if plan.given:
        by_hand = [plan.given.get(image_id, -1) for image_id in chunk.image_ids]
        given = np.where(np.array(by_hand) < 0, given, by_hand)
    return given
