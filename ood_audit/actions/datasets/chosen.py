"""What of a store is written out: pictures with their labels, splits and boxes, without what is to be left out."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from ood_audit.actions.verdicts import acting
from ood_audit.classes.vocabulary import classes_of
from ood_audit.images.found import image_id
from ood_audit.images.uri import Box, box_uri, image_and_box
from ood_audit.store import Store, annotations
from ood_audit.store.views import limit_memory, registered
from ood_audit.values import RowValues

EVERY = "*"  # in place of a split
_TOGETHER = 1024
_WHOLE = "status = 'ok' AND NOT contains(uri, '#box=')"
_PICTURES = f"""
SELECT i.image_id, i.uri, i.path, i.source, i.folder, i.split, i.width, i.height, i.format, i.size_bytes, b.boxes
FROM (FROM images WHERE {_WHOLE}) AS i
SEMI JOIN chosen USING (image_id)
LEFT JOIN (SELECT image_id, list(DISTINCT [box_id, label, x::VARCHAR, y::VARCHAR, width::VARCHAR, height::VARCHAR])
           AS boxes FROM annotations GROUP BY image_id) AS b USING (image_id)
ORDER BY i.split NULLS FIRST, i.source, i.path, i.uri
"""
_FOUND = f"""
SELECT image_id FROM selected UNION
SELECT image_id FROM images WHERE {_WHOLE}
AND uri IN (SELECT regexp_extract(uri, '^(.*)#box=', 1) FROM selected WHERE contains(uri, '#box='))
"""
_KEPT = f"SELECT image_id FROM images WHERE {_WHOLE} AND image_id NOT IN (SELECT image_id FROM selected)"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the store, as a dataset describes it.

    Attributes:
        image_id: Its id.
        uri: Where it is.
        path: Its path relative to its source.
        source: The source that it was found in.
        split: Its split; None where that is unknown.
        label: Its class, as given or as a verdict corrected it; "" where it has none.
        width: In pixels, upright.
        height: The same.
        format: As Pillow calls it: JPEG, say.
        size_bytes: Of its file.
        boxes: Its objects that are written, each with its class or "".

    """

    image_id: str
    uri: str
    path: str
    source: str
    split: str | None
    label: str
    width: int
    height: int
    format: str
    size_bytes: int
    boxes: list[tuple[Box, str]] = field(default_factory=list)

    @property
    def own_label(self) -> str:
        """The label, where its boxes do not say it already."""
        return "" if any(label == self.label for _, label in self.boxes) else self.label


