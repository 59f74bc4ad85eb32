"""Downloaded model versions on the disk, shared by the workers.

A folder for each version, named by its number, and the file `CURRENT`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models import registry_files
from models.cache import cache_folder
from models.durable import put, write_file
from models.errors import ArtifactError
from service.retries import retry, within
from service.trust import TrustedKeys

DOWNLOAD_SECONDS = 900.0
MAX_VERSIONS = 3
"""Versions that stay in the cache."""
CURRENT = "current"
"""File that holds the number of the version that was served last."""
log = logging.getLogger("wgan.service")


class VersionCache:
    """The versions of one registered name, such as ``digits@champion``."""

    def __init__(
        self, source: str, parent: Path | None, tracking_uri: str, trusted: TrustedKeys
    ) -> None:
        self.source = source
        self._trusted = trusted
        self._parent = parent
        # Another registry's version of the same name is another model.
        self._key = hashlib.sha256(f"{tracking_uri}\n{source}".encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """The folder that holds the versions."""
        return (self._parent or cache_folder()) / "models" / self._key

    def version(self, number: str) -> str:
        """A version's full name: ``name@number``."""
        return f"{self.source.rpartition('@')[0]}@{number}"

    def last_good(self) -> str | None:
        """Number of the version that was served last; None if there was none."""
        try:
            number = (self.folder / CURRENT).read_text()
        except FileNotFoundError:
            return None
        return number if number.isdecimal() else None

    def fetch(self, number: str, digest: str | None) -> Path:
        """Return a version's folder; download it if it is not there or not sound.

        Args:
            number: number of the version.
            digest: the artifact's digest according to the registry; None if it has none.

        Raises:
            RegistryError: the version cannot be downloaded now.
            ArtifactError: the downloaded artifact is not the one that was registered.
            OSError, MachineError: this machine cannot store it, or read what it has stored, or the
                trusted keys.
        """
        reference = self.version(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            folder = self.folder / number
            if folder.exists():
                try:
                    _verify(folder, digest)
                    self._trusted.check(folder)  # it may have been signed after it was fetched
                except ArtifactError as error:
                    log.warning("the cached copy of %s is fetched again: %s", reference, error)
                else:
                    return folder

            for left in self.folder.glob("tmp*"):  # by a process that was killed
                # A download that was given up for its slowness may still write there.
                shutil.rmtree(left, ignore_errors=True)

            def download() -> None:
                from models.artifact import FETCHED, SIGNATURE, SUMS

                needed = {*FETCHED, SUMS, SIGNATURE}
                with tempfile.TemporaryDirectory(
                    dir=self.folder, ignore_cleanup_errors=True
                ) as temporary:
                    into = Path(temporary) / "artifact"
                    fetched = within(
                        DOWNLOAD_SECONDS,
                        f"{reference}: its storage",
                        lambda: registry_files.download(reference, into, needed),
                    )
                    _verify(fetched, digest)
                    # Here, where the lock is held: a download that was given up puts nothing.
                    put(fetched, folder)

            retry(download, ArtifactError)  # a copy may be cut short, so an unsound one may pass
            return folder

    def keep(self, number: str) -> None:
        """Record a version as the last good one, and delete the oldest ones."""
        write_file(self.folder / CURRENT, number)
        (self.folder / number).touch()
        with _locked(self.folder / "lock"):
            versions = [f for f in self.folder.iterdir() if f.name.isdecimal()]
            for old in sorted(versions, key=lambda f: f.stat().st_mtime)[:-MAX_VERSIONS]:
                shutil.rmtree(old)


def _verify(folder: Path, digest: str | None) -> None:
    from models.artifact import FETCHED, verify

    own_digest = verify(folder, FETCHED)
    if digest is not None and own_digest != digest:
        raise ArtifactError(
            f"{folder}: its digest is {own_digest}, but the registry knows it as {digest}"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among this server's workers, and all others that share the cache."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
