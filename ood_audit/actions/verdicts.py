"""What a person decided about findings: reading it from the page's decisions.csv, acting on it, remembering it.

What was applied is kept in the store as `verdicts/ID.json`, ID being the hash of the decisions, so that applying the
same file again changes nothing, and `undo` knows what to revert. A finding stays decided as long as the bytes of its
image stay as they are.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from hashlib import blake2b
from pathlib import Path

from ood_audit.actions import quarantine
from ood_audit.classes import annotations, vocabulary
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import UsageError
from ood_audit.images.uri import is_file, local_path, location
from ood_audit.progress import Progress, silent
from ood_audit.store import DEFAULT_STORE, Store, open_store, writing
from ood_audit.store.files import read_json, remove, replacing, write_json
from ood_audit.store.findings import Finding
from ood_audit.store.locks import COMMIT_SECONDS
from ood_audit.text import printable, storable, write_csv
from ood_audit.values import JsonObject

DECISIONS = ("keep", "remove", "relabel", "new-class")
_LABELLING = ("relabel", "new-class")
# Kinds that ask the same of a person: whether the image belongs to the data.
_QUESTION = {
    **dict.fromkeys(("ood", "covariate-shift", "unusual"), "belongs"),
    **dict.fromkeys(("exact-duplicate", "near-duplicate"), "duplicate"),
}
Key = tuple[str, str]  # a content hash or an image id, and the question that is decided


@dataclass(frozen=True)
class Verdict:
    """What was decided about one finding.

    Attributes:
        image_id: The image.
        path: Its path, as a person reads it.
        content_hash: The hash of its bytes.
        kind: The kind of the finding.
        decision: One of DECISIONS.
        label: The right class, for `relabel` and `new-class`; else empty.
        when: ISO time.

    """

    image_id: str
    path: str
    content_hash: str
    kind: str
    decision: str
    label: str
    when: str


@dataclass(frozen=True, repr=False)
class Applied:
    """What became of decisions.

    Attributes:
        moved: One outcome for each image that was to be moved.
        labels: The file that has the new labels; None where there are none.
        relabelled: How many labels it got, or lost again.
        kept: How many findings a person decided to keep as they are.
        new_classes: Names of classes to add to the list of classes.
        outdated: How many decisions were left out, as their image has changed, or left the store, since.

    """

    moved: quarantine.Result = field(default_factory=lambda: quarantine.Result([]))
    labels: Path | None = None
    relabelled: int = 0
    kept: int = 0
    new_classes: list[str] = field(default_factory=list)
    outdated: int = 0

    def __repr__(self) -> str:
        counts = {**self.moved.counts, "relabelled": self.relabelled, "kept": self.kept, "outdated": self.outdated}
        return f"Applied({', '.join(f'{name}={count}' for name, count in counts.items() if count)})"


def read(store: Store, path: str | os.PathLike[str]) -> tuple[list[Verdict], int]:
    """The decisions of a file about images that are still as they were, and how many others it has.

    Raises:
        UsageError: The file can't be read, lacks a column, or has a decision that there is not.

    """
    what = f"the decisions {printable(os.fspath(path))}"
    wanted = ("content_hash", "kind", "decision", "label", "when")
    rows = annotations.read_rows(Path(path), what, wanted)
    for row in rows:
        if row.value["decision"] not in DECISIONS:
            decision = printable(row.value["decision"])
            raise UsageError(f"{what}, {row.place}: {decision!r} is no decision; write {', '.join(DECISIONS)}")
        if row.value["decision"] in _LABELLING and not row.value["label"]:
            raise UsageError(f"{what}, {row.place}: no label; write the class that the image shows")
    meant = annotations.images(store, [row.image for row in rows], Path(path))
    hashes = _hashes(store)
    verdicts = []
    for row in rows:
        same = [i for i in meant[row.image] if hashes.get(i, (None, ""))[0] == row.value["content_hash"]]
        if len(same) == 1:
            verdicts.append(Verdict(same[0], storable(location(hashes[same[0]][1])), **row.value))
    return verdicts, len(rows) - len(verdicts)


def apply(
    decisions: str | os.PathLike[str],
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    to: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] = "labels.csv",
    move: bool = False,
    dry_run: bool = False,
    on_progress: Progress = silent,
) -> Applied:
    """Act on what was decided: move what is to be removed, write the new labels, and remember all of it.

    Args:
        decisions: The file that the page's button Finish saves.
        store: A store or its folder.
        to: A folder for what is removed, and for the journal of all moves; see `quarantine`.
        labels: A CSV file with the columns path and label, which gets the new labels.
        move: Move the images with a new label into the folder of that class instead.
        dry_run: Only say what would be done.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: The decisions make no sense, or images are to be moved and there is no `to`.
        OodAuditError: See `quarantine`.

    """
    store = store if isinstance(store, Store) else open_store(store)
    verdicts, outdated = read(store, decisions)
    removed = [verdict for verdict in verdicts if verdict.decision == "remove"]
    named = [verdict for verdict in verdicts if verdict.decision in _LABELLING]
    targets: dict[str, str | None] = dict(_targets(store, named)) if move else {}
    targets |= dict.fromkeys((verdict.image_id for verdict in removed), None)
    if targets and to is None:
        raise UsageError(f"{len(targets)} images are to be moved; name a folder for what is removed with `to=DIR`")
    moved = quarantine.Result([])
    if targets and to is not None:
        moved = quarantine.quarantine(to, store, images=targets, dry_run=dry_run, on_progress=on_progress)
    left = {outcome.uri for outcome in moved.outcomes if outcome.outcome == "left"}
    uris = _hashes(store)
    done = [verdict for verdict in verdicts if uris[verdict.image_id][1] not in left]
    file = None if move or not named else Path(labels)
    if not dry_run:
        before = _write_labels(file, {verdict.path: verdict.label for verdict in named}) if file else {}
        _remember(store, decisions, done, to=to if targets else None, labels=file, before=before)
    return Applied(
        moved=moved,
        labels=file,
        relabelled=len(named) if file else 0,
        kept=sum(verdict.decision == "keep" for verdict in verdicts),
        new_classes=sorted({verdict.label for verdict in verdicts if verdict.decision == "new-class"}),
        outdated=outdated,
    )


def undo(
    decisions: str | os.PathLike[str],
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    dry_run: bool = False,
    on_progress: Progress = silent,
) -> Applied:
    """Revert what `apply` did with the same decisions: move the images back, take back the labels, and forget it.

    Raises:
        UsageError: These decisions were not applied to this store.
        OodAuditError: See `ood_audit.restore`.

    """
    store = store if isinstance(store, Store) else open_store(store)
    path = _path(store, decisions)
    if not path.exists():
        raise UsageError(f"the decisions {printable(os.fspath(decisions))} were not applied to this store")
    record = read_json(path)
    verdicts = [Verdict(**values) for values in record["verdicts"]]
    moved = quarantine.Result([])
    if record["to"]:
        ids = {verdict.image_id for verdict in verdicts if verdict.decision != "keep"}
        moved = quarantine.restore(record["to"], images=ids, dry_run=dry_run, on_progress=on_progress)
    file = Path(record["labels"]) if record["labels"] else None
    if not dry_run:
        if file and file.exists():
            _write_labels(file, record["before"])
        if not moved.counts["left"]:
            with writing(store.root, "scores", wait=COMMIT_SECONDS):
                remove(path)
    kept = sum(verdict.decision == "keep" for verdict in verdicts)
    return Applied(moved=moved, labels=file, relabelled=len(record["before"]), kept=kept)


def settled(store: Store) -> set[Key]:
    """What was decided and applied, other than to remove: content hashes, each with the question that is settled."""
    keys = set()
    for path in _records(store):
        for values in read_json(path)["verdicts"]:
            if values["decision"] != "remove":
                keys.add((values["content_hash"], question(values["kind"])))
    return keys


def acting(store: Store) -> list[Verdict]:
    """What was decided and applied other than to keep an image as it is, in the order of time."""
    every = (Verdict(**values) for path in _records(store) for values in read_json(path)["verdicts"])
    return sorted((verdict for verdict in every if verdict.decision != "keep"), key=lambda verdict: verdict.when)


def question(kind: str) -> str:
    """What a finding of a kind asks; kinds that ask the same are settled by one verdict."""
    return _QUESTION.get(kind, kind)


def unsettled(findings: Iterable[Finding], ids: set[Key]) -> Iterator[Finding]:
    """The findings that are not decided; `ids` are those of images, each with the question that is settled."""
    return (finding for finding in findings if (finding.image_id, question(finding.kind)) not in ids)


def _hashes(store: Store) -> dict[str, tuple[str | None, str]]:
    return {i: (content, uri) for i, content, uri in store.query("SELECT image_id, content_hash, uri FROM images").rows}


def _targets(store: Store, named: Iterable[Verdict]) -> Iterator[tuple[str, str]]:
    """For each image that gets another label, its path in the folder of that class, where it is in one of a class."""
    current = store.current().get("vocabulary")
    if current is None:
        return
    classes = vocabulary.load(store, current)
    uris = _hashes(store)
    folders = {folder for (folder,) in store.query("SELECT DISTINCT folder FROM images").rows}
    names = {k: part for folder in folders for part in folder.split("/") if (k := classes.position(part)) is not None}
    for verdict in named:
        uri = uris[verdict.image_id][1]
        if is_file(uri) and (target := _in_class(local_path(uri), verdict.label, classes, names)):
            yield verdict.image_id, target


def _in_class(path: str, label: str, classes: Vocabulary, names: Mapping[int, str]) -> str | None:
    """The path with the last folder that is named as a class replaced by that of `label`."""
    position = classes.position(label)
    folder = names.get(position, label) if position is not None else label
    if folder.startswith(".") or os.path.basename(folder) != folder or not folder:
        return None
    parts = path.split(os.sep)
    for i in range(len(parts) - 2, 0, -1):
        if classes.position(parts[i]) is not None:
            return os.sep.join([*parts[:i], folder, *parts[i + 1 :]])
    return None


def _write_labels(file: Path, new: Mapping[str, str | None]) -> dict[str, str | None]:
    """Add labels to a file by path, or take out those that are None; returns what it had before for these paths."""
    labels: dict[str, str] = {}
    if file.exists():
        with file.open(encoding="utf-8", newline="") as reading:
            labels = {row["path"]: row["label"] for row in csv.DictReader(reading)}
    before = {path: labels.get(path) for path in new}
    labels |= {path: label for path, label in new.items() if label is not None}
    for path, label in new.items():
        if label is None:
            labels.pop(path, None)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as writing_to:
        write_csv(writing_to, ("path", "label"), list(labels.items()))
    return before


def _remember(
    store: Store,
    decisions: str | os.PathLike[str],
    verdicts: list[Verdict],
    *,
    to: str | os.PathLike[str] | None,
    labels: Path | None,
    before: Mapping[str, str | None],
) -> None:
    path = _path(store, decisions)
    record: JsonObject = {
        "applied": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "to": os.path.abspath(to) if to is not None else None,
        "labels": os.path.abspath(labels) if labels else None,
        "before": before,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    if path.exists():  # applied once more: what there was before is what there was at first
        earlier = read_json(path)
        record |= {"before": {**before, **earlier["before"]}, "to": record["to"] or earlier["to"]}
        own = [values for values in earlier["verdicts"] if values not in record["verdicts"]]
        record["verdicts"] += own
    with writing(store.root, "scores", wait=COMMIT_SECONDS):
        write_json(path, record)


def _records(store: Store) -> list[Path]:
    return sorted((store.root / "verdicts").glob("[!.]*.json"))


def _path(store: Store, decisions: str | os.PathLike[str]) -> Path:
    try:
        content = Path(decisions).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {printable(os.fspath(decisions))}: {(error.strerror or '').lower()}") from error
    return store.root / "verdicts" / f"{blake2b(content, digest_size=12).hexdigest()}.json"
