"""What a store holds in numbers, kept in `totals.json`, so that who asks needs no DuckDB and reads no part.

The file says of which parts it is. Where those are no longer the ones in force, as after a kill, the images are
counted; what changes the images writes it anew.
"""

import json
from dataclasses import asdict, dataclass

from ood_audit.store.files import read_json, write_json
from ood_audit.store.store import Store

_FILE = "totals.json"


@dataclass(frozen=True, slots=True)
class Total:
    """What there is of a source.

    Attributes:
        source: its name in the store.
        images: how many readable images.
        unreadable: how many images that could not be read.
        size_bytes: of all of them.

    """

    source: str
    images: int
    unreadable: int
    size_bytes: int


def totals(store: Store) -> list[Total]:
    """The totals of the images, by source in the order of names."""
    kept = _kept(store)
    return _counted(store) if kept is None else kept


def keep(store: Store) -> None:
    """Write the totals of the parts in force. The caller holds the lock of the images."""
    if _kept(store) is None:
        write_json(store.root / _FILE, {"parts": _parts(store), "totals": list(map(asdict, _counted(store)))})


def scored(store: Store) -> int:
    """How many images the scores that were last used are of."""
    key = store.current().get("scores")
    if key is None or not (store.scores / f"{key}.json").exists():
        return 0
    images = read_json(store.scores / f"{key}.json").get("images")
    if images is None:  # scores of 0.1.0
        ((images,),) = store.query("SELECT count(*) FROM scores").rows
    return int(images)


def _kept(store: Store) -> list[Total] | None:
    try:
        values = json.loads((store.root / _FILE).read_bytes())
        return [Total(**total) for total in values["totals"]] if values["parts"] == _parts(store) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parts(store: Store) -> dict[str, int]:
    """What tells one state of the images from another: the parts in force by name, with their sizes."""
    return {part.name: part.stat().st_size for part in store.parts}


def _counted(store: Store) -> list[Total]:
    from ood_audit.store.views import connect

    with connect(store, reports=False) as db:
        rows = db.execute(
            "SELECT source, count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'error'), "
            "coalesce(sum(size_bytes), 0)::BIGINT FROM images GROUP BY source ORDER BY source"
        ).fetchall()
    return [Total(*row) for row in rows]
