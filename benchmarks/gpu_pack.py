"""What `make verify-gpu` needs on a machine without a network: `make pack-gpu`.

`gpu-pack/wheels` gets the packages that an image for PyTorch on CUDA is likely to lack, for Python
3.12 on x86-64, in the versions of requirements/dev.txt; `gpu-pack/cache` the digits of mnist5k and
the extractor that judges them. Together they must stay small enough to be sent along.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.config import DataConfig, EvaluationConfig

ROOT = Path(__file__).parent.parent
PACK = ROOT / "gpu-pack"
MAX_MEGABYTES = 60
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + [
    f"manylinux{year}_x86_64" for year in (2014, 2010, 1)
]
"""pip takes each name literally."""
IN_THE_IMAGE = [
    "jinja2", "matplotlib", "numpy", "pandas", "pillow", "pyarrow", "pytest", "pytest-timeout",
    "safetensors", "scikit-learn", "scipy", "torch", "tqdm",
]  # fmt: skip
"""What such an image has, with all that these need."""
LEFT_OUT = {"alembic", "mlflow-skinny", "sqlalchemy"}
"""The registry's: nothing is registered, and the service's check serves a folder."""


def packed() -> list[str]:
    """Names of what training and the service need, and such an image is likely to lack."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["service"], "pot"]
    names = needed(r for r in wanted if Requirement(r).name not in LEFT_OUT)
    # The image's typing-extensions may be too old for pydantic.
    return sorted(names - needed(IN_THE_IMAGE) | {"typing-extensions"})


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of packages and of all that they need in turn, by what is installed here."""
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
    seen, waiting = set[tuple[str, str]](), [(Requirement(r), "") for r in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, wanted))
            found = importlib.metadata.requires(name) or []
            waiting += [(Requirement(r), wanted) for r in found]
    return {name for name, _ in seen}


def locked(names: list[str]) -> str:
    """The entries of some packages in the lock, with their hashes.

    Raises:
        ValueError: a package is not in the lock.
    """
    lock = (ROOT / "requirements/dev.txt").read_text()
    entries = {entry.partition("==")[0]: entry for entry in re.split(r"\n(?=[a-z])", lock)}
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(f"not in requirements/dev.txt: {', '.join(missing)}")
    return "\n".join(entries[name] for name in names)


def fetch_wheels(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # two versions of a package could not be installed
        old.unlink()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(locked(packed()) + "\n")
        requirements.flush()
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
             "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}",
             *(f"--platform={name}" for name in PLATFORMS),
             f"--dest={folder}", f"--requirement={requirements.name}"],
            check=True,
        )  # fmt: skip


def fill_cache(folder: Path) -> None:
    """Fetch mnist5k and train its extractor, unless they are there."""
    os.environ["WGAN_CACHE"] = str(folder)
    from training.data.dataset import load_data
    from training.judging.extractors import choose_extractor

    choose_extractor(EvaluationConfig(), load_data(DataConfig(source="mnist5k")))


def main() -> int:
    fetch_wheels(PACK / "wheels")
    fill_cache(PACK / "cache")
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) / 2**20
    print(f"{PACK.name}: {size:.1f} MiB, at most {MAX_MEGABYTES}")
    return int(size > MAX_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
