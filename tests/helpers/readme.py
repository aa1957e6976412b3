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
    """Draw a page in an installed Chromium: its first pictures, its dialog, and it on a phone, as `picture`,
    `…-dialog.png` and `…-phone.png`. Without a Chromium the old drawings stay.
    """
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        print(f"no Chromium is installed: {picture} is as it was")
        return
    drawings = [  # the size of the window, its pixels a dot, and the keys that are pressed
        ("", (960, 1215), 1, []),
        ("-dialog", (1280, 900), 1, ["n", "n", "n", " "]),
        ("-phone", (390, 844), 1.5, []),
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height), scale, keys in drawings:
            window = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme="light"
            )
            window.goto(page.as_uri())
            for key in keys:
                window.keyboard.press(key)
            drawn = picture.with_stem(picture.stem + name)
            window.screenshot(path=drawn)
            window.close()
            with Image.open(drawn) as image:
                small = image.convert("RGB").quantize(256)
            small.save(drawn, optimize=True)
        browser.close()


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
