"""`quarantine`: move what was found out of the way, reversibly.

A quarantine is a folder: `quarantine.jsonl`, its journal, and the files, in one folder for each that they came from,
with their paths in it. The journal has a line for each move, on disk before the move begins, and one for its end. So
whatever stops a run, the next one knows which move may be half done, and ends it (`moving.settle`).
"""

import errno
import io
import json
import os
import secrets
import shlex
import stat
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import count
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ood_audit.actions.moving import content_hash, move, settle
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings.records import in_evaluation, selecting
from ood_audit.images.uri import file_uri, image_and_box, is_file, local_path, location
from ood_audit.progress import Progress, silent
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.files import flush
from ood_audit.store.sources import forgetting, state_of
from ood_audit.text import printable, storable
from ood_audit.values import Row

JOURNAL = "quarantine.jsonl"
_LOCK = "quarantine.lock"


@dataclass(frozen=True)
class Entry:
    """One move. `place` is relative to the quarantine, percent-encoded, so that the folder can be moved as a whole."""

    id: str
    image_id: str
    uri: str
    place: str
    content_hash: str | None
    kinds: list[str]
    evidence: list[str]
    suggestions: list[str]
    report: str


@dataclass(frozen=True)
class Outcome:
    """What became of one image, and why.

    `outcome` is moved, already-there, left or restored; would-move and would-restore in a dry run. `path` is where the
    image belongs, `to` its place in the quarantine, `uri` the exact name of `path`.
    """

    outcome: str
    path: str
    to: str
    kinds: str
    reason: str
    uri: str


@dataclass(frozen=True)
class Result:
    """What was done: one outcome an image.

    `settled` moves of an earlier, interrupted run were ended first. `outdated` findings were passed over, as their
    image has changed, or left the store, since the report. `evaluation` has, by split that models are judged on, how
    many images were selected by what a model says.
    """

    outcomes: list[Outcome]
    settled: int = 0
    outdated: int = 0
    evaluation: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        """How many images have each outcome."""
        return Counter(outcome.outcome for outcome in self.outcomes)

    def __repr__(self) -> str:
        return f"Result({', '.join(f'{name}={number}' for name, number in sorted(self.counts.items()))})"


