"""The keys that models must be signed by, from files that are read again whenever they change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import MachineError
from service.reread import Reread

if TYPE_CHECKING:
    from model_signing import verifying

log = logging.getLogger("wgan.service")


class TrustedKeys:
    """The public keys in force; without a path, no model need be signed.

    Args:
        path: a file in PEM, or a folder of them.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        none: dict[str, verifying.Config] = {}
        self._keys = Reread(
            self._files,
            self._read,
            none,
            lambda keys: f"models must be signed by one of: {', '.join(keys)}",
            lambda keys: f"the trusted keys stay as they were ({len(keys)})",
        )

    @property
    def are_needed(self) -> bool:
        """True if models must be signed."""
        return self._path is not None

    def check(self, folder: Path) -> str | None:
        """Check that one of the keys has signed an artifact; see `models.signing`.

        Returns:
            The digest that was signed; None if no model need be signed.

        Raises:
            ArtifactError: none has.
            MachineError: there are no keys yet, which says nothing of the artifact: their files
                have a mistake, or cannot be read.
            OSError: a file of the artifact cannot be read.
        """
        if self._path is None:
            return None
        from models.signing import check_signature  # it needs torch, which only workers have

        keys = self._keys.current()
        if not keys:
            raise MachineError(f"WGAN_TRUSTED_KEYS: {self._path} has given no keys yet")
        key, digest = check_signature(folder, keys)
        log.info("%s is signed by %s", folder, key)
        return digest

    def read(self) -> object:
        """Read the keys again if a file has changed; returns what tells one state from another."""
        if self._path is not None:
            self._keys.current()
        return self._keys.seen

    def _files(self) -> list[Path]:
        assert self._path is not None
        return sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]

    def _read(self) -> dict[str, verifying.Config]:
        from models.signing import read_keys  # see `check`

        assert self._path is not None
        return read_keys(self._path)
