"""The report as one HTML file: opens from disk, asks nothing of the network, readable without JavaScript."""

import base64
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from ood_audit import __version__
from ood_audit.text import printable

_PLOT_TOP, _PLOT_BOTTOM = 24, 164  # pixels; the label of the cut stands above


@dataclass(frozen=True)
class Page:
    """What the report shows.

    Attributes:
        title: the name of the report.
        created: ISO time.
        facts: (term, value), shown in the header.
        rows: the listed images, most OOD first. Each: rank, path, folder, uri (`file:///…`), ood_score, delta_energy,
            energy, max_cosine, label, label_2 (or None), margin (or None), width, height, and thumbnail: WebP bytes,
            or None when the file is gone.
        histogram: (low, high, count) of `ood_score`, over all images.
        cut: `ood_score` of the last listed image.
        scored: the number of all images that have a score.
        unreadable: (path, error), the first of them.
        unreadable_count: how many there are in all.

    """

    title: str
    created: str
    facts: list[tuple[str, str]]
    rows: list[dict[str, Any]]
    histogram: list[tuple[float, float, int]]
    cut: float | None
    scored: int
    unreadable: list[tuple[str, str]]
    unreadable_count: int


def render(page: Page) -> str:
    """The page as HTML, to be written as UTF-8.

    Names come from files and are hostile: everything that is shown is escaped, on one line, with its control and
    bidirectional characters made visible; only `data-path`, which is what gets copied, holds the exact path.
    """
    counts = Counter(str(row["label"]) for row in page.rows)
    order = {label: i for i, label in enumerate(sorted(counts, key=lambda label: (label.casefold(), label)))}
    return _template().render(
        page=page,
        order=order,
        classes=[(order[label], label, count) for label, count in counts.most_common()],
        chart=_chart(page) if page.histogram else None,
        version=__version__,
    )


def number(value: float) -> str:
    """Four significant digits, with a minus sign that is as wide as a digit: `−0.01235`, `1.235e−07`."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    mantissa, exponent = f"{value:.3e}".split("e")
    decimals = 3 - int(exponent)
    text = f"{value:.{max(decimals, 0)}f}" if -1 <= decimals <= 7 else f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


@cache
def _template() -> Template:
    # Every value that the template prints passes `finalize`; what `exact` marks as safe is left as it is.
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"number": number, "exact": _exact, "base64": _base64, "sha256": _sha256}
    return environment.from_string(files("ood_audit.reports").joinpath("report.html.j2").read_text("utf-8"))


def _exact(text: str) -> Markup:
    """For attributes: HTML parsers, and writers of text files, change line ends that are not escaped."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\n", "&#10;"))  # noqa: S704


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _sha256(text: str) -> str:
    return _base64(hashlib.sha256(text.encode()).digest())


def _chart(page: Page) -> dict[str, Any]:
    """The geometry of the histogram: x in percent, so that only the bars grow with the page; y in pixels."""
    low, high = page.histogram[0][0], page.histogram[-1][1]
    pad = 0.0 if high > low else 0.05 * abs(low) or 0.05  # all scores are the same: a bar needs a width
    low, high = low - pad, high + pad
    most = max(1, *(count for _, _, count in page.histogram))

    def x(score: float) -> float:
        return min(max(100 * (score - low) / (high - low), 0.0), 100.0)

    def y(count: float) -> float:
        return _PLOT_BOTTOM - (_PLOT_BOTTOM - _PLOT_TOP) * count / most

    bars = []
    for start, end, count in page.histogram:
        left, right = x(start - pad), x(end + pad)
        top = min(y(count), _PLOT_BOTTOM - 2)  # one image of a million is still seen
        if count:
            title = f"{number(start)} to {number(end)}: {count:,} {'image' if count == 1 else 'images'}"
            bars.append((f"{left:.3f}", f"{right - left:.3f}", f"{top:.1f}", f"{_PLOT_BOTTOM - top:.1f}", title))
    cut = None if page.cut is None else x(page.cut)
    return {
        "bars": bars,
        "x_ticks": [(f"{x(value):.3f}", label) for value, label in _ticks(low, high, 5)],
        "y_ticks": [(f"{y(value):.1f}", label) for value, label in _ticks(0, most, 3, smallest=0)],
        "top": _PLOT_TOP,
        "bottom": _PLOT_BOTTOM,
        "cut": None if cut is None else f"{cut:.3f}",
        "listed_width": "0" if cut is None else f"{100 - cut:.3f}",
        "cut_on_right": cut is not None and cut > 50,
        "low": page.histogram[0][0],
        "high": page.histogram[-1][1],
    }


def _ticks(low: float, high: float, most: int, smallest: int = -300) -> list[tuple[float, str]]:
    """At most about `most` round values from low to high; `smallest` is the least power of ten of their step."""
    power = max(math.floor(math.log10((high - low) / most)), smallest)
    factor = next((f for f in (1, 2, 5) if (high - low) / (f * 10.0**power) <= most), 10)
    if factor == 10:
        power, factor = power + 1, 1
    step = factor * 10.0**power
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:,.{max(-power, 0)}f}".replace("-", "−")) for value in values]