def quarantine(
    dest: str | os.PathLike[str],
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    kinds: Collection[str] = (),
    images: Mapping[str, str | None] | None = None,
    report: str | None = None,
    dry_run: bool = False,
    on_progress: Progress = silent,
) -> Result:
    """Move the images with a finding of some kinds, or those given, to `dest`, where `restore` finds them again.

    An image is left alone, and its outcome says so, where it is not as it was when it was embedded (size, time, bytes),
    or where it is the very file that an image to keep is a link to. A symbolic link is moved as a link, never the file
    that it points to; a relative one may point nowhere until it is back. Nothing is ever overwritten.

    Args:
        dest: the quarantine's folder, made where there is none.
        store: a store or its folder.
        kinds: of `findings.KINDS`.
        images: image ids in place of kinds, each with a path to move it to, or None for a place in `dest`. The journal
            in `dest` has these moves too.
        report: the report's name; by default the current one.
        dry_run: only say what would be done.
        on_progress: called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: `dest` is where `embed` would find the images again, or no folder for this; or see `selecting`.
        StoreError: see `selecting`.
        OodAuditError: the quarantine is in use, damaged or can't be written.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    root = os.path.realpath(dest)
    with selecting(store, kinds, report, images=images) as (db, outdated):
        evaluation = in_evaluation(db)
        _check_place(root, store, [source for (source,) in db.execute("SELECT DISTINCT source FROM images").fetchall()])
        answer = db.execute(
            "SELECT image_id, uri, source, path, size_bytes, mtime_ns, content_hash, "
            "list(kind ORDER BY kind) AS kinds, list(evidence ORDER BY kind) AS evidence, "
            "list(suggestion ORDER BY kind) AS suggestions, any_value(report) AS report "
            "FROM selected GROUP BY ALL ORDER BY uri"
        )
        names = [column[0] for column in answer.description or []]
        chosen = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        kept = dict(
            db.execute(
                "SELECT content_hash, list(uri) FROM images WHERE image_id NOT IN (SELECT image_id FROM selected) "
                "AND content_hash IN (SELECT content_hash FROM selected) GROUP BY content_hash"
            ).fetchall()
        )
    if not chosen:
        return Result([], outdated=outdated)
    chosen.sort(key=lambda image: not os.path.islink(local_path(image["uri"])))  # a link before what it points to
    outcomes = []
    with _opened(root, dry_run=dry_run) as journal:
        plan = _Plan(root, journal, kept, images or {})
        for done, image in enumerate(chosen, start=1):
            step = plan.step(image)
            if isinstance(step, Entry):
                step = _do(journal, step, dry_run)
            outcomes.append(step)
            on_progress("moving", done, len(chosen))
    return Result(outcomes, len(journal.settled), outdated, evaluation)


def restore(
    dest: str | os.PathLike[str],
    *,
    images: Collection[str] | None = None,
    dry_run: bool = False,
    on_progress: Progress = silent,
) -> Result:
    """Put what is in a quarantine back to where it was, the last one moved first.

    What can't be put back, as its place is taken or its file is gone, stays, and its outcome says so.

    Args:
        dest: the quarantine's folder.
        images: the ids of the images to put back; by default all.
        dry_run: only say what would be done.
        on_progress: called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: `dest` is no quarantine.
        OodAuditError: it is in use, damaged or can't be written.

    """
    root = os.path.realpath(dest)
    if not os.path.isfile(os.path.join(root, JOURNAL)):
        raise UsageError(f"{printable(storable(root))} is not a quarantine: it has no {JOURNAL}")
    outcomes = []
    with _opened(root, dry_run=dry_run) as journal:
        entries = [entry for entry in journal.inside()[::-1] if images is None or entry.image_id in images]
        for done, entry in enumerate(entries, start=1):
            outcomes.append(_undo(journal, entry, dry_run))
            on_progress("moving back", done, len(entries))
    return Result(outcomes, len(journal.settled))


class _Journal:
    """The journal of the quarantine at `root`: `entries` by id, in order, and the `state` of each.

    The states are moving → moved or left, and moved → restoring → restored or moved.
    """

    def __init__(self, root: str, file: io.FileIO | None) -> None:
        self.root = root
        self.file = file  # None in a dry run
        self.entries: dict[str, Entry] = {}
        self.state: dict[str, str] = {}
        self.settled: set[str] = set()

    def read(self, content: bytes) -> None:
        """Take up what was written before."""
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                record = json.loads(line)
                state = record.pop("state")
                del record["time"]
                if state == "moving":
                    self.entries[record["id"]] = Entry(**record)
                self.state[self.entries[record["id"]].id] = state
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                name = printable(storable(os.path.join(self.root, JOURNAL)))
                raise OodAuditError(f"{name} is damaged in line {number}; repair that line, or delete it") from error

    def note(self, entry: Entry, state: str) -> None:
        """Write down a new state, and have it on disk."""
        if self.file is not None:
            values = asdict(entry) if state == "moving" else {"id": entry.id}
            time = datetime.now(timezone.utc).isoformat(timespec="seconds")
            line = json.dumps({**values, "state": state, "time": time}).encode() + b"\n"
            try:
                if self.file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if state in ("moving", "restoring"):  # the end of a move can be seen from the files
                    os.fsync(self.file.fileno())
            except OSError as error:
                raise OodAuditError(
                    f"cannot write to {printable(storable(self.root))}: {_reason(error)}; "
                    "finished work is kept, free some space and run the same command again"
                ) from error
        self.entries[entry.id], self.state[entry.id] = entry, state

    def place(self, entry: Entry) -> str:
        """The path in the quarantine."""
        return os.path.normpath(os.path.join(self.root, os.fsdecode(unquote_to_bytes(entry.place))))

    def inside(self) -> list[Entry]:
        """What is in the quarantine, oldest first."""
        return [entry for entry in self.entries.values() if self.state[entry.id] == "moved"]

    def settle(self) -> None:
        """End what a killed run has begun."""
        for entry in self.entries.values():
            state = self.state[entry.id]
            if state not in ("moving", "restoring"):
                continue
            origin, place = local_path(entry.uri), self.place(entry)
            ends = (origin, place) if state == "moving" else (place, origin)
            reached = settle(*ends, _temporary(ends[1], entry), dry_run=self.file is None)
            kept = "left" if state == "moving" else "moved"  # the same where somebody has taken the file away
            arrived = "moved" if state == "moving" else "restored"
            self.note(entry, arrived if reached == "target" else kept)
            if reached == "target":
                self.settled.add(entry.id)


class _Plan:
    """Decides what to do with one image after the other."""

    def __init__(
        self, root: str, journal: _Journal, kept: dict[str, list[str]], targets: Mapping[str, str | None]
    ) -> None:
        self._root = root
        self._targets = targets  # by image id, where to move it if not to a place in the quarantine
        self._inside = {entry.uri: entry for entry in journal.inside()}
        self._journal = journal
        self._kept = kept  # by content hash, images that are to stay
        self._keeps: dict[str, dict[str, str]] = defaultdict(dict)
        self._origins: dict[str, str] = {}
        self._places: set[str] = set()
        self._owners: dict[str, str] = {}  # the folder that each one in the quarantine is for
        for entry in self._inside.values():
            top, _, path = os.fsdecode(unquote_to_bytes(entry.place)).partition(os.sep)
            self._owners[top] = local_path(entry.uri).removesuffix(path)

    def step(self, image: Row) -> Entry | Outcome:
        """The move to make, or why there is none."""
        uri, digest = image["uri"], image["content_hash"]
        if not is_file(uri):
            what = "a member of an archive" if uri.startswith("file:") else "not on this machine"
            if image_and_box(uri)[1]:
                what = "a box of a picture"
            return _left(image, f"it is {what}; leave it out with `ood-audit export --format keep-list`")
        origin = local_path(uri)
        if uri != file_uri(origin):
            return _left(image, "it is no file of its own")
        entry = self._inside.get(uri)
        if entry and (entry.id in self._journal.settled or not os.path.lexists(origin)):
            place = self._journal.place(entry)
            if os.path.lexists(place):
                return _outcome("already-there", image, place)
        try:
            info = os.lstat(origin)
        except OSError:
            return _left(image, _gone(image["source"]))
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
            return _left(image, "not a regular file")
        if _changed(origin, image["size_bytes"], image["mtime_ns"], digest):
            return _left(image, "it changed since it was embedded; run `ood-audit embed`, then `ood-audit report`")
        exact = _unlinked(origin)
        if other := self._alias(digest, exact):
            return _left(image, f"an image to keep, {printable(other)}, is the same file by a link")
        if exact in self._origins:
            return _left(image, f"the same file as {printable(self._origins[exact])}, by a link")
        self._origins[exact] = origin
        target = self._targets.get(image["image_id"])
        if target is not None and os.path.lexists(target):
            return _left(image, f"{printable(storable(target))} is there already")
        place = os.path.relpath(target, self._root) if target else self._free(*_split(origin, image["path"]))
        facts = {name: image[name] for name in ("image_id", "content_hash", "kinds", "evidence", "suggestions")}
        return Entry(
            secrets.token_hex(8),
            uri=uri,
            place=quote_from_bytes(os.fsencode(place)),
            report=image["report"],
            **facts,
        )

    def _alias(self, digest: str | None, exact: str) -> str | None:
        """An image to keep that would be gone with the file `exact`. Its content is the same, so few are looked at."""
        if digest is not None and digest in self._kept:
            for other in map(local_path, filter(is_file, self._kept.pop(digest))):
                self._keeps[digest].update({_unlinked(other): other, os.path.realpath(other): other})
        return self._keeps[digest].get(exact) if digest in self._keeps else None

    def _free(self, base: str, path: str) -> str:
        """A place in the quarantine that nothing has, with `path` below a folder for `base`."""
        name = os.path.basename(base.rstrip(os.sep)) or "root"
        for number in count(1):
            top = name if number == 1 else f"{name}-{number}"
            place = os.path.join(top, path)
            if self._owners.get(top, base) == base and place not in self._places and _is_free(self._root, place):
                self._owners[top] = base
                self._places.add(place)
                return place
        raise AssertionError


def _do(journal: _Journal, entry: Entry, dry_run: bool) -> Outcome:
    image, place = asdict(entry), journal.place(entry)
    if dry_run:
        return _outcome("would-move", image, place)
    journal.note(entry, "moving")
    try:
        move(local_path(entry.uri), place, _temporary(place, entry))
    except OSError as error:
        journal.note(entry, "left")
        return _left(image, _reason(error))
    journal.note(entry, "moved")
    return _outcome("moved", image, place)


def _undo(journal: _Journal, entry: Entry, dry_run: bool) -> Outcome:
    image, origin, place = asdict(entry), local_path(entry.uri), journal.place(entry)
    if not os.path.lexists(place):
        return _left(image, "it is not in the quarantine any more", place)
    if os.path.lexists(origin):
        return _left(image, "another file has its place", place)
    if dry_run:
        return _outcome("would-restore", image, place)
    journal.note(entry, "restoring")
    try:
        move(place, origin, _temporary(origin, entry))
    except OSError as error:
        journal.note(entry, "moved")
        return _left(image, _reason(error), place)
    journal.note(entry, "restored")
    _remove_empty(os.path.dirname(place), journal.root)
    return _outcome("restored", image, place)


@contextmanager
def _opened(root: str, *, dry_run: bool) -> Iterator[_Journal]:
    """The journal of a quarantine, with a lock against a second run; what an earlier run left half done is ended."""
    from filelock import FileLock, Timeout

    path = os.path.join(root, JOURNAL)
    where = printable(storable(root))
    if dry_run:
        journal = _Journal(root, None)
        if os.path.exists(path):
            with open(path, "rb") as file:
                journal.read(_whole_lines(file.read()))
        journal.settle()
        yield journal
        return
    lock = FileLock(os.path.join(root, _LOCK))
    try:
        os.makedirs(root, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OodAuditError(f"another ood-audit is using {where}; wait for it to finish") from None
    except (OSError, NotImplementedError) as error:
        raise OodAuditError(f"cannot write to {where}: {getattr(error, 'strerror', None) or error}") from error
    try:
        with open(path, "ab+", buffering=0) as file:
            file.seek(0)
            content = file.read()
            journal = _Journal(root, file)
            journal.read(_whole_lines(content))
            file.truncate(len(_whole_lines(content)))  # a line half written: its move was not begun
            flush(root)
            flush(os.path.dirname(root))
            journal.settle()
            yield journal
    finally:
        lock.release()


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _check_place(root: str, store: Store, sources: list[str]) -> None:
    where, name = storable(root), printable(storable(root))
    if os.path.lexists(root) and not os.path.isdir(root):
        raise UsageError(f"{name} is a file; name a folder for the quarantine")
    if _is_below(where, os.path.realpath(store.root)):
        raise UsageError(f"{name} is inside the store; choose another folder")
    for source in sources:
        if _is_below(where, source):
            if not any(part.startswith(".") for part in where[len(source) :].split(os.sep)):
                raise UsageError(
                    f"{name} is in {printable(source)}, where `ood-audit embed` would find the images again; choose a "
                    f"folder outside of it, or one that it passes over, such as {printable(source)}/.quarantine"
                )
        elif _is_below(source, where):
            raise UsageError(f"{name} contains the embedded {printable(source)}; choose another folder")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _changed(path: str, size: int, mtime_ns: int, digest: str | None) -> bool:
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            return True
        if digest is None:  # it could not be opened then, so what says that it is the same is that it still can't be
            with open(path, "rb"):
                return True
        return (info.st_size, info.st_mtime_ns) != (size, mtime_ns) or content_hash(path) != digest
    except OSError:
        return digest is not None


def _split(origin: str, path: str) -> tuple[str, str]:
    """The folder that an image was found in, and its exact path in there; `path` is that as text."""
    parts = origin.split(os.sep)
    own = len(path.strip("/").split("/"))
    return os.sep.join(parts[:-own]) + os.sep, os.sep.join(parts[-own:])


def _unlinked(path: str) -> str:
    """The path with no link in it but, where it is one, the last part."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _is_free(root: str, place: str) -> bool:
    """Nothing has that name, and the folders above it are folders or not there yet."""
    folder, *parts = [root, *place.split(os.sep)]
    for part in parts[:-1]:
        folder = os.path.join(folder, part)
        if not os.path.lexists(folder):
            return True
        if os.path.islink(folder) or not os.path.isdir(folder):
            return False
    return not os.path.lexists(os.path.join(root, place))


def _remove_empty(folder: str, root: str) -> None:
    while _is_below(folder, root) and folder != root:
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)


def _temporary(target: str, entry: Entry) -> str:
    return os.path.join(os.path.dirname(target), f".ood-audit-{entry.id}.tmp")  # a dot: `embed` passes it over


def _outcome(outcome: str, image: Row, place: str, reason: str = "") -> Outcome:
    path = storable(location(image["uri"]))
    return Outcome(outcome, path, storable(place), ", ".join(image["kinds"]), reason, image["uri"])


def _gone(source: str) -> str:
    """Why an image whose file is gone is left, and what to do."""
    name = shlex.quote(printable(source))
    if state_of(source) in ("missing", "empty"):
        return f"its source {name} is gone; embed the place it moved to, or run `{forgetting(source)}`"
    return f"no such file any more; run `ood-audit embed {name}`, with the place it moved to if that is elsewhere"


def _left(image: Row, reason: str, place: str = "") -> Outcome:
    return _outcome("left", image, place, reason)


def _reason(error: OSError) -> str:
    if error.errno == errno.EEXIST:
        return "another file has its place"
    return (error.strerror or str(error)).lower()
