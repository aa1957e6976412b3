"""The generated parts of the documents: what the commands print. `make docs` writes them, test_readme.py compares them.

A part lies between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
"""

import re
import tempfile
from pathlib import Path

from ood_audit.cli import COMMANDS
from tests.conftest import ROOT, run_cli

README = ROOT / "README.md"
CLI = ROOT / "docs" / "cli.md"
QUERY = (
    "SELECT label, count(*) AS images, max(ood_score) AS worst FROM report GROUP BY label ORDER BY worst DESC LIMIT 3"
)


def audit() -> dict[str, str]:
    """The first screen's commands, run in a fresh folder with the examples in it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        commands = {
            "embed": ["embed", "examples/images"],
            "report": ["report", "--labels", "examples/classes.txt", "--top", "8"],
            "query": ["query", QUERY],
            "unreadable": ["query", "SELECT path, error FROM images WHERE status = 'error'"],
        }
        return {name: _shown(command, Path(folder)) for name, command in commands.items()}


def reference() -> str:
    """`--help` of every command."""
    texts = []
    for command in ([], *([name] for name in COMMANDS), ["labels", "suggest"]):
        done = run_cli(*command, "--help", COLUMNS="100")
        texts.append(f"```text\n$ {' '.join(['ood-audit', *command, '--help'])}\n{done.stdout.strip()}\n```")
    return "\n\n".join(texts)


def _shown(command: list[str], folder: Path) -> str:
    done = run_cli(*command, cwd=folder, OOD_AUDIT_REPORT_AUTO="1")
    assert done.returncode == 0, done.stderr
    typed = " ".join(f'"{word}"' if " " in word else word for word in command)
    return f"```text\n$ ood-audit {typed}\n{done.stdout.rstrip()}\n{done.stderr.rstrip()}\n```".replace(
        "\n\n```", "\n```"
    )


def replaced(text: str, new: dict[str, str]) -> str:
    """`text` with its generated parts as in `new`."""
    for name, content in new.items():
        pattern = rf"(<!-- begin: {name} -->\n).*?(\n<!-- end: {name} -->)"
        parts = re.split(pattern, text, flags=re.DOTALL)
        assert len(parts) == 4, f"there is no part {name}"
        text = "".join([parts[0], parts[1], content, parts[2], parts[3]])
    return text


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(), audit()))
    CLI.write_text(replaced(CLI.read_text(), {"help": reference()}))
