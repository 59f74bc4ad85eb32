"""The built wheel holds all that the packages need, and says that they have types."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "training", "service")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel, built from what is in version control."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked(*PACKAGES, "wgan*.py", "pyproject.toml", "README.md", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", folder / "dist", folder],
        check=True,
    )  # fmt: skip
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def tracked(*paths: str) -> list[str]:
    """Files in version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def test_every_file_of_the_packages_is_in_the_wheel(wheel: set[str]) -> None:
    files = set(tracked(*PACKAGES, "wgan*.py"))
    assert {Path(name).suffix for name in files} >= {".py", ".html", ".css", ".js", ".safetensors"}
    assert files <= wheel
    assert {name for name in wheel if ".dist-info/" not in name} == files


def test_type_checkers_may_read_the_packages(wheel: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel
