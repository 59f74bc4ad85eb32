"""Every package that the code imports is declared in pyproject.toml, by its name."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"models", "training", "service", "wgan", "wgan_cli"}
DISTRIBUTIONS = importlib.metadata.packages_distributions() | {"torch_fidelity": ["torch-fidelity"]}
EXTRAS = {
    # `wgan models`, `promote` and `sample` work without any extra; `sign`, `verify`,
    # `export` and scoring HDF5 need one.
    "models": ["signing", "export", "arrays"],
    "service": ["service", "signing"],
    "training": ["train", "arrays", "export", "features", "inception", "privacy", "s3"],
    # The command line imports what a command needs when it runs.
    ".": ["train", "service"],
}


def declared(extras: list[str]) -> set[str]:
    """The distributions that an installation with some extras asks for by name."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def imported(files: list[Path]) -> dict[str, Path]:
    """The packages of others that files import, at their top or within a function."""
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            found |= dict.fromkeys(names, path)
    standard = {*sys.stdlib_module_names, *OURS}
    return {name: path for name, path in found.items() if name.split(".")[0] not in standard}


def distributions(name: str) -> set[str]:
    """The distributions that may hold a module."""
    top = name.split(".", maxsplit=1)[0]
    if top == "opentelemetry":  # a namespace that many distributions share
        return {
            "opentelemetry-" + ("exporter-otlp-proto-http" if "exporter" in name
                                else "sdk" if ".sdk" in name else "api")
        }  # fmt: skip
    return {canonicalize_name(d) for d in DISTRIBUTIONS[top]}


@pytest.mark.parametrize("folder", sorted(EXTRAS))
def test_what_is_imported_is_declared(folder: str) -> None:
    place = ROOT / folder
    files = [*place.glob("wgan*.py")] if folder == "." else [*place.rglob("*.py")]
    # DataFrames are for those who have pandas; without it, a line says what to install.
    found = imported([path for path in files if path.name != "frames.py"])
    assert found
    for name, path in found.items():
        assert distributions(name) & declared(EXTRAS[folder]), f"{path} imports {name}"


def test_uvicorn_is_bound_to_one_minor_release() -> None:
    """The service changes private parts of it, which any minor release may change too."""
    (uvicorn,) = (
        Requirement(text)
        for text in PROJECT["optional-dependencies"]["service"]
        if text.startswith("uvicorn")
    )
    major, minor, *_ = map(int, importlib.metadata.version("uvicorn").split("."))
    assert uvicorn.specifier.contains(f"{major}.{minor}.0")
    assert not uvicorn.specifier.contains(f"{major}.{minor + 1}.0")
    assert not uvicorn.specifier.contains(f"{major + 1}.0.0")
