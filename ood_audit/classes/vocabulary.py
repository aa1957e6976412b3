"""The vocabulary: class names, their synonyms, and the prompt templates → text features, cached in the store."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit.classes import class_lists, texts, wordnet
from ood_audit.classes.class_lists import ClassList, Entry
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images.splits import children, divides, is_split
from ood_audit.names import key, near, unnumbered
from ood_audit.store import annotations
from ood_audit.store.files import read_json, replacing, write_json
from ood_audit.store.store import Store
from ood_audit.text import printable

DEFAULT_TEMPLATE = "a photo of a {}."


_FOLDERS = "SELECT DISTINCT folder FROM images WHERE status = 'ok'"
_SHOWN = 8  # names in a note
_MOST_FOLDERS = 50_000  # folders whose names are compared with those of the classes


@dataclass(frozen=True)
class Vocabulary:
    """The classes that should be in the data set.

    Attributes:
        classes: for each class its name, then its synonyms.
        templates: each with one `{}` for the name.
        ids: for each class the number or the WordNet id that its list gives it, or ""; empty where none has one.

    """

    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    ids: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The class names, in order."""
        return [names[0] for names in self.classes]

    @property
    def spoken(self) -> tuple[tuple[str, ...], ...]:
        """The classes as the text tower reads them: `_` is a space."""
        return tuple(tuple(" ".join(name.replace("_", " ").split()) or name for name in own) for own in self.classes)

    def class_of(self, folder: str) -> int | None:
        """The class that a folder is named after, by its last part that names one.

        Parts are compared by `names.key`; a WordNet id is looked up. A split such as `train` names a class only where
        it is the last part. A number stands for the class that the list gives it to, also only as the last part.
        """
        *above, last = folder.split("/")
        for part in (folder, last, *(part for part in reversed(above) if not is_split(part))):
            found = self._named(part)
            if found is not None:
                return found
        return self._ids.get(last)

    def position(self, label: str) -> int | None:
        """The class with this name, synonym, WordNet id or number; names are compared by `names.key`.

        `001.cat` is the cat where no other class has that number.
        """
        found = self._named(label)
        return self._ids.get(label.strip()) if found is None else found

    def _named(self, name: str) -> int | None:
        found = self._index.get(key(name))
        wordnet_id = name.strip().lower()
        if found is None and not wordnet.ID.fullmatch(wordnet_id):
            number, rest = unnumbered(name.strip())
            own = self._index.get(key(rest)) if number else None
            return own if own is not None and self._ids.get(number, own) == own else None
        if found is not None:
            return found
        if wordnet_id in self._ids:
            return self._ids[wordnet_id]
        known = (self._index.get(key(other)) for other in reversed(wordnet.named(wordnet_id)))
        return next((k for k in known if k is not None), None)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key(name): k for k, names in enumerate(self.classes) for name in names}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {own: k for k, own in enumerate(self.ids) if own}

    @property
    def id(self) -> str:
        """A hash of classes, templates and ids: the name of its files in the store."""
        parts = [self.classes, self.templates, *([self.ids] if self.ids else [])]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]

    def features(self, encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]) -> NDArray[np.float32]:
        """(K, D) float32 of length 1: the mean over templates and synonyms of the unit text features, re-normalised."""
        texts = [t.replace("{}", name) for names in self.spoken for name in names for t in self.templates]
        features = encode_texts(texts)
        sizes = [len(names) * len(self.templates) for names in self.classes]
        sums = np.add.reduceat(features, np.cumsum([0, *sizes[:-1]]), axis=0)
        unit: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return unit


def read_vocabulary(path: str | Path, templates: Sequence[str] = (DEFAULT_TEMPLATE,)) -> Vocabulary:
    """Read a labels file in any of the forms of `class_lists`, most simply one class a line.

    Raises:
        UsageError: it can't be read, names a class twice (with the line numbers), or names none.

    """
    return _assembled(class_lists.read(path), printable(str(path)), templates)


