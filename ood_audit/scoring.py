"""`score`: stream the features of a store through a score, into `scores/`."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_audit import vocabulary as vocabularies
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.store import DEFAULT_STORE, Store, open_store, writing
from ood_audit.store.layout import replacing, write_json
from ood_audit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ood_audit.encoders.clip import ClipEncoder

_CHUNK_BYTES = 32 << 20  # of float32 cosines at a time, whatever the number of classes


@dataclass(frozen=True)
class Scores:
    """A finished score run: what was scored, how, and against what.

    `reused` is true where the same scores lay in the store already.
    """

    store: Store
    vocabulary: Vocabulary
    method: str
    parameters: dict[str, float | int]
    images: int
    path: Path
    reused: bool


def score(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    temperature: float | None = None,
    top_c: int | None = None,
    reset_to: float | None = None,
    device: str = "auto",
    note: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every readable image with ΔEnergy; what was scored before and has not changed is taken as it is.

    Args:
        store: a store or its folder.
        labels: a labels file, or class names; None for those last used with this store, else the folder names.
        templates: prompts with `{}` for the class name, averaged.
        temperature: τ; None for the encoder's default.
        top_c: how many of the largest similarities are reset; None for the encoder's default.
        reset_to: the value they are reset to; None for the encoder's default.
        device: where the matrix product runs.
        note: told, in a sentence, what was chosen where the caller did not say.
        on_progress: called with the number of images done and to do.

    Raises:
        UsageError: the vocabulary or a setting makes no sense. StoreError: no store, or another is writing.
        OodAuditError: the store holds no readable image.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    _check(temperature, top_c, reset_to)
    chosen = vocabularies.choose(store, labels, templates, note)
    total = int(store.query("SELECT count(*) FROM images WHERE status = 'ok'").rows[0][0])
    if total == 0:
        raise OodAuditError("the store holds no readable image; run `ood-audit embed FOLDER`")
    with writing(store.root, "scores"):
        encoders: list[ClipEncoder] = []

        def encoder() -> "ClipEncoder":
            from ood_audit.encoders.clip import load_same_encoder

            if not encoders:
                encoders.append(load_same_encoder(store.encoder, device=device))
            return encoders[0]

        features = vocabularies.cached_features(store, chosen, encoder)
        defaults = _defaults(store, encoder)
        given = {"temperature": temperature, "top_c": top_c, "reset_to": reset_to}
        parameters = {name: defaults[name] if value is None else value for name, value in given.items()}
        recipe: dict[str, Any] = {
            "method": "delta-energy",
            "parameters": parameters,
            "vocabulary": chosen.id,
            "generation": store.generation,
        }
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        path = store.scores / f"{key}.parquet"
        reused = path.exists()
        if not reused:
            _write(store, path, features, chosen.names, parameters, total, device, on_progress)
            write_json(path.with_suffix(".json"), recipe)
            _drop_outdated(store, recipe["generation"])
        store.set_current(vocabulary=chosen.id, scores=key)
    return Scores(store, chosen, "delta-energy", parameters, total, path, reused)


def _check(temperature: float | None, top_c: int | None, reset_to: float | None) -> None:
    if temperature is not None and not 1e-4 <= temperature <= 1e4:
        raise UsageError(f"--temperature {temperature}: choose between 0.0001 and 10000")
    if top_c is not None and top_c < 1:
        raise UsageError(f"--top-c {top_c}: choose 1 or more")
    if reset_to is not None and not -1 <= reset_to <= 1:
        raise UsageError(f"--reset-to {reset_to}: choose between -1 and 1, as cosines are")


def _defaults(store: Store, encoder: Callable[[], "ClipEncoder"]) -> dict[str, Any]:
    """The encoder's settings, read from its weights once and kept in the store."""
    path = store.root / "score_defaults.json"
    if not path.exists():
        write_json(path, asdict(encoder().score_defaults))
    return dict(json.loads(path.read_text()))


def _write(
    store: Store,
    path: Path,
    text_features: Any,
    names: list[str],
    parameters: dict[str, Any],
    total: int,
    device: str,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from ood_audit.encoders.device import choose_device
    from ood_audit.scores.delta_energy import delta_energy
    from ood_audit.store.parts import iter_features

    schema = pa.schema(
        [("image_id", pa.string()), ("path", pa.string())]
        + [(name, pa.float32()) for name in ("ood_score", "delta_energy", "energy", "max_cosine")]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in ("label", "label_2")]
        + [("margin", pa.float32())]
    )
    where = choose_device(device)
    classes = torch.from_numpy(text_features).to(where)
    labels = pa.array(names)
    rows = max(1, _CHUNK_BYTES // (4 * len(names)))
    done = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in iter_features(store):
            columns: list[np.ndarray[Any, Any]] = []
            for start in range(0, len(batch.features), rows):
                images = torch.from_numpy(batch.features[start : start + rows]).to(where)
                with torch.inference_mode():
                    cosines = images @ classes.T
                    raw = delta_energy(cosines, **parameters)
                    energy = -torch.logsumexp(cosines / parameters["temperature"], dim=1)
                    best, index = cosines.topk(min(2, len(names)), dim=1)
                    parts = [raw, energy, *best.unbind(1), *index.unbind(1)]
                    columns.append(np.stack([part.double().cpu().numpy() for part in parts]))
                done += len(images)
                if on_progress is not None:
                    on_progress(done, total)
            writer.write_table(_table(batch, np.concatenate(columns, axis=1), labels, schema))


def _table(batch: Any, values: Any, labels: Any, schema: Any) -> Any:
    import pyarrow as pa

    raw, energy, best = values[0], values[1], values[2]
    two = len(values) == 6  # a vocabulary of one class has no runner-up
    index = values[4] if two else values[3]

    def label(indices: Any) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), labels)

    def floats(numbers: Any) -> Any:
        return pa.array(numbers, pa.float32())

    nothing = [None] * len(raw)
    columns = [
        batch.image_ids,
        batch.paths,
        floats(-raw),
        floats(raw),
        floats(energy),
        floats(best),
        label(index.astype("int32")),
        label(values[5].astype("int32")) if two else label(nothing),
        floats(best - values[3]) if two else floats(nothing),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _drop_outdated(store: Store, generation: int) -> None:
    """Scores of images as they were: nothing asks for them any more."""
    for path in store.scores.glob("*.json"):
        if json.loads(path.read_text())["generation"] != generation:
            path.with_suffix(".parquet").unlink(missing_ok=True)
            path.unlink()
