"""How fast the report's page is with 5,000 pictures, in an installed Chromium without a screen.

    python -m benchmarks.page FOLDER [--pictures 5000] [--times 3]

The pictures are those of FOLDER, over and over, as small as a page of so many makes them; what is said about them is
made up. Loading lasts from the request until the page can be used and its first frame is drawn. Each sort and filter
lasts from the event until its frame is drawn; the first one, which has to make the order, is measured by itself. Each
figure is the median of `--times` fresh loads.
"""

import argparse
import shutil
import statistics
import tempfile
from dataclasses import replace
from hashlib import blake2b
from itertools import cycle, islice
from pathlib import Path
from typing import Any, get_args

from playwright.sync_api import Browser, sync_playwright

from ood_audit.reports.html import render
from ood_audit.reports.model import Finding, Group, Image, Kind, Page, Point, Scored, Section
from ood_audit.reports.thumbnails import sprites, thumbnails

CLASSES = [f"class {k}" for k in range(40)]
LIMITS = {"file, MB": 25.0, "load, ms": 2000.0}
FRAME = 100.0  # ms, for a sort or a filter
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

ACTIONS = {
    "first sort by severity": ("sort", "severity"),
    "sort by class": ("sort", "class"),
    "sort by folder": ("sort", "folder"),
    "back to groups": ("sort", "group"),
    "sort by class again": ("sort", "class"),
    "filter by class": ("nearest", "3"),
    "no filter": ("nearest", ""),
    "search": ("text", "folder 7"),
}
MEASURE = """([name, value]) => new Promise((done) => {
    const field = document.getElementById("tools").elements[name];
    const started = performance.now();
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
})"""
LOADED = """() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"""


def finding(i: int, kind: Kind, count: int) -> Finding:
    """The i-th of the findings."""

    def image(j: int) -> Image:
        digest = blake2b(str(j).encode(), digest_size=16).hexdigest()
        path = f"folder {j % 50}/picture {j:06}.jpg"
        return Image(digest, f"file:///data/set/{path.replace(' ', '%20')}", path, digest, 640, 480, 54_321)

    label, given = CLASSES[i % 40], CLASSES[i * 7 % 40]
    bars = [(CLASSES[(i + k) % 40], 0.3 - k / 50) for k in range(5)] + [(given, 0.01)]
    own = Scored(
        i + 1, i / count, -i / count, 3.1, 0.25, label, CLASSES[(i + 1) % 40], 0.01, given, 1 / 241, 0.02, bars,
        [image((i + k) % count) for k in range(1, 7)],
    )  # fmt: skip
    looks_like = f"thing {i % 60}" if kind == "ood" else None
    twin = image((i + 1) % count) if "duplicate" in kind else None
    return Finding(kind, image(i), 1 - i / count, own, looks_like, (0.9, 0.01) if kind == "label" else None, None, twin)


def page(folder: Path, count: int) -> Page:
    """A page of so many findings, the same number of each kind."""
    kinds = get_args(Kind)
    found = [finding(i, kinds[i % len(kinds)], count) for i in range(count)]
    files = [path.as_uri() for path in sorted(folder.rglob("*.jpg"))]
    if not files:
        raise SystemExit(f"{folder} has no JPEGs")
    few = list(islice(cycle(files), count))
    sections = []
    for kind in kinds:
        own = [one for one in found if one.kind == kind]
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for one in own:
            groups.setdefault((one.looks_like,) if one.looks_like else (), []).append(one)
        sections.append(Section(kind, len(own), [Group(name, len(some), some) for name, some in groups.items()]))
    points = [
        Point(f"p{k}", k % 60 / 60, k / 3000, "not flagged", CLASSES[k % 40], k + 1, f"file:///{k}")
        for k in range(3000)
    ]
    drawn = sprites(list(islice(cycle(files), len(points))))
    return Page(
        name="latest",
        title=folder.resolve().name,
        created="2025-01-01T00:00:00+00:00",
        store="/data/.ood-audit",
        doubt="",
        scored=count * 10,
        calibration=240,
        calibrated_by="labelled images",
        sections=sections,
        unreadable=[],
        unreadable_count=0,
        classes=CLASSES,
        pictures=dict(zip((one.image.uri for one in found), thumbnails(few), strict=True)),
        points=points,
        sprites=drawn and replace(drawn, uris=[point.uri for point in points]),
    )


def measure(browser: Browser, address: str) -> dict[str, float]:
    """Load the page afresh, and do all that is measured."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    shown = context.new_page()
    shown.goto(address)
    figures: dict[str, Any] = {"load, ms": shown.evaluate(LOADED)}
    for name, action in ACTIONS.items():
        shown.wait_for_timeout(300)
        figures[f"{name}, ms"] = shown.evaluate(MEASURE, action)
    context.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    executable = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(render(page(given.folder, given.pictures)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        runs = [measure(browser, file.as_uri()) for _ in range(given.times)]
        browser.close()
        figures = {"file, MB": file.stat().st_size / 1e6}
    figures |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(f"{'':28} {'figure':>8}  held to")
    for name, figure in figures.items():
        print(f"{name:28} {figure:8.1f}  {LIMITS.get(name, FRAME):.0f}")


if __name__ == "__main__":
    main()
