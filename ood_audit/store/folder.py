"""The folder of a store: where things lie in it, and what was last used."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ood_audit.errors import StoreError
from ood_audit.store.files import read_json, write_json
from ood_audit.text import printable
from ood_audit.values import JsonObject


@dataclass(frozen=True)
class StoreFolder:
    """Where things lie in a store. See docs/store.md for its layout."""

    root: Path

    @property
    def images(self) -> Path:
        """Parquet parts, with a row for each image."""
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        """What datasets say: for each source a JSON with its classes, and a Parquet file with its boxes."""
        return self.root / "annotations"

    @property
    def runs(self) -> Path:
        """A JSON file for each run of `embed`."""
        return self.root / "runs"

    @property
    def index(self) -> Path:
        """The FAISS index."""
        return self.root / "index" / "features.faiss"

    @property
    def vocabularies(self) -> Path:
        """Class names and their text features."""
        return self.root / "vocabularies"

    def imported_texts(self, what: Literal["classes", "background"]) -> Path:
        """The text features that were imported for the classes, or for the background names."""
        return self.root / "texts" / f"{what}.parquet"

    @property
    def prompts(self) -> Path:
        """Tuned prompts."""
        return self.root / "prompts"

    @property
    def scores(self) -> Path:
        """A Parquet file for each run of a score."""
        return self.root / "scores"

    @property
    def reports(self) -> Path:
        """A folder for each report."""
        return self.root / "reports"

    @property
    def parts(self) -> list[Path]:
        """The complete parts in force, oldest first: those that `compact` has merged into another are not."""
        found: list[Path] = []
        covered = 0
        files = ((span(path), path) for path in self.images.glob("part-*.parquet"))
        for (_, last), path in sorted(files, key=lambda file: (file[0][0], -file[0][1], -len(file[1].name))):
            if last > covered:
                found.append(path)
                covered = last
        return found

    @property
    def generation(self) -> int:
        """The number of the newest part, 0 for none; it grows with every change of the images."""
        parts = self.parts
        return span(parts[-1])[1] if parts else 0

    @property
    def next_part(self) -> int:
        """The number for a new part: above all that an index or scores were made from, even if those are deleted."""
        made_from = [self.generation]
        for path in (self.index.with_name("index.json"), *self.scores.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                made_from.append(int(json.loads(path.read_bytes())["generation"]))
        return max(made_from) + 1

    def current(self) -> JsonObject:
        """What later commands take up: the ids of the last used `vocabulary`, `scores` and `report`."""
        path = self.root / "current.json"
        return read_json(path) if path.exists() else {}

    def set_current(self, **ids: str) -> None:
        """Change what `current` gives."""
        write_json(self.root / "current.json", {**self.current(), **ids})

    def classes(self, current: JsonObject | None = None) -> list[list[str]]:
        """The classes last used, or those of a `current` vocabulary: of each its name, and then its synonyms."""
        path = self.vocabularies / f"{(current or self.current()).get('vocabulary')}.json"
        classes: list[list[str]] = read_json(path).get("classes", []) if path.exists() else []
        return classes

    @property
    def current_report(self) -> str:
        """The name of the report whose findings are the view `findings`."""
        return str(self.current().get("report", "latest"))


def span(part: Path) -> tuple[int, int]:
    """The numbers of the parts that a file holds: of `part-00000003.parquet` 3 and 3, of `part-00000001-00000007` 1, 7.

    Raises:
        StoreError: the file has another name.

    """
    if (match := re.fullmatch(r"part-(\d{8,})(?:-(\d{8,}))?\.parquet", part.name)) is None:
        raise StoreError(f"{printable(str(part))} is not a part of a store; move it elsewhere")
    return int(match[1]), int(match[2] or match[1])
