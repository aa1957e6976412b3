"""`score`: stream the features of a store through a score, into `scores/`."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_audit import scores
from ood_audit import vocabulary as vocabularies
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.store import DEFAULT_STORE, Store, open_store, writing
from ood_audit.store.layout import read_json, replacing, write_json
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
    method: str = "delta-energy",
    temperature: float | None = None,
    top_c: int | None = None,
    reset_to: float | None = None,
    device: str = "auto",
    lock_held: bool = False,
    note: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every readable image; what was scored before and has not changed is taken as it is.

    Args:
        store: a store or its folder.
        labels: a labels file, or class names; None for those last used with this store, else the folder names.
        templates: prompts with `{}` for the class name, averaged.
        method: the score, one of `ood_audit.scores.names()`. `ood_score` is its negative.
        temperature: τ; None for the default: of the encoder for ΔEnergy, of the score's source for the others.
        top_c: how many of the largest similarities ΔEnergy resets; None for the encoder's default.
        reset_to: the value it resets them to; None for the encoder's default.
        device: where the matrix product runs.
        lock_held: the caller is inside of `writing(store.root, "scores")`.
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
    function = None if method == "delta-energy" else scores.load(method)  # that would import torch
    given = {"temperature": temperature, "top_c": top_c, "reset_to": reset_to}
    with nullcontext() if lock_held else writing(store.root, "scores"):
        classes, defaults = _text_features(store, chosen, device)
        parameters = settings_of(method, function, defaults, given)
        recipe: dict[str, Any] = {
            "method": method,
            "parameters": parameters,
            "vocabulary": chosen.id,
            "generation": store.generation,
        }
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        path = store.scores / f"{key}.parquet"
        reused = path.exists() and path.with_suffix(".json").exists()  # the recipe is written last
        if not reused:
            delta = parameters if method == "delta-energy" else settings_of("delta-energy", None, defaults)
            function = function or scores.load(method)
            _write(store, path, classes, chosen.names, (function, parameters, delta), total, device, on_progress)
            write_json(path.with_suffix(".json"), recipe)
            _drop_outdated(store, recipe["generation"])
        store.set_current(vocabulary=chosen.id, scores=key)
    return Scores(store, chosen, method, parameters, total, path, reused)


def text_features(store: Store, vocabulary: Vocabulary, device: str) -> tuple[Any, dict[str, Any]]:
    """The (K, D) text features of a vocabulary and the encoder's ΔEnergy settings; encoded once, kept in the store."""
    with writing(store.root, "scores"):
        return _text_features(store, vocabulary, device)


def _text_features(store: Store, vocabulary: Vocabulary, device: str) -> tuple[Any, dict[str, Any]]:
    encoders: list[ClipEncoder] = []

    def encoder() -> "ClipEncoder":
        from ood_audit.encoders.clip import load_same_encoder

        if not encoders:
            encoders.append(load_same_encoder(store.encoder, device=device))
        return encoders[0]

    return vocabularies.cached_features(store, vocabulary, encoder), _defaults(store, encoder)


def settings_of(
    method: str, function: Callable[..., Any] | None, defaults: dict[str, Any], given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a score: those `given` (not None), else its own, which for ΔEnergy are the encoder's.

    Raises:
        UsageError: one was given that the score does not have.

    """
    own = dict(defaults) if method == "delta-energy" or function is None else scores.options(function)
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if foreign := [f"--{name.replace('_', '-')}" for name in given if name not in own]:
        raise UsageError(f"the score {method} has no {', '.join(foreign)}; leave that out")
    return {**own, **given}


def chunks(store: Store, classes: Any, device: str) -> Iterator[tuple[Any, Any, Any]]:
    """Stream the cosines of all readable images to the (K, D) `classes`.

    Yields:
        A feature batch's slice of (image ids, paths), as Arrow arrays; its (N, K) float32 cosines; and the classes:
        both on the device.

    """
    import torch

    from ood_audit.encoders.device import choose_device
    from ood_audit.store.parts import iter_features

    where = choose_device(device)
    on_device = torch.from_numpy(classes).to(where)
    rows = max(1, _CHUNK_BYTES // (4 * len(classes)))
    with torch.inference_mode():
        for batch in iter_features(store):
            for start in range(0, len(batch.features), rows):
                images = torch.from_numpy(batch.features[start : start + rows]).to(where)
                names = (batch.image_ids[start : start + rows], batch.paths[start : start + rows])
                yield names, images @ on_device.T, on_device


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
    return read_json(path)


def _write(
    store: Store,
    path: Path,
    text_features: Any,
    names: list[str],
    score: tuple[Callable[..., Any], dict[str, Any], dict[str, Any]],
    total: int,
    device: str,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Stream the store through a score (its function, its settings, ΔEnergy's settings) into a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from ood_audit.scores.delta_energy import delta_energy

    schema = pa.schema(
        [("image_id", pa.string()), ("path", pa.string())]
        + [(name, pa.float32()) for name in ("ood_score", "delta_energy", "energy", "max_cosine")]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in ("label", "label_2")]
        + [("margin", pa.float32())]
    )
    function, settings, delta = score
    labels = pa.array(names)
    done = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for (image_ids, paths), cosines, classes in chunks(store, text_features, device):
            raw = scores.raw(function, cosines, classes, settings)
            change = raw if function is delta_energy else delta_energy(cosines, **delta)
            energy = -torch.logsumexp(cosines / delta["temperature"], dim=1)
            best, index = (found.cpu().numpy() for found in cosines.topk(min(2, len(names)), dim=1))
            numbers = [-raw, change, energy]
            columns = [image_ids, paths, *(pa.array(n.float().cpu().numpy()) for n in numbers), pa.array(best[:, 0])]
            if len(names) > 1:
                columns += [pa.DictionaryArray.from_arrays(pa.array(i, pa.int32()), labels) for i in index.T]
                columns.append(pa.array(best[:, 0] - best[:, 1]))
            else:  # no runner-up
                columns.append(pa.DictionaryArray.from_arrays(pa.array(index[:, 0], pa.int32()), labels))
                columns += [pa.nulls(len(best), schema.field(name).type) for name in ("label_2", "margin")]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            done += len(best)
            if on_progress is not None:
                on_progress(done, total)


def _drop_outdated(store: Store, generation: int) -> None:
    """Scores of images as they were: nothing asks for them any more."""
    for path in store.scores.glob("*.parquet"):
        recipe = path.with_suffix(".json")
        try:
            outdated = not recipe.exists() or read_json(recipe).get("generation") != generation
        except StoreError:
            outdated = True
        if outdated:
            path.unlink()
            recipe.unlink(missing_ok=True)
