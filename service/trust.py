"""The keys that models must be signed by, from files that are read again whenever they change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import MachineError, UserError

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
        self._seen: list[tuple[str, int, int, int]] = []
        self._keys: dict[str, verifying.Config] = {}

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

        self.read()
        if not self._keys:
            raise MachineError(f"WGAN_TRUSTED_KEYS: {self._path} has given no keys yet")
        key, digest = check_signature(folder, self._keys)
        log.info("%s is signed by %s", folder, key)
        return digest

    def read(self) -> object:
        """Read the keys again if a file has changed; returns what tells one state from another.

        While files cannot be read, or have a mistake, the keys stay as they were. An error of the
        machine may pass while the files stay the same, so they are read again.
        """
        if self._path is None:
            return None
        seen = self._state(self._path)
        if seen != self._seen:
            from models.signing import read_keys

            try:
                self._keys = read_keys(self._path)
                log.info("models must be signed by one of: %s", ", ".join(self._keys))
            except UserError as error:
                log.error("%s; the trusted keys stay as they were (%d)", error, len(self._keys))
                if isinstance(error, MachineError):
                    return tuple(self._seen)
            self._seen = seen
        return tuple(self._seen)

    @staticmethod
    def _state(path: Path) -> list[tuple[str, int, int, int]]:
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            stats = [(file.name, file.stat()) for file in files]
        except OSError:
            return [("", 0, 0, 0)]  # the log says once that they cannot be read
        # The time of a change of the mode too: a file may become readable.
        return [(name, stat.st_ctime_ns, stat.st_size, stat.st_ino) for name, stat in stats]
