"""The report as one HTML file: opens from disk, asks nothing of the network, readable without JavaScript.

This module renders what it is given, and knows no store. What a card shows is in the document, so that it is there
without JavaScript; what only the dialog and the map show is in a block of JSON.
"""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from ood_audit._version import __version__
from ood_audit.reports import cards, charts
from ood_audit.reports.model import Page, Sprites
from ood_audit.reports.paging import file_name
from ood_audit.text import printable
from ood_audit.values import JsonObject


def render(page: Page) -> str:
    """The page as HTML, to be written as UTF-8; with thumbnails by `thumbnails.thumbnails`, below 25 MB.

    Names come from files and are hostile: everything that is shown is escaped, on one line, with its control and
    bidirectional characters made visible; only `data-path`, which is what gets copied and saved, holds the exact path.
    """
    pictures = cards.Pictures(page.pictures)
    contents = cards.contents(page, pictures)
    flagged = any(part.kind == "ood" for part in contents.parts)
    points = charts.points(page, contents.first)
    data = {
        "report": hashlib.sha256(f"{page.store}/{page.name}".encode(errors="replace")).hexdigest()[:16],
        "made": page.created,
        "pages": page.pages,
        "beside": "" if page.calibration is None else "unusual",  # the kind that need not be reviewed
        "records": contents.records,
        "orders": contents.orders,
        "classes": [printable(name) for name in page.classes],
        "typical": contents.typical,
        "pictures": pictures.extra,
        "kinds": charts.MAP_KINDS,
        "levels": list(charts.MAP_LEVELS),
        "points": points,
        "sprites": _sprites(page.sprites),
    }
    return template("report.html.j2").render(
        page=page,
        parts=contents.parts,
        filters=contents.filters,
        chart=charts.histogram(page.histogram, page.cut, "flagged" if flagged else "listed")
        if page.histogram
        else None,
        map=charts.scatter(points) if points else None,
        left_out=pictures.left_out,
        pages=[(number, file_name(number)) for number in range(1, page.pages + 1)],
        data=_json(data),
        style=Markup(resource("report.css")),  # noqa: S704
        script=Markup(resource("report.js")),  # noqa: S704
        version=__version__,
    )


def _sprites(sprites: Sprites | None) -> JsonObject | None:
    if sprites is None:
        return None
    return {"picture": cards.data_url(sprites.picture), "size": sprites.size, "columns": sprites.columns}


@cache
def template(name: str) -> Template:
    """A template of this package, in which every value is escaped and on one line."""
    # Every value that the template prints passes `finalize`; what is marked as safe is left as it is.
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"exact": _exact, "sha256": _sha256, "count": "{:,}".format}
    return environment.from_string(resource(name))


def resource(name: str) -> str:
    """The text of a file beside the templates."""
    return files("ood_audit.reports").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _exact(text: str) -> Markup:
    """For attributes: HTML parsers, and writers of text files, change line ends that are not escaped."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\n", "&#10;"))  # noqa: S704


def _json(value: object) -> Markup:
    """JSON for inside of a script element: ASCII, without the characters that could end it or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))  # noqa: S704


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
