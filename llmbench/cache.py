"""Where llmbench keeps what it can fetch or measure again: models, calibrations."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LLMBENCH_CACHE``, or llmbench's part of the user's cache."""
    if own := os.environ.get("LLMBENCH_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "llmbench"
    return Path.home() / ".cache" / "llmbench"
