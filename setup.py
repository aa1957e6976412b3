"""Make the long description: the README with the names of files in place of links to them.

A package index shows the README without the files beside it.
"""

import re
from pathlib import Path

from setuptools import setup


def long_description(readme: str) -> str:
    """Turn the links to files of the repository into text; pictures of it go. Links to the web and in the page stay."""
    local = r"\((?!https?://|#)([^)\s]+)\)"
    readme = re.sub(rf"!\[[^\]]*\]{local}\n*", "", readme)
    return re.sub(rf"\[([^\]]+)\]{local}", _named, readme)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2].partition("#")[0]
    return f"`{path}`" if text == path else f"{text} (`{path}`)"


if __name__ == "__main__":
    setup(
        long_description=long_description(Path("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