def _assembled(found: ClassList, shown: str, templates: Sequence[str]) -> Vocabulary:
    """A list as a vocabulary, with WordNet's names for ids without any."""
    entries = [_looked_up(entry, shown) for entry in found.entries]
    firsts = Counter(key(entry.names[0]) for entry in entries)
    entries = [_told_apart(entry) if firsts[key(entry.names[0])] > 1 else entry for entry in entries]
    seen: dict[str, tuple[str, str]] = {}
    classes = []
    for entry in entries:
        names = []
        for row, name in enumerate(entry.names):
            if row and wordnet.ID.fullmatch(entry.id) and (key(name) in firsts or key(name) in seen):
                continue  # WordNet's synonyms may be of several things
            if key(name) in seen:
                place, other = seen[key(name)]
                written = "" if other == name else f" as {printable(other)!r}"
                raise UsageError(
                    f"{shown}, {entry.place}: {printable(name)!r} is already in {place}{written}; remove one"
                )
            seen[key(name)] = (entry.place, name)
            names.append(name)
        classes.append(tuple(names))
    ids = tuple(entry.id for entry in entries)
    return Vocabulary(tuple(classes), check_templates(templates), ids if any(ids) else ())


def _looked_up(entry: Entry, shown: str) -> Entry:
    """An entry that is a WordNet id, by its name in WordNet."""
    wordnet_id = entry.names[0].lower()
    if entry.id == wordnet_id or not wordnet.ID.fullmatch(wordnet_id):
        return entry
    names = wordnet.named(wordnet_id)
    if not names:
        raise UsageError(f"{shown}, {entry.place}: WordNet 3.0 has no noun {wordnet_id}; write the name of the class")
    return Entry((names[0], *entry.names[1:]), entry.place, wordnet_id)


def _told_apart(entry: Entry) -> Entry:
    """Two things of one name, by what WordNet says that they are: `crane (wading bird)`."""
    names = wordnet.named(entry.id)
    if not names or not names[-1].endswith(")"):
        return entry
    kind = names[-1][names[-1].index(" (") :]
    return Entry((entry.names[0] + kind, *entry.names[1:]), entry.place, entry.id)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """`templates` as a tuple; UsageError for one without exactly one `{}`."""
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"`templates` {printable(template)!r}: write {{}} once, where the class name goes")
    return tuple(templates)


