"""The folder for what can be fetched or made again: decoded data, downloads, model versions."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that ``WGAN_CACHE`` names, or else one in the user's cache folder.

    Everything below it can be deleted at any time; it is made again when it is needed.
    """
    folder = os.environ.get("WGAN_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wgan-foundry"
