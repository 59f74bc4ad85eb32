"""The folder for what can be fetched or made again: decoded data, downloads, model versions."""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import ConfigError


def cache_folder() -> Path:
    """The folder that ``WGAN_CACHE`` names, or else one in the user's cache folder.

    Everything below it can be deleted at any time; it is made again when it is needed.

    Raises:
        ConfigError: the environment names none, and the user has no home.
    """
    if folder := os.environ.get("WGAN_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "wgan-foundry"
    try:
        return Path.home() / ".cache" / "wgan-foundry"
    except RuntimeError:
        raise ConfigError("there is no home folder to cache in; set WGAN_CACHE") from None
