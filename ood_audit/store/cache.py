"""The user's cache folder: what several stores on one machine share."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder named by OOD_AUDIT_CACHE, else `ood-audit` in that named by XDG_CACHE_HOME, else in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.abspath(os.environ.get("OOD_AUDIT_CACHE") or os.path.join(home, "ood-audit")))
