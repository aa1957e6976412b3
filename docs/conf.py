"""The site: `make site` builds it, and fails on any warning."""

import os
import sys

sys.path.insert(0, os.path.abspath(".."))

from ood_audit import __version__

project = "ood-audit"
author = "The ood-audit authors"
copyright = author
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ood-audit {release}"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
default_role = "code"  # docstrings are Markdown: `name` is code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