class Chosen:
    """The pictures of a store that are written out.

    What a verdict removed is left out, and labels are those that verdicts corrected. A found box leaves its picture
    where it is, and goes itself; a found picture goes with all of its boxes.

    Args:
        db: A connection to the store, with the table `selected`, see `records.selecting`.
        store: The store.
        keep: Whether what is `selected` is left out, in place of all else.
        everything: Whether all is written, and there is no such table.

    Attributes:
        relabelled: The ids of the images and boxes that got the label of a verdict, as far as they were asked for.
        left_out: How many boxes a format has left out, as they have no class.

    """

    def __init__(self, db: duckdb.DuckDBPyConnection, store: Store, *, keep: bool, everything: bool) -> None:
        limit_memory(db, store)
        if everything:
            db.execute("CREATE TABLE selected (image_id VARCHAR, uri VARCHAR)")
        self.store = store
        self.relabelled: set[str] = set()
        self.left_out = 0
        self._db = db
        self._keep = keep or everything
        self._selected = {one for (one,) in db.execute("SELECT DISTINCT image_id FROM selected").fetchall()}
        self._corrected = _verdicts(db, store)
        db.execute("CREATE TABLE removed (image_id VARCHAR)")
        for removed in (one for one, label in self._corrected.items() if label is None):
            db.execute("INSERT INTO removed VALUES (?)", [removed])
        wanted = _KEPT if self._keep else _FOUND
        db.execute(f"CREATE TABLE chosen AS SELECT * FROM ({wanted}) ANTI JOIN removed USING (image_id)")
        folders = [folder for (folder,) in db.execute("SELECT DISTINCT folder FROM images").fetchall()]
        self._described = {str(one["source"]) for one in annotations.described(store)}
        self._classes_of = classes_of(folders)[0]

    @property
    def splits(self) -> dict[str | None, int]:
        """How many pictures there are of each split."""
        sql = (
            f"SELECT split, count(*) FROM images SEMI JOIN chosen USING (image_id) WHERE {_WHOLE} GROUP BY 1 ORDER BY 1"
        )
        return dict(self._db.execute(sql).fetchall())

    @property
    def size_bytes(self) -> int:
        """How large the files of all pictures are together."""
        sql = f"SELECT sum(size_bytes)::BIGINT FROM images SEMI JOIN chosen USING (image_id) WHERE {_WHOLE}"
        return int(self._db.execute(sql).fetchall()[0][0] or 0)

    @property
    def sources(self) -> list[str]:
        """The sources of the pictures."""
        sql = f"SELECT DISTINCT source FROM images SEMI JOIN chosen USING (image_id) WHERE {_WHOLE} ORDER BY 1"
        return [source for (source,) in self._db.execute(sql).fetchall()]

    def classes(self) -> list[str]:
        """The names of the classes: those of the datasets in their order, then further ones by name."""
        known = dict.fromkeys(annotations.classes(self.store))
        labels: set[str] = set()
        for picture in self.pictures():
            labels.update([picture.label, *(label for _, label in picture.boxes)])
        return [*known, *sorted(labels - known.keys() - {""})]

    def pictures(self, split: str | None = EVERY) -> Iterator[Picture]:
        """The pictures, by split, source and path.

        Args:
            split: The one whose pictures are given; by default those of all.

        """
        rows = self._db.cursor().execute(_PICTURES)
        while some := rows.fetchmany(_TOGETHER):
            for one, uri, path, source, folder, part, *facts, boxes in some:
                if split != EVERY and part != split:
                    continue
                given = folder if source in self._described else self._classes_of.get(folder) or ""
                picture = Picture(one, uri, path, source, part, self.label(one, given), *facts)
                picture.boxes.extend(self._boxes(picture, boxes or []))
                yield picture

    def image_ids(self) -> set[str]:
        """The ids of the images, pictures and boxes alike, of a selection that takes each for itself."""
        sql = "SELECT image_id, uri FROM images ANTI JOIN removed USING (image_id) WHERE status = 'ok'"
        gone = {one for one, label in self._corrected.items() if label is None}
        rows = self._db.execute(sql).fetchall()
        every = {one for one, uri in rows if "#box=" not in uri or image_id(image_and_box(uri)[0]) not in gone}
        return every - self._selected if self._keep else every & self._selected

    def rows(self, ids: list[str], sql: str, many: int) -> Iterator[list[RowValues]]:
        """A query's answer about some images, so many at a time; it reads the table `rows` of image_id and row."""
        table = pa.table({"image_id": pa.array(ids, pa.string()), "row": pa.array(range(len(ids)), pa.int64())})
        with registered(self._db, rows=table):
            answer = self._db.execute(sql)
            while some := answer.fetchmany(many):
                yield some

    def label(self, one: str, given: str) -> str:
        """The label of an image or box: that of a verdict, or else the given one."""
        label = self._corrected.get(one) or given
        if label != given:
            self.relabelled.add(one)
        return label

    def _boxes(self, picture: Picture, boxes: list[list[str]]) -> Iterator[tuple[Box, str]]:
        is_found = picture.image_id in self._selected
        for name, label, *place in sorted(boxes, key=lambda box: (len(box[0]), box)):
            box = Box(name, *map(float, place))
            one = image_id(box_uri(picture.uri, box))
            if one in self._corrected and self._corrected[one] is None:
                continue
            if (one not in self._selected) if self._keep else (is_found or one in self._selected):
                yield box, self.label(one, label or "")


def _verdicts(db: duckdb.DuckDBPyConnection, store: Store) -> dict[str, str | None]:
    """By the id of an image what was decided: its right class, or None where it is removed.

    A class is that of all images with the same bytes. Of these only the one that was named is removed.
    """
    verdicts = acting(store)
    hashes = list({verdict.content_hash for verdict in verdicts})
    same: dict[str, list[str]] = {}
    sql = "SELECT content_hash, image_id FROM images WHERE content_hash IN (SELECT unnest(?::VARCHAR[]))"
    for content, one in db.execute(sql, [hashes]).fetchall():
        same.setdefault(content, []).append(one)
    found: dict[str, str | None] = {}
    for verdict in verdicts:
        if verdict.decision != "remove":
            found |= dict.fromkeys(same.get(verdict.content_hash, []), verdict.label)
    for verdict in verdicts:  # whatever was said of a copy, before or afterwards
        if verdict.decision == "remove" and verdict.image_id in same.get(verdict.content_hash, []):
            found[verdict.image_id] = None
    return found
