"""The generated parts of the documents: what the commands print. `make docs` writes them, test_readme.py compares them.

A part lies between `<!-- begin: NAME -->` and `<!-- end: NAME -->`, in the README or in a page of docs/.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ood_audit.cli import COMMANDS
from tests.conftest import ROOT, run_cli
from tests.reports.test_page import CHROMIUM

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
CLI = ROOT / "docs" / "cli.md"
PICTURE = ROOT / "docs" / "report.png"
QUERY = (
    "SELECT label, count(*) AS images, max(ood_score) AS worst FROM report GROUP BY label ORDER BY worst DESC LIMIT 3"
)
COLUMNS = (
    "SELECT table_name AS view, string_agg(column_name, ', ' ORDER BY ordinal_position) AS columns "
    "FROM information_schema.columns WHERE table_name NOT LIKE '\\_%' ESCAPE '\\' GROUP BY 1 ORDER BY 1"
)
SHOWN = {  # run in this order, in one folder with the examples in it
    "run": ["run", "examples/images", "--labels", "examples/classes.txt"],
    "query": ["query", QUERY],
    "unreadable": ["query", "SELECT path, error FROM images WHERE status = 'error'"],
    "labels-add": ["labels", "add", "examples/labelled.csv"],
    "flags": ["report", "--false-alarms", "0.05", "--top", "3"],
}


def audit(picture: Path | None = None) -> dict[str, str]:
    """The outputs of the commands in `SHOWN`, and the views; `picture` is where to draw the page of the report."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        shown = {}
        for name, command in SHOWN.items():
            shown[name] = _shown(command, Path(folder))
            if name == "run" and picture is not None:
                draw(Path(folder) / ".ood-audit" / "reports" / "latest" / "report.html", picture)
        columns = run_cli("query", COLUMNS, "--format", "csv", cwd=Path(folder)).stdout.splitlines()[1:]
        rows = [re.match(r'(\w+),"?(.*?)"?$', line) for line in columns]
        shown["views"] = "| view | columns |\n|---|---|\n" + "\n".join(
            f"| `{row[1]}` | {row[2]} |" for row in rows if row
        )
        return shown


def reference() -> str:
    """`--help` of every command."""
    subcommands = [["labels", name] for name in ("add", "list", "remove", "suggest")]
    texts = []
    for command in ([], *([name] for name in COMMANDS), *subcommands):
        done = run_cli(*command, "--help", COLUMNS="100")
        texts.append(f"```text\n$ {' '.join(['ood-audit', *command, '--help'])}\n{done.stdout.strip()}\n```")
    return "\n\n".join(texts)


def _shown(command: list[str], folder: Path) -> str:
    done = run_cli(*command, cwd=folder, OOD_AUDIT_REPORT_AUTO="1")
    assert done.returncode == 0, done.stderr
    typed = " ".join(f'"{word}"' if " " in word else word for word in command)
    printed = "\n".join(text for text in (done.stdout.rstrip(), done.stderr.rstrip()) if text)
    return f"```text\n$ ood-audit {typed}\n{printed}\n```"


def draw(page: Path, picture: Path) -> None:
    """Draw the figures and the first pictures of a page in an installed Chromium; without one the old drawing stays."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        print(f"no Chromium is installed: {picture} is as it was")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        window = browser.new_page(viewport={"width": 960, "height": 1215}, color_scheme="light", bypass_csp=True)
        window.goto(page.as_uri())
        window.add_style_tag(content="section:has(#next), section:has(#map-title) { display: none }")
        window.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as drawn:
        small = drawn.convert("RGB").quantize(256)
    small.save(picture, optimize=True)


def parts(text: str) -> list[str]:
    """The names of the generated parts of a page."""
    return re.findall(r"<!-- begin: ([\w-]+) -->", text)


def replaced(text: str, new: dict[str, str]) -> str:
    """`text` with those of its generated parts that are in `new` as they are there."""

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}{new.get(match[2], match[3].rstrip())}\n{match[4]}"

    return re.sub(r"(<!-- begin: ([\w-]+) -->\n)(.*?)(<!-- end: \2 -->)", part, text, flags=re.DOTALL)


def write(pages: list[Path], make: Callable[[], dict[str, str]]) -> None:
    """Write the generated parts into pages."""
    new = make()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if (fresh := replaced(text, new)) != text:
            page.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    write(PAGES, lambda: audit(PICTURE))
    write([CLI], lambda: {"help": reference()})
