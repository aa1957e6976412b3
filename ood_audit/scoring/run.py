"""`score`: settle what images are compared with, and how, and stream the store through it, into `scores/`.

What computes is imported where it is called, so that a finished score is read without what it was computed with.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ood_audit.classes import labelled, prompts, texts, vocabulary
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.cpu import return_freed_memory
from ood_audit.encoders.gpu import choose_gpu
from ood_audit.errors import OodAuditError, StoreError
from ood_audit.progress import Progress, silent
from ood_audit.scoring import scores
from ood_audit.scoring.context import Context
from ood_audit.scoring.scores import Options
from ood_audit.scoring.settings import CHOSEN, ScoreSettings, settings_of
from ood_audit.store import DEFAULT_STORE, Store, open_store, writing
from ood_audit.store.files import read_json, replacing, write_json
from ood_audit.store.locks import COMMIT_SECONDS, computing
from ood_audit.store.views import count_readable
from ood_audit.text import printable
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    from ood_audit.classes.prompts import Prompts
    from ood_audit.classes.prototypes import Prototypes
    from ood_audit.scoring.recipe import UsedReferences

_FORMAT = 13  # of the files: scores with other columns, or without their prototypes, are not taken up
_PROTOTYPES = ".safetensors"  # beside the scores that they are part of


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
    parameters: Options
    prompts: str
    doubt: str
    forecast: float | None
    references: "UsedReferences | None"
    images: int
    path: Path
    reused: bool

    def __repr__(self) -> str:
        return f"Scores({self.method!r}, images={self.images}, classes={len(self.vocabulary.names)})"


def score(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    settings: ScoreSettings | None = None,
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    device: str = "auto",
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
) -> Scores:
    """Score every readable image. A score run that is in the store already is reused.

    Args:
        store: The store, or its folder.
        settings: How to score; None for ΔEnergy joined with other evidence, its settings chosen on the data.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        templates: Prompts with `{}` for the class name, which are averaged; None for `a photo of a {}.`.
        device: Where similarities are computed: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: The vocabulary makes no sense, or the score does not have a setting.
        StoreError: There is no store, or another process is writing to it.
        OodAuditError: The store holds no readable image.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    if device != "auto":
        choose_gpu(device)  # an error about it comes first, also where nothing is left to compute
    settings = settings or ScoreSettings()
    method = settings.method
    classes = vocabulary.choose(store, labels, templates, note)
    total = count_readable(store)
    if total == 0:
        raise OodAuditError("the store holds no readable image; run `ood-audit embed FOLDER`")
    if method not in CHOSEN:
        settings_of(method, scores.load(method), {}, settings.given())
    with computing(store.root):
        tuned = prompts.choose(store, classes, settings.prompts, note)
        request = {
            "format": _FORMAT,
            **settings.request(tuned),
            "vocabulary": classes.id,
            "labelled": labelled.fingerprint(store),
            "generation": store.generation,
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        path = store.scores / f"{key}.parquet"
        reused = path.exists() and path.with_suffix(".json").exists()  # the recipe is written last
        with ExitStack() as lock:
            if reused:
                lock.enter_context(writing(store.root, "scores", wait=COMMIT_SECONDS))
            else:
                context = Context(store, classes, device, note, on_progress)
                _compute(context, settings, tuned, path, request, total, lock)
            recipe = read_json(path.with_suffix(".json"))
            store.set_current(vocabulary=classes.id, scores=key)
    return Scores(
        store=store,
        vocabulary=classes,
        method=method,
        parameters=recipe["parameters"],
        prompts=tuned.name if tuned else "none",
        doubt=recipe["doubt"],
        forecast=recipe["forecast"],
        references=recipe["references"],
        images=total,
        path=path,
        reused=reused,
    )


def _compute(
    context: Context,
    settings: ScoreSettings,
    tuned: "Prompts | None",
    path: Path,
    request: JsonObject,
    total: int,
    lock: ExitStack,
) -> None:
    """Compute scores, and enter into `lock` before they appear in the store."""
    _encode_classes(context)
    from ood_audit.scoring import plan, recipe, table

    store, method = context.store, settings.method
    prepared = plan.prepare(context, settings, [method], tuned)
    return_freed_memory()
    with replacing(path) as temporary:
        joined = table.write(context, temporary, prepared, method, total)
        lock.enter_context(writing(store.root, "scores", wait=COMMIT_SECONDS))
    table.keep_prototypes(path.with_suffix(_PROTOTYPES), prepared, method)
    write_json(path.with_suffix(".json"), {**request, "images": total, **recipe.recipe_of(prepared, method, joined)})
    _drop_outdated(store, request["generation"])


def _encode_classes(context: Context) -> None:
    """Encode the names of the classes, for `plan` to find them in the store.

    The text tower, 200 MB for the starter, is free again before what scores takes memory.
    """
    encoder = texts.encoder_of(context.store, context.device, context.on_progress)
    vocabulary.cached_features(context.store, context.vocabulary, encoder)
    texts.encoder_defaults(context.store, encoder)
    del encoder
    return_freed_memory()


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
