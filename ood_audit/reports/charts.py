"""The geometry of the page's charts: the histogram of the scores, and the map of the images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from ood_audit.reports.model import Page

_PLOT_TOP, _PLOT_BOTTOM = 24, 164  # pixels; the label of the cut stands above
_MAP_WIDTH, _MAP_HEIGHT = 600, 400  # in units of the map's own
_MAP_MARGIN = 14
MAP_KINDS = ("not flagged", "other finding", "flagged")  # drawn in this order
MAP_LEVELS = {  # up to these shares of the images
    "the most unusual 1%": 0.01,
    "the next 4%": 0.05,
    "the next 15%": 0.2,
    "all others": 1.0,
}

# x, y, the places in MAP_KINDS and in MAP_LEVELS, and the numbers of the record, the class and the small picture, each
# -1 for none.
Point = tuple[float, float, int, int, int, int, int]


class Histogram(TypedDict):
    """What the template draws: x in percent, y in pixels, both as text."""

    bars: list[tuple[str, str, str, str, str]]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    top: int
    bottom: int
    cuts: list[dict[str, str | int]]
    range: str


class Scatter(TypedDict):
    """The map as the template draws it: its size, how many images it has, and a path for each kind of them."""

    width: int
    height: int
    count: int
    kinds: list[dict[str, str | int]]


def number(value: float) -> str:
    """Four significant digits, with a minus sign that is as wide as a digit: `−0.01235`, `1.235e−07`."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    mantissa, exponent = f"{value:.3e}".split("e")
    decimals = 3 - int(exponent)
    text = f"{value:.{max(decimals, 0)}f}" if -1 <= decimals <= 7 else f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def histogram(bins: Sequence[tuple[float, float, int]], cut_at: float | None, what: str) -> Histogram:
    """The histogram of (low, high, count): x in percent, so that only the bars grow with the page; y in pixels.

    What is at `cut_at` and above it is `what`: flagged, or listed.
    """
    low, high = bins[0][0], bins[-1][1]
    pad = 0.0 if high > low else 0.05 * abs(low) or 0.05  # all scores are the same: a bar needs a width
    low, high = low - pad, high + pad
    most = max(1, *(count for _, _, count in bins))

    def x(score: float) -> float:
        return min(max(100 * (score - low) / (high - low), 0.0), 100.0)

    def y(count: float) -> float:
        return _PLOT_BOTTOM - (_PLOT_BOTTOM - _PLOT_TOP) * count / most

    bars = []
    for start, end, count in bins:
        left, right = x(start - pad), x(end + pad)
        top = min(y(count), _PLOT_BOTTOM - 2)  # one image of a million is still seen
        if count:
            title = f"{number(start)} to {number(end)}: {count:,} {'image' if count == 1 else 'images'}"
            bars.append((f"{left:.3f}", f"{right - left:.3f}", f"{top:.1f}", f"{_PLOT_BOTTOM - top:.1f}", title))
    cut = x(high if cut_at is None else cut_at)
    text = "" if cut_at is None else f"{what}: {number(cut_at)} and above"
    drawn = {
        "x": f"{cut:.3f}",
        "width": f"{100 - cut:.3f}",
        "dx": -8 if cut > 50 else 8,
        "anchor": "end" if cut > 50 else "start",
        "text": text,
    }
    return {
        "bars": bars,
        "x_ticks": [(f"{x(value):.3f}", label) for value, label in _ticks(low, high, 5)],
        "y_ticks": [(f"{y(value):.1f}", label) for value, label in _ticks(0, most, 3, smallest=0)],
        "top": _PLOT_TOP,
        "bottom": _PLOT_BOTTOM,
        "cuts": [drawn] if text else [],
        "range": f"from {number(bins[0][0])} to {number(bins[-1][1])}" + (f"; {text}" if text else ""),
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


def points(page: Page, records: Mapping[str, int]) -> list[Point]:
    """The points of the map in its own units, in the order in which they are drawn.

    Args:
        page: The page.
        records: By image id, the number of its record.

    """
    number_of = {name: k for k, name in enumerate(page.classes)}
    tiles = {uri: i for i, uri in enumerate(page.sprites.uris)} if page.sprites else {}

    def place(value: float, length: int) -> float:
        return round(_MAP_MARGIN + (length - 2 * _MAP_MARGIN) * min(max(float(value), 0.0), 1.0), 1)

    return [
        (
            place(point.x, _MAP_WIDTH),
            place(point.y, _MAP_HEIGHT),
            MAP_KINDS.index(point.kind),
            _level((point.rank - 1) / max(page.scored, 1)),
            records.get(point.image_id, -1),
            number_of.get(point.label or "", -1),
            tiles.get(point.uri, -1),
        )
        for point in page.points
        if math.isfinite(point.x) and math.isfinite(point.y)
    ]


def _level(share: float) -> int:
    return next((i for i, most in enumerate(MAP_LEVELS.values()) if share < most), len(MAP_LEVELS) - 1)


def scatter(points: Sequence[Point]) -> Scatter:
    """The map: one path a kind. Dots and squares are strokes of no length, with round and square ends."""
    marks: list[Callable[[float, float], str]] = [
        lambda x, y: f"M{x:g} {y:g}h0",
        lambda x, y: f"M{x:g} {y:g}h0",
        lambda x, y: f"M{x:g} {y - 5.5:g}l5 9h-10z",
    ]
    kinds = [
        {
            "name": name,
            "slug": name.replace(" ", "-"),
            "sign": "M8 3l5 9h-10z" if name == "flagged" else "M8 8h0",
            "count": sum(point[2] == i for point in points),
            "path": "".join(marks[i](x, y) for x, y, kind, *_ in points if kind == i),
        }
        for i, name in enumerate(MAP_KINDS)
    ]
    return {
        "width": _MAP_WIDTH,
        "height": _MAP_HEIGHT,
        "count": len(points),
        "kinds": [kind for kind in kinds if kind["count"]],
    }
