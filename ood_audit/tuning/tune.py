"""`tune`: fit a residual or prompts on the labelled images, and keep them in the store."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit._version import __version__
from ood_audit.classes import labelled as subset
from ood_audit.classes import pools, texts
from ood_audit.classes import prompts as tuned
from ood_audit.classes import vocabulary as vocabularies
from ood_audit.classes.labelled import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import UsageError
from ood_audit.progress import Progress, counting, silent
from ood_audit.store import DEFAULT_STORE, Store, open_store, writing
from ood_audit.store.locks import COMMIT_SECONDS, computing
from ood_audit.store.parts import iter_features
from ood_audit.tuning import residual, trainer
from ood_audit.tuning.settings import TuneSettings, settings_of
from ood_audit.tuning.trainer import Beside, Figures, Tuned

_MOST_UNLABELLED = 4096  # images that take part without labels


@dataclass(frozen=True)
class TuneResult:
    """Prompts that were tuned and saved.

    Attributes:
        name: what to give to `--prompts`.
        tuned: the prompts and their figures.
        images: how many labelled images there were.
        classes: of how many classes.
        improved: whether the held-out figures are no worse than before; else `report` does not use them by itself.
        path: where they are.

    """

    name: str
    tuned: Tuned
    images: int
    classes: int
    improved: bool
    path: Path

    def __repr__(self) -> str:
        return f"TuneResult({self.name!r}, images={self.images}, classes={self.classes}, improved={self.improved})"


def tune(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    labels: str | Path | Sequence[str] | None = None,
    folder: str | Path | None = None,
    annotations: str | Path | None = None,
    settings: TuneSettings | None = None,
    name: str | None = None,
    device: str = "auto",
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
    on_epoch: Callable[[Figures, int], None] | None = None,
) -> TuneResult:
    """Learn better class features from labelled images; the encoder stays as it is.

    `method="prompt"` learns the words in front of the class names, `method="residual"` a residual on their features,
    which needs no model once these are known.

    Args:
        store: The store, or its folder.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        folder: A folder with one folder of images for each class, which is registered as labelled images first.
        annotations: A CSV, JSON or Parquet file that names images of the store in `path` and their classes in `label`,
            which is registered first. Where no labelled images are registered, prompts are tuned on the images of the
            store whose folder is named as a class.
        settings: How to tune; None for the defaults of the method that `best_method` names.
        name: The name of the prompts; None for one from the method or the loss, and the time.
        device: Where the text encoder runs.
        note: Called with a sentence for each thing that a person should know.
        on_progress: Called with the stages of the work except the epochs, see `ood_audit.progress.Progress`.
        on_epoch: Called after each epoch with its figures and the maximum number of epochs.

    Raises:
        UsageError: A setting makes no sense, the labels don't fit the vocabulary, or there are too few images.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    settings = settings or settings_of(method=best_method(store))
    trainer.check(settings)
    if folder is not None and annotations is not None:
        raise UsageError("give the labelled images by `folder` or by `annotations`, not both")
    kind = settings.loss if settings.method == "prompt" else settings.method
    name = name or f"{kind}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    tuned.check_name(name)
    vocabulary = vocabularies.choose(store, labels, None, note)
    if (given := annotations if folder is None else folder) is not None:
        subset.add(store, given, vocabulary=vocabulary, device=device, note=note, on_progress=on_progress)
    own = subset.load(store, vocabulary, note) or subset.from_store(store, vocabulary)
    subset.check(own, vocabulary, note)
    with computing(store.root):
        encoder = texts.tunable_encoder_of(store, device, on_progress)
        text = vocabularies.cached_features(store, vocabulary, encoder)
        beside = Beside()
        if (settings.background or settings.regulariser == "ogen") and pools.is_available(store, "background"):
            counted = counting(on_progress, "encoding names")
            pool = pools.load(store, vocabulary, "background", encoder, counted, note)
            beside = Beside(background=pool.negatives)
        if settings.unlabelled:
            beside = replace(beside, unlabelled=_unlabelled(store))
        if settings.method == "residual":
            defaults = ScoreDefaults(**texts.encoder_defaults(store, encoder))
            on_progress("tuning")
            found = residual.fit(own.features, own.labels, text, defaults, settings, on_epoch, beside)
        else:
            tower = encoder()
            on_progress("tuning")
            found = trainer.fit(own.features, own.labels, vocabulary.spoken, tower, settings, on_epoch, beside)
        if found.settings.epochs == 0:  # the text as it is, and all images for references and calibration
            found = replace(
                found, class_features=text, move=None, held_out=np.arange(len(own.labels)), after=found.before
            )
        improved = _improved(found)
        with writing(store.root, "scores", wait=COMMIT_SECONDS):
            path = _save(store, name, vocabulary, own, found, improved)
            store.set_current(vocabulary=vocabulary.id)
    return TuneResult(name, found, len(own.labels), len(np.unique(own.labels)), improved, path)


def best_method(store: Store) -> str:
    """The method that measures best: `prompt` for the bundled starter, whose text encoder is small, else `residual`."""
    return "prompt" if store.encoder.model == "starter" else "residual"


def _unlabelled(store: Store) -> NDArray[np.float32]:
    """(U, D) features of the images under audit, or of about 4,096 of them."""
    ((count,),) = store.query("SELECT count(*) FROM images WHERE status = 'ok'").rows
    share = min(1.0, _MOST_UNLABELLED / max(1, count))
    batches = [batch.features for batch in iter_features(store, share=share)]
    return np.concatenate(batches).astype(np.float32)


def _improved(found: Tuned) -> bool:
    """No worse in the sum of what is known of detection and accuracy, nor interrupted before anything was learned."""
    if found.interrupted and found.epoch == 0:
        return False
    change = 0.0
    for name in ("accuracy", "forecast_auroc"):
        before, after = getattr(found.before, name), getattr(found.after, name)
        if before is not None and after is not None:
            change += after - before
    return change >= 0


def _save(
    store: Store,
    name: str,
    vocabulary: Vocabulary,
    own: Labelled,
    found: Tuned,
    improved: bool,
) -> Path:
    learned = "context" if found.settings.method == "prompt" else "residual"
    arrays = {learned: found.learned, "class_features": found.class_features}
    if found.move is not None:
        arrays["move"] = found.move
    return tuned.save(
        store,
        name,
        vocabulary,
        arrays,
        replace(own, held_out=found.held_out),
        {
            "created": datetime.now(timezone.utc).isoformat(),
            "version": __version__,
            "model": store.encoder.model,
            "classes": vocabulary.names,
            "settings": asdict(found.settings),
            "prototypes": found.settings.prototypes,
            "improved": improved,
            "interrupted": found.interrupted,
            "epoch": found.epoch,
            "before": asdict(found.before),
            "after": asdict(found.after),
        },
    )
