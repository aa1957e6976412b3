"""Tuned prompts in the store: `prompts/NAME.safetensors` (context, class and labelled features) and its recipe."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit.classes.labelled import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import StoreError, UsageError
from ood_audit.store.files import read_json, remove, replacing, write_json
from ood_audit.store.store import Store
from ood_audit.text import printable
from ood_audit.values import JsonObject


@dataclass(frozen=True)
class Prompts:
    """Prompts tuned with this store.

    Attributes:
        name: what to give to `--prompts`.
        class_features: (K, D) float32 of length 1, in place of the text features.
        labelled: what they were tuned on.
        recipe: how, and the figures before and after.
        move: (D + 1, D) float32, how background names are moved beside these, see `pools.Pool.moved`; None for not.

    """

    name: str
    class_features: NDArray[np.float32]
    labelled: Labelled
    recipe: JsonObject
    move: NDArray[np.float32] | None = None


def save(
    store: Store,
    name: str,
    vocabulary: Vocabulary,
    arrays: Mapping[str, NDArray[np.float32]],
    labelled: Labelled,
    recipe: JsonObject,
) -> Path:
    """Write prompts; older ones of the name are replaced. The recipe is written last: without it they are not there.

    Args:
        store: the store.
        name: see `check_name`.
        vocabulary: the classes they are for.
        arrays: `class_features`, `context` or `residual`, and `move` where there is one.
        labelled: what they were tuned on.
        recipe: settings, figures, `improved` (whether they may become the default) and `created`.

    """
    from safetensors.numpy import save

    path = store.prompts / f"{name}.safetensors"
    remove(path.with_suffix(".json"))
    with replacing(path) as temporary:
        temporary.write_bytes(
            save(
                {
                    **arrays,
                    "labelled_features": labelled.features.astype(np.float16),
                    "labels": labelled.labels,
                    "held_out": labelled.held_out,
                }
            )
        )
    values = {
        "vocabulary": vocabulary.id,
        "encoder": store.encoder.weights_sha256,
        "image_ids": labelled.image_ids,
        **recipe,
    }
    write_json(path.with_suffix(".json"), values)
    return path


def choose(
    store: Store, vocabulary: Vocabulary, name: str, note: Callable[[str], None] = lambda message: None
) -> Prompts | None:
    """The prompts of a command.

    Args:
        store: the store.
        vocabulary: of the command.
        name: `auto` for the newest of this vocabulary that made the held-out figures better; `none`; or a name.
        note: told what `auto` found.

    Raises:
        UsageError: there are no prompts of this name, or they are for other classes.
        StoreError: a file is damaged.

    """
    if name == "none":
        return None
    if name != "auto":
        check_name(name)
        path = store.prompts / f"{name}.json"
        if not path.exists():
            there = ", ".join(sorted(p.stem for p in store.prompts.glob("*.json"))) or "none yet"
            raise UsageError(
                f"`prompts` {printable(name)}: there are no prompts of this name "
                f"(there are: {there}); make some with `ood-audit tune`"
            )
        recipe = read_json(path)
        if not _fits(recipe, store, vocabulary):
            raise UsageError(
                f"`prompts` {name}: these were tuned for other classes or another encoder; run `ood-audit tune` again"
            )
        return _load(store, name, recipe)
    found = [(path.stem, read_json(path)) for path in store.prompts.glob("*.json")]
    usable = [(r["created"], stem, r) for stem, r in found if _fits(r, store, vocabulary) and r["improved"]]
    if not usable:
        return None
    _, newest, recipe = max(usable, key=lambda entry: entry[:2])
    loaded = _load(store, newest, recipe)
    note(f"prompts: {newest} (tuned); use --prompts none for the class names alone")
    return loaded


def check_name(name: str) -> None:
    """UsageError for what can't be a file's name, or means something else."""
    if not re.fullmatch(r"[\w-][\w.-]{0,60}", name) or name in ("auto", "none"):
        raise UsageError(f"prompts named {printable(name)!r}: use letters, digits, '-', '_', '.'; not auto, none")


def _fits(recipe: JsonObject, store: Store, vocabulary: Vocabulary) -> bool:
    return recipe.get("vocabulary") == vocabulary.id and recipe.get("encoder") == store.encoder.weights_sha256


def _load(store: Store, name: str, recipe: JsonObject) -> Prompts:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = store.prompts / f"{name}.safetensors"
    try:
        arrays = load_file(path)
        features = arrays["labelled_features"].astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)  # float16 rounding
        labelled = Labelled(features, arrays["labels"], recipe["image_ids"], arrays["held_out"])
        move = arrays.get("move")
        if "shift" in arrays:  # kept by an earlier 0.2.0.dev0: (D,), a move that only adds
            move = np.vstack([np.eye(len(arrays["shift"]), dtype=np.float32), arrays["shift"]])
        return Prompts(name, arrays["class_features"], labelled, recipe, move)
    except (OSError, SafetensorError, KeyError) as error:
        raise StoreError(f"{printable(str(path))} is damaged; delete it and run `ood-audit tune` again") from error
