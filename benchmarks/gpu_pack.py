"""What `make verify-gpu` needs on a machine without a network: `make pack-gpu`.

`gpu-pack/wheels` gets the packages that an image for PyTorch on CUDA is likely to lack, for Python
3.12 on x86-64, in the versions of requirements/dev.txt; `gpu-pack/cache` the digits of mnist5k and
the extractor that judges them. Together they must stay small enough to be sent along.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from models.config import DataConfig, EvaluationConfig

ROOT = Path(__file__).parent.parent
PACK = ROOT / "gpu-pack"
MAX_MEGABYTES = 60
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + [
    f"manylinux{year}_x86_64" for year in (2014, 2010, 1)
]
"""pip takes each name literally."""
TRAINING = ["annotated-types", "pot", "pydantic", "pydantic-core", "typer", "typing-inspection"]
SERVICE = [
    "a2wsgi", "aiohttp-asgi-connector", "aiosqlite", "asgiref", "bentoml", "cattrs",
    "click-option-group", "googleapis-common-protos", "httptools", "httpx-ws", "kantoku",
    "opentelemetry-api", "opentelemetry-exporter-http-transport",
    "opentelemetry-exporter-otlp-common", "opentelemetry-exporter-otlp-proto-common",
    "opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation",
    "opentelemetry-instrumentation-aiohttp-client", "opentelemetry-instrumentation-asgi",
    "opentelemetry-proto", "opentelemetry-sdk", "opentelemetry-semantic-conventions",
    "opentelemetry-util-http", "pip-requirements-parser", "pydantic-settings", "python-dotenv",
    "python-json-logger", "python-multipart", "pyzmq", "rich-toolkit", "schema", "simple-di",
    "starlette", "tomli-w", "tornado", "uvicorn", "watchfiles", "wsproto",
]  # fmt: skip
"""BentoML and what it needs. MLflow is not among them: the check serves a folder."""


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
        requirements.write(locked(TRAINING + SERVICE) + "\n")
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