def template_set(name: str) -> tuple[str, ...]:
    """open_clip's prompt sets: `openai-imagenet` (80) and `simple` (7)."""
    from ood_audit.encoders.openclip import open_clip

    sets = {"openai-imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    templates = sets[name]
    return tuple(template("{}") for template in templates)


@dataclass(frozen=True)
class Folders:
    """What the names of a store's folders say.

    Attributes:
        vocabulary: the classes, or None where they name fewer than two, or an image lies in no folder.
        splits: the folders that divide the data set and name no class, such as `train`.
        without: how many folders are below these alone, so that their images have no class.
        only: the name of the one class, where there is no other; else "".

    """

    vocabulary: Vocabulary | None
    splits: list[str]
    without: int
    only: str = ""


def from_folders(store: Store) -> Folders:
    """The folder names as classes (`_` read as a space), if every readable image lies in one of two or more.

    Splits such as `train` and `val` are looked below or above of: `train/cat` and `cat/train` are both class cat.
    """
    own, splits = classes_of(folder for (folder,) in store.query(_FOLDERS).rows)
    classes = {key(name): name for name in own.values() if name is not None}
    without = sum(name is None for name in own.values())
    if len(classes) < 2 or "" in classes:
        only = next(iter(classes.values()), "") if len(classes) == 1 else ""
        return Folders(None, splits, without, only)
    numbered = {name: unnumbered(name) for name in classes.values()}
    numbers = {number for number, _ in numbered.values()}
    rests = {key(rest) for _, rest in numbered.values()}
    counted = "" not in numbers and len(numbers) == len(rests) == len(numbered)
    # `001.cat`, `2.dog`; but not `2-seater`, `3-wheeler`
    counted = counted and any(
        name.startswith("0") or "." in name[: len(name) - len(numbered[name][1])] for name in numbered
    )
    entries = []
    for name in sorted(classes.values()):
        found = wordnet.named(name)
        number, bare = numbered[name] if counted else ("", name)
        spoken = " ".join(bare.replace("_", " ").split()) or bare
        own_id = name if wordnet.ID.fullmatch(name) else number
        entries.append(Entry((found[0] if found else spoken,), name, own_id))
    found_names = _assembled(ClassList(entries, ""), "the folder names", (DEFAULT_TEMPLATE,))
    return Folders(found_names, splits, without)


def classes_of(folders: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """The class that each folder is named after, None below splits alone; and the names of these splits.

    Args:
        folders: All that hold images of a store.

    Example:
        >>> classes_of(["train/cat", "val/cat", "test"])
        ({'test': None, 'train/cat': 'cat', 'val/cat': 'cat'}, ['test', 'train', 'val'])

    """
    folders = sorted(folders)
    below = children(folders)
    splits: dict[str, None] = {}
    classes: dict[str, str | None] = {}
    for folder in folders:
        parts, left = folder.split("/"), []
        for depth, part in enumerate(parts):
            if part and divides(part, below["/".join(parts[:depth])]):
                splits[part] = None
            else:
                left.append(part)
        classes[folder] = left[-1] if left else None
    return classes, list(splits)


def load(store: Store, vocabulary_id: str) -> Vocabulary:
    """A vocabulary that was used with this store before."""
    values = read_json(store.vocabularies / f"{vocabulary_id}.json")
    classes = tuple(tuple(names) for names in values["classes"])
    return Vocabulary(classes, tuple(values["templates"]), tuple(values.get("ids", ())))


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
            classes of its datasets, else the folder names (which `note` is told).
        templates: None for the default, or those of the vocabulary last used.
        note: told what was chosen where the user did not say.

    Raises:
        UsageError: there is none, or it is malformed.

    """
    last = store.current().get("vocabulary")
    found: Folders | None = None
    if labels is not None:
        by_name = not isinstance(labels, (str, Path))
        listed = class_lists.given(labels) if not isinstance(labels, (str, Path)) else class_lists.read(labels)
        shown = "the class names" if by_name else printable(str(labels))
        vocabulary = _assembled(listed, shown, (DEFAULT_TEMPLATE,))
        whence = listed.form if by_name else f"from {os.path.basename(shown)} ({listed.form})"
        note(f"vocabulary: {_counted(vocabulary)} {whence}: {_some(vocabulary.names)}")
    elif last is not None:
        vocabulary = load(store, last)
        note(f"vocabulary: the {_counted(vocabulary)} last used with this store: {_some(vocabulary.names)}")
    elif names := _of_datasets(store):
        vocabulary = _assembled(class_lists.given(names), "the classes of the dataset", (DEFAULT_TEMPLATE,))
        note(
            f"vocabulary: the {_counted(vocabulary)} of the dataset: {_some(vocabulary.names)}; "
            "give another list with --labels FILE"
        )
    elif names := texts.class_names(store):
        vocabulary = Vocabulary(tuple((name,) for name in names))
        imported = "imported name" if len(names) == 1 else f"{len(names)} imported names"
        note(f"vocabulary: the {imported}: {_some(names)}; give a list with --labels FILE")
    else:
        found = from_folders(store)
        if found.vocabulary is None:
            raise UsageError(_no_classes(found))
        vocabulary = found.vocabulary
        beside = f" beside {_some(found.splits)}" if found.splits else ""
        none = f"; {found.without} of these hold images without a class" if found.without else ""
        note(
            f"vocabulary: the {len(vocabulary.classes)} folder names{beside}: {_some(vocabulary.names)}{none}; "
            "give a list with `labels=FILE`"
        )
    for warning in _doubts(vocabulary):
        note(warning)
    for missed in _folder_notes(store, vocabulary) if found is None else ():
        note(missed)
    if templates or labels is not None:
        return replace(vocabulary, templates=check_templates(templates or (DEFAULT_TEMPLATE,)))
    return vocabulary


def _of_datasets(store: Store) -> list[str]:
    """The names of the classes of the datasets in the store; of two that are the same class the first."""
    return list({key(name): name for name in reversed(annotations.classes(store)) if name.strip()}.values())[::-1]


def _counted(vocabulary: Vocabulary) -> str:
    return f"{len(vocabulary.classes)} class{'es' * (len(vocabulary.classes) != 1)}"


def _some(names: Sequence[str], most: int = _SHOWN) -> str:
    return ", ".join(printable(name) for name in names[:most]) + (", …" if len(names) > most else "")


def _no_classes(found: Folders) -> str:
    give = "give a list, one a line, with `labels=FILE`"
    if found.only:
        return f"the folders name fewer than two classes: only {printable(found.only)}; {give}"
    if found.splits:
        return f"the folders {_some(found.splits)} name no classes; {give}"
    return f"which classes should be there? {give}"


def _doubts(vocabulary: Vocabulary) -> list[str]:
    """Warnings of names that no model can know."""
    numbers = [name for name in vocabulary.names if re.fullmatch(r"[\d.,]+", name)]
    unknown = [name for name in vocabulary.names if wordnet.ID.fullmatch(name.lower())]
    doubts = []
    if all(is_split(name) for name in vocabulary.names):
        doubts.append(
            f"warning: the class names are those of splits ({_some(vocabulary.names, 3)}), which say nothing of what "
            "images show; give the names of classes with `labels=FILE`"
        )
    if numbers:
        doubts.append(
            f"warning: {len(numbers)} of the class names are bare numbers ({_some(numbers, 3)}), which say nothing of "
            "what they stand for; give their names with `labels=FILE`, in lines such as `0 cat`"
        )
    if unknown:
        doubts.append(
            f"warning: WordNet 3.0 has no noun {_some(unknown, 3)}; give the names with --labels FILE, "
            f"in lines such as `{unknown[0]} cat`"
        )
    return doubts


def _folder_notes(store: Store, vocabulary: Vocabulary) -> list[str]:
    """Notes on the folders that match a class only by its number, and on those that nearly match one."""
    sql = f"SELECT DISTINCT folder FROM images WHERE status = 'ok' AND folder <> '' LIMIT {_MOST_FOLDERS}"
    classes = {folder: vocabulary.class_of(folder) for (folder,) in store.query(sql).rows}
    notes = []
    numbered = sorted({last: k for f, k in classes.items() if k is not None and (last := f.split("/")[-1]).isdigit()})
    if any(vocabulary.ids) and numbered:
        first = f"{numbered[0]} is {printable(vocabulary.names[vocabulary.position(numbered[0]) or 0])}"
        notes.append(f"folders that are numbers are the classes with these numbers in the list: {first}")
    strange = [folder for folder, k in classes.items() if k is None]
    lasts = {next((part for part in reversed(folder.split("/")) if not is_split(part)), "") for folder in strange}
    if close := near(sorted(lasts - {""}), vocabulary.names):
        pairs = [f"{printable(name)!r} is close to {printable(other)!r}" for name, other in sorted(close.items())]
        several = f"{len(strange)} folders match" if len(strange) > 1 else "1 folder matches"
        notes.append(f"{several} no class: {_some(pairs, 5)}; rename the folder, or add its name to the list after |")
    return notes


def cached_features(
    store: Store, vocabulary: Vocabulary, encoder: "Callable[[], texts.TextEncoder]"
) -> NDArray[np.float32]:
    """The (K, D) text features of a vocabulary, from the store where they are; else encoded and kept there.

    Raises:
        UsageError: two classes differ only past the text that the encoder reads.
        OodAuditError: the cached features are damaged.

    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    path = store.vocabularies / f"{vocabulary.id}.safetensors"
    if path.exists():
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            raise OodAuditError(f"{path} is damaged; delete it and run the command again") from error
    features = texts.class_features(store, vocabulary.classes)
    if features is None:
        _check_context(vocabulary, encoder())
        features = vocabulary.features(encoder().encode_texts)
    with replacing(path) as temporary:
        temporary.write_bytes(save({"features": features}))
    write_json(
        path.with_suffix(".json"),
        {
            "classes": vocabulary.classes,
            "templates": vocabulary.templates,
            **({"ids": vocabulary.ids} if vocabulary.ids else {}),
            "features_sha256": hashlib.sha256(features.tobytes()).hexdigest(),
        },
    )
    return features


def _check_context(vocabulary: Vocabulary, encoder: texts.TextEncoder) -> None:
    """UsageError for two classes that the text tower can't tell apart, as it cuts their names off."""
    length = encoder.tokenize([""]).shape[1]
    shortest = min(len(template.encode()) - 2 for template in vocabulary.templates)
    seen: dict[bytes, int] = {}
    for k, names in enumerate(vocabulary.spoken):
        for name in names:
            if len(name.encode()) + shortest < length - 2:  # a token has at least a byte, and two are for both ends
                continue
            prompts = [template.replace("{}", name) for template in vocabulary.templates]
            first = seen.setdefault(np.asarray(encoder.tokenize(prompts)).tobytes(), k)
            if first != k:
                one, other = (printable(vocabulary.names[i]) for i in (first, k))
                raise UsageError(
                    f"the classes {one!r} and {other!r} are the same to this model, which reads the first {length} "
                    "tokens of a prompt; write shorter names"
                )
