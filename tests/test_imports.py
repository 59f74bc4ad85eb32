"""`training` and `service` meet only at the artifact: each may import `models`, never the other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "training": {"models", "training"},
    "service": {"models", "service"},
}
TRAINING_ONLY = {"ot", "sklearn", "scipy", "training"}


def imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide a direction"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_import_directions(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file.read_text()) & {"models", "training", "service", "wgan_cli", "tests"}
        assert ours <= ALLOWED[package], f"{file} imports {ours - ALLOWED[package]}"


def test_the_check_sees_an_import_inside_a_function() -> None:
    assert imported("def f():\n    from training.engine.loop import train\n") == {"training"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("wgan_cli", {"torch", "bentoml", "mlflow", "numpy"}),
        ("models.artifact", TRAINING_ONLY | {"bentoml", "mlflow"}),
        ("service.app", TRAINING_ONLY),
    ],
)
def test_what_an_import_brings_in(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert not absent & set(out.split())
