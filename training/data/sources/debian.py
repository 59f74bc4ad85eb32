"""Files of Debian's packages, which are downloaded as any user may and not installed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from training.progress import phase


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """Download packages and unpack each into a folder of its own name.

    Args:
        packages: names, as apt-get knows them.
        folder: an empty one.

    Returns:
        The folder of each package, in the order of the names.

    Raises:
        OSError: there is no apt-get here, or no room.
        CalledProcessError: apt-get does not know a package, or cannot fetch it.
    """
    names = packages[0] if len(packages) == 1 else f"{len(packages)} packages of Debian"
    with phase(f"downloading {names}"):
        _call("apt-get", "--quiet", "download", *packages, cwd=folder)
    unpacked = [folder / package for package in packages]
    for path in unpacked:
        (archive,) = folder.glob(f"{path.name}_*.deb")
        _call("dpkg-deb", "-x", str(archive), str(path), cwd=folder)
        archive.unlink()
    return unpacked


def what_apt_said(error: Exception) -> str:
    """The last line of what a command of `download` printed before it failed."""
    said = getattr(error, "stderr", None) or str(error)
    return said.strip().splitlines()[-1]


def _call(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
