"""The vocabulary: class names, their synonyms, and the prompt templates → text features, cached in the store."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit import texts
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.store.layout import Store, read_json, replacing, write_json
from ood_audit.text import printable

DEFAULT_TEMPLATE = "a photo of a {}."
TEMPLATE_SETS = ("openai-imagenet", "simple")


@dataclass(frozen=True)
class Vocabulary:
    """The classes that should be in the data set.

    Attributes:
        classes: for each class its name, then its synonyms.
        templates: each with one `{}` for the name.

    """

    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)

    @property
    def names(self) -> list[str]:
        """The class names, in order."""
        return [names[0] for names in self.classes]

    def class_of(self, folder: str) -> int | None:
        """The class that a folder is named after, by its last part that names one (`_` is read as a space)."""
        for part in reversed(folder.split("/")):
            found = self._index.get(" ".join(part.replace("_", " ").split()).casefold())
            if found is not None:
                return found
        return None

    def position(self, label: str) -> int | None:
        """The class with this name or synonym, in any case."""
        return self._index.get(label.casefold())

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name.casefold(): k for k, names in enumerate(self.classes) for name in names}

    @property
    def id(self) -> str:
        """A hash of classes and templates: the name of its files in the store."""
        content = json.dumps([self.classes, self.templates], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def features(self, encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]) -> NDArray[np.float32]:
        """(K, D) float32 of length 1: the mean over templates and synonyms of the unit text features, re-normalised."""
        texts = [t.replace("{}", name) for names in self.classes for name in names for t in self.templates]
        features = encode_texts(texts)
        sizes = [len(names) * len(self.templates) for names in self.classes]
        sums = np.add.reduceat(features, np.cumsum([0, *sizes[:-1]]), axis=0)
        unit: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return unit


def read_vocabulary(path: str | Path, templates: Sequence[str] = (DEFAULT_TEMPLATE,)) -> Vocabulary:
    """Read a labels file: one class a line, synonyms after `|`, comments after `#` (at the start or after a space).

    Raises:
        UsageError: it can't be read, is not UTF-8, names a class twice (with the line numbers), or names none.

    """
    shown = printable(str(path))
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the labels {shown}: {error.strerror or error}") from error
    seen: dict[str, int] = {}
    classes: list[tuple[str, ...]] = []
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{shown}, line {number}: not UTF-8; save the file as UTF-8") from error
        content = re.sub(r"(^|\s)#.*", "", line)
        if not content.strip():
            continue
        names = [" ".join(name.split()) for name in content.split("|")]
        if "" in names:
            raise UsageError(f"{shown}, line {number}: an empty name beside '|'")
        for name in names:
            if (first := seen.setdefault(name.casefold(), number)) != number or names.count(name) > 1:
                raise UsageError(f"{shown}, line {number}: {printable(name)!r} is already in line {first}; remove one")
        classes.append(tuple(names))
    if not classes:
        raise UsageError(f"{shown} names no class; write one a line (it has {len(lines)} lines)")
    return Vocabulary(tuple(classes), check_templates(templates))


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """`templates` as a tuple; UsageError for one without exactly one `{}`."""
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"--template {printable(template)!r}: write {{}} once, where the class name goes")
    return tuple(templates)


def template_set(name: str) -> tuple[str, ...]:
    """open_clip's prompt sets: `openai-imagenet` (80) and `simple` (7)."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    templates = {"openai-imagenet": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}[name]
    return tuple(template("{}") for template in templates)


def from_folders(store: Store) -> Vocabulary | None:
    """The folder names as classes (`_` read as a space), if every readable image lies in one of two or more."""
    rows = store.query("SELECT DISTINCT folder FROM images WHERE status = 'ok'").rows
    folders = sorted({folder.rpartition("/")[2] for (folder,) in rows})
    names = {" ".join(folder.replace("_", " ").split()).casefold(): folder for folder in folders}
    if len(names) < 2 or "" in names:
        return None
    return Vocabulary(tuple((" ".join(folder.replace("_", " ").split()),) for folder in sorted(names.values())))


def load(store: Store, vocabulary_id: str) -> Vocabulary:
    """A vocabulary that was used with this store before."""
    values = read_json(store.vocabularies / f"{vocabulary_id}.json")
    return Vocabulary(tuple(tuple(names) for names in values["classes"]), tuple(values["templates"]))


def choose(
    store: Store,
    labels: str | Path | Sequence[str] | None,
    templates: Sequence[str] | None,
    note: Callable[[str], None],
) -> Vocabulary:
    """The vocabulary of a command.

    Args:
        store: the store.
        labels: a labels file, or the class names themselves; None for the one last used with this store, else the
            folder names (which `note` is told).
        templates: None for the default, or those of the vocabulary last used.
        note: told what was chosen where the user did not say.

    Raises:
        UsageError: there is none, or it is malformed.

    """
    if labels is not None and not isinstance(labels, (str, Path)):
        return Vocabulary(tuple((name,) for name in labels), check_templates(templates or (DEFAULT_TEMPLATE,)))
    if labels is not None:
        return read_vocabulary(labels, templates or (DEFAULT_TEMPLATE,))
    last = store.current().get("vocabulary")
    if last is not None:
        vocabulary = load(store, last)
        note(f"vocabulary: the {len(vocabulary.classes)} classes last used with this store")
    elif names := texts.class_names(store):
        vocabulary = Vocabulary(tuple((name,) for name in names))
        note(f"vocabulary: the {len(names)} imported names; give a list with --labels FILE")
    elif (from_names := from_folders(store)) is not None:
        vocabulary = from_names
        note(f"vocabulary: the {len(vocabulary.classes)} folder names; give a list with --labels FILE")
    else:
        raise UsageError("which classes should be there? give a list, one a line, with --labels FILE")
    return Vocabulary(vocabulary.classes, check_templates(templates)) if templates else vocabulary


def cached_features(
    store: Store, vocabulary: Vocabulary, encoder: "Callable[[], texts.TextEncoder]"
) -> NDArray[np.float32]:
    """The (K, D) text features of a vocabulary, from the store where they are; else encoded and kept there.

    Raises:
        OodAuditError: the cached features are damaged.

    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    path = store.vocabularies / f"{vocabulary.id}.safetensors"
    if path.exists():
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            raise OodAuditError(f"{path} is damaged; delete it and run the command again") from error
    features = texts.class_features(store, vocabulary.classes)
    if features is None:
        features = vocabulary.features(encoder().encode_texts)
    with replacing(path) as temporary:
        save_file({"features": features}, temporary)
    write_json(
        path.with_suffix(".json"),
        {
            "classes": vocabulary.classes,
            "templates": vocabulary.templates,
            "features_sha256": hashlib.sha256(features.tobytes()).hexdigest(),
        },
    )
    return features
