"""`score`: settle what images are compared with, and how, and stream the store through it, into `scores/`."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_audit.classes import labelled as labelled_images
from ood_audit.classes import prompts as tuned
from ood_audit.classes import texts
from ood_audit.classes import vocabulary as vocabularies
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import IMPORTED
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.progress import Progress, counting, silent
from ood_audit.scoring import scores
from ood_audit.store import DEFAULT_STORE, Store, open_store, schema, writing
from ood_audit.store.files import read_json, replacing, write_json
from ood_audit.store.locks import COMMIT_SECONDS, computing
from ood_audit.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ood_audit.classes.labelled import Labelled
    from ood_audit.classes.prompts import Prompts
    from ood_audit.classes.prototypes import Prototypes
    from ood_audit.scoring.joining import Joined, Joint, Numbers
    from ood_audit.scoring.pictures import Pictures
    from ood_audit.scoring.references import Calibration
    from ood_audit.scoring.similarity import Chunk, Target

Note = Callable[[str], None]
_CHOSEN = ("auto", "delta-energy", "best")  # methods whose settings are chosen on the data
_FORMAT = 9  # of the files: scores with other columns, or without their prototypes, are not taken up
_OTHERS = 4096  # names to tell a known class by, where no score wants all of them: nearly as good, and a small product
_MOST_KNOWN = 1000
_NEIGHBOURS = 512  # compared with all names at a time
_PROTOTYPES = ".safetensors"  # beside the scores that they are part of
_GROUP_ROWS = 131_072  # of the file: fewer are slow to query
_DEFAULT_WEIGHT = 0.2  # as in `prototypes`, which this module must not import


@dataclass(frozen=True)
class Scores:
    """A finished score run: what was scored, how, and against what.

    Attributes:
        parameters: the settings in use; for `best` also the `score` that was chosen.
        prompts: the name of the tuned prompts, or `none`.
        doubt: a sentence where the encoder seems not to know the classes, see `scoring.knows`; else "".
        forecast: the AUROC to expect on this data, where the settings were chosen on images in class folders or
            labelled ones; see `scoring.selection`.
        references: where the pictures of the classes are from and how many they are, if they were used.
        reused: the same scores lay in the store already.

    """

    store: Store
    vocabulary: Vocabulary
    method: str
    parameters: dict[str, Any]
    prompts: str
    doubt: str
    forecast: float | None
    references: dict[str, Any] | None
    images: int
    path: Path
    reused: bool

    def __repr__(self) -> str:
        return f"Scores({self.method!r}, images={self.images}, classes={len(self.vocabulary.names)})"


@dataclass(frozen=True)
class Plan:
    """What to compute.

    Attributes:
        target: what images are compared with.
        runs: by method, its function and its settings.
        delta: the settings of the columns delta_energy and energy where the method is another.
        parts: of the store, so that every pass over the features reads the same images.
        joint: for `auto` where nothing is labelled, what its evidence is joined from.
        pictures: for `auto` where images are labelled, what its evidence is joined from.
        doubt: a sentence where the encoder seems not to know the classes, else "".
        forecasts: by method, where its settings were chosen on images whose class is known.
        sharpness: the temperature at which the softmax of the similarities is a probability; see `references`.
        calibration: labelled images that nothing was learned from but prototypes that do not score them.
        given: the class that an image was labelled with, by its id; other than by its folder.
        folders: (F,) the classes that a folder is named as.

    """

    target: "Target"
    runs: dict[str, tuple[Callable[..., Any], dict[str, Any]]]
    delta: dict[str, Any]
    parts: list[Path]
    joint: "Joint | None"
    pictures: "Pictures | None"
    doubt: str
    forecasts: dict[str, float]
    sharpness: float
    calibration: "Calibration | None"
    given: dict[str, int]
    folders: "NDArray[np.int64]"


def score(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    method: str = "auto",
    temperature: float | None = None,
    top_c: int | None = None,
    reset_to: float | None = None,
    background: bool | None = None,
    prototypes: bool | None = None,
    novelty: float | bool | None = None,
    prompts: str = "auto",
    auto: bool = True,
    seed: int = 0,
    device: str = "auto",
    note: Note = lambda message: None,
    on_progress: Progress = silent,
) -> Scores:
    """Score every readable image. A score run that is in the store already is reused.

    Args:
        store: The store, or its folder.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        templates: Prompts with `{}` for the class name, which are averaged; None for `a photo of a {}.`.
        method: `auto` for ΔEnergy joined with other evidence, see `scoring.joining`; one of
            `ood_audit.scoring.scores.names()`, whose negative is `ood_score`; or `best`, chosen on the data.
        temperature: The temperature τ of the score; None to choose it.
        top_c: How many of the largest similarities ΔEnergy resets; None to choose it.
        reset_to: The cosine that ΔEnergy resets them to; None to choose it.
        background: Whether the energies of ΔEnergy run over the background names, too; None to choose it.
        prototypes: Whether class prototypes count beside the class names, see `classes.prototypes`; None to choose it.
        novelty: How much it counts, for `auto`, that an image is unlike the rest of the folder: a weight of 0 or more;
            True or None to choose it, False for none.
        prompts: Tuned prompts in place of the class names: `auto` for the newest that fit, `none`, or their name.
        auto: Whether what is None is chosen by leaving classes out, see `scoring.selection`; otherwise, and where there
            is too little data, ΔEnergy takes the settings of the encoder, and other scores those of their source.
        seed: Random seed for choosing settings.
        device: Where similarities are computed: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: The vocabulary or a setting makes no sense.
        StoreError: There is no store, or another process is writing to it.
        OodAuditError: The store holds no readable image.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    _check(temperature, top_c, reset_to, novelty)
    given = {
        "temperature": temperature,
        "top_c": top_c,
        "reset_to": reset_to,
        "background": background,
        "prototypes": None if prototypes is None else _DEFAULT_WEIGHT * prototypes,
        "novelty": None if novelty is None or novelty is True else float(novelty),
    }
    given = {name: value for name, value in given.items() if value is not None}
    chosen = vocabularies.choose(store, labels, templates, note)
    total = int(store.query("SELECT count(*) FROM images WHERE status = 'ok'").rows[0][0])
    if total == 0:
        raise OodAuditError("the store holds no readable image; run `ood-audit embed FOLDER`")
    if method == "best" and (own := [name for name in ("temperature", "top_c", "reset_to") if name in given]):
        raise UsageError(f"--score best chooses --{own[0].replace('_', '-')} itself; leave it out, or name a score")
    if novelty is not None and method != "auto":
        raise UsageError(f"--score {printable(method)} has no --novelty; leave one of them out")
    if method not in _CHOSEN:
        settings_of(method, scores.load(method), {}, given)
    with computing(store.root):
        own_prompts = tuned.choose(store, chosen, prompts, note)
        if own_prompts and not own_prompts.recipe["prototypes"]:
            given.setdefault("prototypes", 0.0)
        request: dict[str, Any] = {
            "format": _FORMAT,
            "method": method,
            "given": given,
            "auto": auto and method in _CHOSEN,
            "seed": seed,
            "prompts": [own_prompts.name, own_prompts.recipe["created"]] if own_prompts else None,
            "vocabulary": chosen.id,
            "labelled": labelled_images.fingerprint(store),
            "generation": store.generation,
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        path = store.scores / f"{key}.parquet"
        reused = path.exists() and path.with_suffix(".json").exists()  # the recipe is written last
        with ExitStack() as lock:
            if reused:
                lock.enter_context(writing(store.root, "scores", wait=COMMIT_SECONDS))
            else:
                plan = prepare(store, chosen, own_prompts, [method], given, auto, seed, device, note, on_progress)
                with replacing(path) as temporary:
                    joined = _write(store, temporary, plan, method, chosen, total, device, on_progress)
                    lock.enter_context(writing(store.root, "scores", wait=COMMIT_SECONDS))
                _keep_prototypes(path, plan, method)
                write_json(path.with_suffix(".json"), {**request, **_found(plan, method, joined)})
                _drop_outdated(store, request["generation"])
            found = read_json(path.with_suffix(".json"))
            store.set_current(vocabulary=chosen.id, scores=key)
    return Scores(
        store=store,
        vocabulary=chosen,
        method=method,
        parameters=found["parameters"],
        prompts=own_prompts.name if own_prompts else "none",
        doubt=found["doubt"],
        forecast=found["forecast"],
        references=found["references"],
        images=total,
        path=path,
        reused=reused,
    )


def prepare(
    store: Store,
    vocabulary: Vocabulary,
    prompts: "Prompts | None",
    methods: Sequence[str],
    given: dict[str, Any],
    auto: bool,
    seed: int,
    device: str,
    note: Note,
    on_progress: Progress,
) -> Plan:
    """Settle the settings of some scores, and bring together what they need."""
    import torch

    from ood_audit.classes import pools, prototypes
    from ood_audit.encoders.device import choose_device
    from ood_audit.scoring import joining, knows, references, selection
    from ood_audit.scoring import pictures as labelled_pictures
    from ood_audit.scoring.similarity import Target

    torch.manual_seed(seed)
    choose_device(device)
    encoder = texts.encoder_of(store, device, on_progress)

    def pool(name: str) -> "pools.Pool":
        if name not in loaded:
            loaded[name] = pools.load(store, vocabulary, name, encoder, counting(on_progress, "encoding names"), note)
        return loaded[name]

    loaded: dict[str, pools.Pool] = {}
    text = prompts.class_features if prompts else vocabularies.cached_features(store, vocabulary, encoder)
    defaults = _defaults(store, encoder)
    duplicate = defaults.pop("duplicate")
    on_progress("reading the features")
    labelled = _labelled(store, vocabulary, prompts, note)
    found, sample = references.collect(store, vocabulary, text, labelled, defaults, seed=seed)
    # Presumed labels are those of confident images, which are too easy to choose anything by but a whole score.
    known = not sample.presumed and selection.usable(sample) and len(text) >= selection.FEWEST_CLASSES
    can_choose = known or (selection.usable(sample) and len(text) >= selection.FEWEST_CLASSES)
    if auto and "best" in methods and not can_choose:
        note("settings: the model's own (choosing them needs 60 images in 6 classes)")
    has_background = pools.is_available(store, "background")
    pictures = None
    if auto and "auto" in methods and known and found.source == "labelled":
        by_hand = text if prompts is None else vocabularies.cached_features(store, vocabulary, encoder)
        pictures = labelled_pictures.Pictures(labelled_pictures.gain_of(found, by_hand), duplicate)
        if given.get("prototypes") == 0:
            pictures = replace(pictures, gain=0.0)
    runs, forecasts = {}, {}
    for method in methods:
        if auto and (known if method in ("auto", "delta-energy") else method == "best" and can_choose):
            grid = selection.Grid.around(given, every_score=method == "best", encoder=defaults)
            if not has_background:
                grid = replace(grid, background=(False,))
            background = pool("background") if True in grid.background else None
            chosen = selection.select(
                sample,
                text,
                defaults,
                grid=grid,
                background=background,
                seed=seed,
                on_progress=counting(on_progress, "choosing settings"),
            )
            runs[method] = (scores.load(chosen.method), chosen.settings)
            if known:  # presumed labels forecast how easy confident images are
                forecasts[method] = chosen.forecast
        else:
            name = "delta-energy" if method in ("best", "auto") else method
            function = scores.load(name)
            settings = settings_of(name, function, defaults, {k: v for k, v in given.items() if k != "novelty"})
            if auto and method in ("auto", "delta-energy") and "background" not in given:
                settings["background"] = has_background
            runs[method] = (function, settings)
    needed = set().union(*(scores.inputs(function) for function, _ in runs.values()))
    for name in ("neglabel", "csp"):
        if f"{name}_negatives" in needed:
            pool(name)
    if any(settings.get("background") for _, settings in runs.values()):
        pool("background")
    elif others := loaded.pop("background", None):
        loaded["background"] = others.thinned(_OTHERS)  # for the column `lead`
    names = loaded["background"].negatives if any(s.get("background") for _, s in runs.values()) else None
    doubt = knows.doubt(sample.features, text, names, defaults["temperature"])
    # Where they are not wanted, there is no product with them either, which would cost more than that with the text.
    unwanted = given.get("prototypes") == 0
    target = Target(text, found, [] if unwanted else prototypes.fit_folds(found, text), loaded)
    parts = store.parts
    joint = None
    if "auto" in methods and auto and not known and labelled is None:  # flags compare with labelled images one by one
        on_progress("reading the features")
        joint = joining.read(store, text, duplicate, given.get("novelty"), parts)
    return Plan(
        target=target,
        runs=runs,
        delta=settings_of("delta-energy", None, defaults),
        parts=parts,
        joint=joint,
        pictures=pictures,
        doubt=knows.sentence(doubt, vocabulary.names) if doubt else "",
        forecasts=forecasts,
        sharpness=references.sharpness(sample, text),
        calibration=references.apart(store, found, labelled, text) if labelled else None,
        given={i: int(k) for i, k in zip(labelled.image_ids, labelled.labels, strict=True) if i} if labelled else {},
        folders=_class_folders(store, vocabulary),
    )


def _labelled(store: Store, vocabulary: Vocabulary, prompts: "Prompts | None", note: Note) -> "Labelled | None":
    """The registered images; where there are none, those that the prompts in use were tuned on."""
    registered = labelled_images.load(store, vocabulary, note)
    if registered is None:
        return prompts.labelled if prompts else None
    return labelled_images.apart_from(registered, prompts.labelled) if prompts else registered


def _class_folders(store: Store, vocabulary: Vocabulary) -> "NDArray[np.int64]":
    """(F,) the classes that a folder with readable images is named as."""
    import numpy as np

    folders = store.query("SELECT DISTINCT folder FROM images WHERE status = 'ok'").rows
    return np.array(sorted({k for (folder,) in folders if (k := vocabulary.class_of(folder)) is not None}), np.int64)


def settings_of(
    method: str, function: Callable[..., Any] | None, defaults: dict[str, Any], given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a score: those `given`, else its own, which for ΔEnergy are the encoder's.

    Raises:
        UsageError: one was given that the score does not have.

    """
    if method == "delta-energy" or function is None:
        own = {**defaults, "background": False, "prototypes": 0.0}
    else:
        own = {**scores.options(function), "prototypes": 0.0}
    if foreign := [f"--{name.replace('_', '-')}" for name in given or {} if name not in own]:
        raise UsageError(f"the score {method} has no {', '.join(foreign)}; leave it out")
    return {**own, **(given or {})}


def _check(temperature: float | None, top_c: int | None, reset_to: float | None, novelty: float | bool | None) -> None:
    if temperature is not None and not 1e-4 <= temperature <= 1e4:
        raise UsageError(f"--temperature {temperature}: choose between 0.0001 and 10000")
    if top_c is not None and top_c < 1:
        raise UsageError(f"--top-c {top_c}: choose 1 or more")
    if reset_to is not None and not -1 <= reset_to <= 1:
        raise UsageError(f"--reset-to {reset_to}: choose a cosine between -1 and 1")
    if novelty is not None and not 0 <= float(novelty) <= 100:
        raise UsageError(f"--novelty {novelty}: choose auto, on, off, or a weight from 0 to 100")


def _defaults(store: Store, encoder: Callable[[], texts.TextEncoder]) -> dict[str, Any]:
    """The encoder's card, see `ScoreDefaults`: read from its weights once, and kept in the store."""
    path = store.root / "score_defaults.json"
    if not path.exists() or "duplicate" not in read_json(path):  # older ones had other settings
        own = IMPORTED if store.encoder.is_imported else encoder().score_defaults
        write_json(path, asdict(own))
    return read_json(path)


def _found(plan: Plan, method: str, joined: "Joined | None") -> dict[str, Any]:
    """What there is to tell about a plan, as JSON."""
    function, settings = plan.runs[method]
    used = plan.target.references
    parameters = {"score": name_of(function), **settings} if method == "best" else dict(settings)
    by_neighbours = joined if plan.joint is not None else None
    if by_neighbours is not None:
        parameters["novelty"] = round(by_neighbours.weight, 3)
    if plan.pictures is not None:
        parameters["pictures"] = round(plan.pictures.gain, 3)
    return {
        "parameters": parameters,
        "neighbours": None if by_neighbours is None else by_neighbours.neighbours,
        "doubt": plan.doubt,
        "forecast": plan.forecasts.get(method),
        "references": {"source": used.source, "images": len(used.labels)} if used else None,
        "calibration": _calibration(plan, method, joined),
        "lead_of_unknown": _lead_of_unknown(plan),
    }


def described(method: str, parameters: dict[str, Any]) -> str:
    """A score and its settings, for people: `ΔEnergy, τ = 1, c = 2, v = 0, background`."""
    symbols = {"temperature": "τ", "top_c": "c", "reset_to": "v", "prototypes": "prototypes"}
    method = parameters.get("score", method)
    words = ["ΔEnergy" if method in ("auto", "delta-energy") else method]
    for name, value in parameters.items():
        if isinstance(value, bool):
            words += [name] if value else []
        elif name != "score" and (name not in ("prototypes", "novelty", "pictures") or value):
            shown = f"{value:g}" if isinstance(value, (int, float)) else value  # others' scores may have words
            words.append(f"{symbols.get(name, name)} = {shown}")
    return ", ".join(words)


def name_of(function: Callable[..., Any]) -> str:
    """The name of a score."""
    return next((name for name in scores.names() if scores.load(name) is function), function.__name__)


def _write(
    store: Store,
    path: Path,
    plan: Plan,
    method: str,
    vocabulary: Vocabulary,
    total: int,
    device: str,
    on_progress: Progress,
) -> "Joined | None":
    """Stream the store through a plan's only method into a Parquet file at `path`; returns what was joined for it."""
    import pyarrow as pa

    labels = pa.array(vocabulary.names)
    class_of = lru_cache(maxsize=65_536)(vocabulary.class_of)
    columns = partial(_columns, plan=plan, method=method, labels=labels, class_of=class_of)
    if plan.joint is None and plan.pictures is None:
        _stream(store, path, plan, columns, device, total, schema.SCORES, counting(on_progress, "scoring"))
        return None
    first = path.with_name(path.name.removesuffix(".tmp") + ".first.tmp")
    try:
        evidence = partial(_columns_and_evidence, plan=plan, method=method, columns=columns)
        _stream(store, first, plan, evidence, device, total, schema.EVIDENCE, counting(on_progress, "scoring"))
        return _join(store, first, path, plan, method, counting(on_progress, "comparing with the folder"))
    finally:
        first.unlink(missing_ok=True)


def _stream(
    store: Store,
    path: Path,
    plan: Plan,
    columns: "Callable[[Chunk], list[Any]]",
    device: str,
    total: int,
    kinds: Any,
    on_progress: Callable[[int, int], None],
) -> None:
    """Write the columns of all chunks into a Parquet file, beside the computation."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ood_audit.scoring.similarity import map_chunks

    done, waiting, rows = 0, [], 0
    with (
        pq.ParquetWriter(path, kinds, **schema.PARQUET) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="scores") as thread,
    ):
        writing_of = thread.submit(lambda: None)
        for found in map_chunks(store, plan.target, device, columns, plan.parts):
            waiting.append(pa.RecordBatch.from_arrays(found, schema=kinds))
            rows += len(found[0])
            done += len(found[0])
            if rows >= _GROUP_ROWS:
                writing_of.result()
                writing_of = thread.submit(writer.write_table, pa.Table.from_batches(waiting), rows)
                waiting, rows = [], 0
            on_progress(done, total)
        writing_of.result()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), rows)


def _join(
    store: Store,
    first: Path,
    path: Path,
    plan: Plan,
    method: str,
    on_progress: Callable[[int, int], None],
) -> "Joined":
    """Join the evidence in a file of scores, and write it with the joined score in place of its own."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ood_audit.scoring.joining import UNLIKE

    read = pq.read_table(first, columns=["ood_score", "evidence_1", "evidence_2"])
    evidence = [read[name].to_numpy().astype(np.float64) for name in read.column_names]
    joined = joined_with(store, plan, method, evidence, on_progress)
    start = 0
    with pq.ParquetFile(first) as file, pq.ParquetWriter(path, schema.SCORES, **schema.PARQUET) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = slice(start, start + len(table))
            start = rows.stop
            own = {
                "ood_score": pa.array(joined.ood_score[rows].astype(np.float32)),
            }
            if plan.joint is not None:
                own["novelty"] = pa.array(joined.novelty[rows].astype(np.float32))
                own["unlike"] = pa.DictionaryArray.from_arrays(joined.unlike[rows].astype(np.int32), list(UNLIKE))
            columns = [own[name] if name in own else table[name] for name in schema.SCORES.names]
            writer.write_table(pa.table(columns, schema.SCORES))
    return joined


def joined_with(
    store: Store,
    plan: Plan,
    method: str,
    evidence: "Sequence[Numbers]",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Joined":
    """Join evidence about all images, see `scoring.joining` and `scoring.pictures`.

    Args:
        store: the store that is scored.
        plan: a plan with a `joint` or with `pictures`.
        method: the score of the plan.
        evidence: (N,) float64 each: the ood_score by the score alone, and what `evidence_of` gives.
        on_progress: called with the number of images compared with their neighbours, and of all images.

    """
    import numpy as np

    from ood_audit.scoring.joining import Evidence, join
    from ood_audit.scoring.similarity import chunk_of
    from ood_audit.store.parts import iter_features

    if plan.pictures is not None:
        return _joined_by_pictures(plan, method, evidence)
    joint = plan.joint
    assert joint is not None  # noqa: S101  the caller has asked
    temperature = float(plan.runs[method][1]["temperature"])
    energy, standing, outside = evidence
    own = Evidence(energy, standing, outside, temperature)
    of_neighbours = own
    if not joint.is_whole:
        found = []
        for start in range(0, len(joint.neighbours), _NEIGHBOURS):
            features = joint.neighbours[start : start + _NEIGHBOURS]
            chunk = chunk_of([""] * len(features), features, plan.target)
            found.append((_raw(chunk, plan, method), *evidence_of(chunk, plan, method)))
        energy, standing, outside = (np.concatenate(parts) for parts in zip(*found, strict=True))
        of_neighbours = Evidence(energy, standing, outside, temperature)
    images = (batch.features for batch in iter_features(store, parts=plan.parts))
    return join(joint, own, of_neighbours, images, on_progress)


def _joined_by_pictures(plan: Plan, method: str, evidence: "Sequence[Numbers]") -> "Joined":
    """Join evidence by `scoring.pictures`; also that about the calibration images."""
    import numpy as np

    from ood_audit.scoring.joining import Joined
    from ood_audit.scoring.pictures import PictureEvidence, join
    from ood_audit.scoring.similarity import chunk_of

    assert plan.pictures is not None  # noqa: S101  the caller has asked
    of_images = PictureEvidence(*evidence)
    of_calibration = None
    if plan.calibration is not None:
        apart = plan.calibration
        chunk = chunk_of(apart.names, apart.features, apart.target(plan.target))
        known = PictureEvidence(_raw(chunk, plan, method), *evidence_of(chunk, plan, method))
        of_calibration = join(plan.pictures, of_images, known)
    count = len(of_images.energy)
    nothing = np.full(count, np.nan), np.zeros(count, np.int8)
    return Joined(join(plan.pictures, of_images), *nothing, 0.0, 0, of_calibration)


def evidence_of(chunk: "Chunk", plan: Plan, method: str) -> "tuple[Numbers, Numbers]":
    """What is joined with the score of a chunk, (N,) float64 each: see `scoring.joining` and `scoring.pictures`."""
    from ood_audit.scoring import joining
    from ood_audit.scoring import pictures as labelled_pictures

    if plan.pictures is not None:
        return labelled_pictures.evidence_of(chunk, plan.pictures)
    settings = plan.runs[method][1]
    assert plan.joint is not None  # noqa: S101  the caller has asked
    return joining.evidence_of(chunk, plan.joint, settings["temperature"], settings["background"])


def _raw(chunk: "Chunk", plan: Plan, method: str) -> Any:
    """(N,) float64, the ood_score of a chunk by the score alone."""
    return -chunk.raw(*plan.runs[method]).cpu().double().numpy()


def _columns_and_evidence(
    chunk: "Chunk", plan: Plan, method: str, columns: "Callable[[Chunk], list[Any]]"
) -> list[Any]:
    """The columns of a chunk's scores that do not depend on other images, and what the others are computed from."""
    import pyarrow as pa

    own = dict(zip(schema.SCORES.names, columns(chunk), strict=True))
    evidence = evidence_of(chunk, plan, method)
    return [*(own[name] for name in schema.EVIDENCE.names[:-2]), *map(pa.array, evidence)]


def _keep_prototypes(path: Path, plan: Plan, method: str) -> None:
    """Keep the prototypes beside the scores that they are part of, so that a report can show the same similarities."""
    if not plan.runs[method][1]["prototypes"] or not any(plan.target.prototypes):
        return
    from ood_audit.classes.prototypes import save

    with replacing(path.with_suffix(_PROTOTYPES)) as temporary:
        save(temporary, plan.target.prototypes)


def prototypes_of(scored: Scores) -> "list[Prototypes | None]":
    """The prototypes that are part of these scores; empty where they are of the names alone."""
    from safetensors import SafetensorError

    from ood_audit.classes.prototypes import load

    path = scored.path.with_suffix(_PROTOTYPES)
    if not scored.parameters["prototypes"] or not path.exists():
        return []
    try:
        return load(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(
            f"{printable(str(path))} is damaged; delete {printable(str(scored.path))} and run again"
        ) from error


def _columns(chunk: "Chunk", plan: Plan, method: str, labels: Any, class_of: Callable[[str], int | None]) -> list[Any]:
    """The columns of a chunk's scores, as Arrow arrays."""
    import numpy as np
    import pyarrow as pa

    numbers, best, index = _numbers(chunk, plan, method)
    columns = [chunk.batch.image_ids, chunk.batch.paths, *(pa.array(n.float().cpu().numpy()) for n in numbers)]
    columns += [pa.DictionaryArray.from_arrays(pa.array(i, pa.int32()), labels) for i in index.T]
    if len(labels) > 1:
        columns.append(pa.array(best[:, 0] - best[:, 1]))
    else:  # no runner-up
        columns += [pa.nulls(len(best), pa.dictionary(pa.int32(), pa.string())), pa.nulls(len(best), pa.float32())]
    given, *more = _beside(chunk, plan, plan.runs[method][1]["prototypes"], index[:, 0], class_of)
    columns.append(pa.DictionaryArray.from_arrays(pa.array(given, pa.int32(), mask=given < 0), labels))
    columns += [pa.array(values, pa.float32(), from_pandas=True) for values in more]
    columns.append(pa.array(_folder_ranks(chunk, plan, given), pa.int32(), mask=~np.isin(given, plan.folders)))
    return [*columns, pa.nulls(len(best), pa.float32()), pa.nulls(len(best), schema.WORD)]  # novelty and unlike


def _numbers(chunk: "Chunk", plan: Plan, method: str) -> tuple[list[Any], Any, Any]:
    """ood_score, delta_energy, energy and max_cosine of a chunk; its two largest similarities and their classes."""
    from ood_audit.scoring.scores.delta_energy import delta_energy

    function, settings = plan.runs[method]
    raw = chunk.raw(function, settings)
    change, energy = chunk.energies(settings if function is delta_energy else plan.delta)
    best, index = (found.cpu().numpy() for found in chunk.largest(settings["prototypes"], 2))
    return [-raw, change, energy, chunk.largest(0.0, 1)[0][:, 0]], best, index


def _beside(
    chunk: "Chunk", plan: Plan, weight: float, nearest: Any, class_of: Callable[[str], int | None]
) -> tuple[Any, Any, Any, Any, Any]:
    """What tells label issues and covariate shift, NaN where it is not known.

    Returns:
        (N,) int: the class that each image is labelled with, by its folder or by hand, −1 for none; (N,) the
        probabilities of the nearest class and of that one; (N,) 1 − cosine to the prototype of the nearest class; (N,)
        see `Chunk.lead`.

    """
    import numpy as np
    import torch

    given = _given(chunk, plan, class_of)
    similarities = chunk.similarities(weight)
    normalizer = chunk.log_sum(weight, plan.sharpness)
    both = torch.from_numpy(np.stack([nearest, given.clip(0)], axis=1)).to(similarities.device)
    shares = (similarities.gather(1, both) / plan.sharpness - normalizer[:, None]).exp().float().cpu().numpy()
    distance = np.full(len(given), np.nan)
    if any(plan.target.prototypes):
        distance = 1 - chunk.to_prototypes.gather(1, both[:, :1])[:, 0].float().cpu().numpy()
    lead = chunk.lead.float().cpu().numpy() if _leads(plan.target) else np.full(len(given), np.nan)
    return given, shares[:, 0], np.where(given < 0, np.nan, shares[:, 1]), distance, lead


def _folder_ranks(chunk: "Chunk", plan: Plan, given: Any) -> Any:
    """(N,) int: how many of the classes that have a folder each image resembles more than the class it is labelled as.

    By prototypes at their usual weight whatever the score: they have not seen the image, and know the classes best.
    """
    import torch

    similarities = chunk.similarities(_DEFAULT_WEIGHT)
    own = torch.from_numpy(given.clip(0))[:, None].to(similarities.device)
    those = torch.from_numpy(plan.folders).to(similarities.device)
    return (similarities[:, those] > similarities.gather(1, own)).sum(dim=1).cpu().numpy()


def _leads(target: "Target") -> bool:
    """Whether the lead of the class names is known, and something to hold it against."""
    return "background" in target.pools and len(target.text) > 1


def _given(chunk: "Chunk", plan: Plan, class_of: Callable[[str], int | None]) -> Any:
    """(N,) int64: the class that each image is labelled with, −1 for none."""
    import numpy as np

    folders = chunk.batch.folders.dictionary_encode()
    classes = [-1 if (k := class_of(folder)) is None else k for folder in folders.dictionary.to_pylist()]
    given = np.array(classes, np.int64)[folders.indices.to_numpy()]
    if plan.given:
        by_hand = [plan.given.get(image_id, -1) for image_id in chunk.image_ids]
        given = np.where(np.array(by_hand) < 0, given, by_hand)
    return given


def _calibration(plan: Plan, method: str, joined: "Joined | None") -> dict[str, Any] | None:
    """How the calibration images score: ood_score, and distance beside the class they are of."""
    if plan.calibration is None:
        return None
    from ood_audit.scoring.similarity import chunk_of

    own = plan.calibration
    chunk = chunk_of(own.names, own.features, own.target(plan.target))
    function, settings = plan.runs[method]
    nearest = chunk.largest(settings["prototypes"], 1)[1][:, 0]
    distance = 1 - chunk.to_prototypes.gather(1, nearest[:, None])[:, 0]
    score = -chunk.raw(function, settings) if joined is None or joined.calibration is None else joined.calibration
    return {
        "ood_score": score.tolist(),
        "distance": distance.tolist(),
        "label": own.labels.tolist(),
        "predicted": nearest.tolist(),
    }


def _lead_of_unknown(plan: Plan) -> list[float] | None:
    """The lead of known images were their class unknown: left out of the classes, and its name one of the others.

    These are the calibration images, or up to 1,000 of the references where there are none.
    """
    import torch

    from ood_audit.classes.prototypes import sample
    from ood_audit.scoring.similarity import chunk_of

    known = plan.calibration or plan.target.references
    if not _leads(plan.target) or known is None or not len(known.labels):
        return None
    rows = sample(len(known.labels), most=_MOST_KNOWN)
    chunk, labels = chunk_of([""] * len(rows), known.features[rows], plan.target), known.labels[rows]
    own = torch.from_numpy(labels)[:, None].to(chunk.images.device)
    others = chunk.to_text.scatter(1, own, -torch.inf).amax(dim=1)
    lead = others - torch.maximum(chunk.to_background.amax(dim=1), chunk.to_text.gather(1, own)[:, 0])
    return [float(number) for number in lead]


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
            path.with_suffix(_PROTOTYPES).unlink(missing_ok=True)
            recipe.unlink(missing_ok=True)
