"""Directions of imports: between the packages, and between the rooms of `training`."""

import ast
import os
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
ROOMS = [
    {"progress"},
    {"data"},
    {"engine"},
    {"judging"},
    {"reporting"},
    {"run", "presets", "overrides", "selection", "budget", "tracking", "call", "commands"},
    {"retraining", "lab"},
]
"""The rooms of `training`, lowest first. A room imports lower ones, and the modules of `PEERS` each
other; `retraining` and `lab` know nothing of each other."""
PEERS = {"run", "presets", "overrides", "selection", "budget", "tracking", "call", "commands"}
OUTSIDE = {"torchrun"}
"""Modules of `training` that import nothing of it, and that nothing imports."""
UNTRACKED = "BENTOML_DO_NOT_TRACK"
"""BentoML would tell its maker of each start, unless this was set before it is imported."""
TRAINING_ONLY = {"ot", "sklearn", "scipy", "training"}


def imported_modules(source: str) -> set[str]:
    """Every module that a file's text imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide a direction"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(source: str) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(source)}


def imported_rooms(source: str) -> set[str]:
    """The rooms of `training` that a file's text imports."""
    parts = [module.split(".") for module in imported_modules(source)]
    return {names[1] for names in parts if names[0] == "training" and len(names) > 1}


def may_import(room: str) -> set[str]:
    lower, own = set[str](), {room}
    for level in ROOMS:
        if room in level:
            return lower | (PEERS if room in PEERS else own)
        lower |= level
    raise AssertionError(f"training/{room} has no place in ROOMS")


@pytest.mark.parametrize("package", ALLOWED)
def test_import_directions(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file.read_text()) & {
            "models",
            "training",
            "service",
            "wgan",
            "wgan_cli",
            "tests",
        }
        assert ours <= ALLOWED[package], f"{file} imports {ours - ALLOWED[package]}"


def test_rooms_of_training_import_only_lower_ones() -> None:
    seen = set()
    for file in (ROOT / "training").rglob("*.py"):
        room = file.relative_to(ROOT / "training").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = set() if room in OUTSIDE else may_import(room)
        wrong = imported_rooms(file.read_text()) - allowed
        assert not wrong, f"{file} imports training.{', training.'.join(sorted(wrong))}"
        seen.add(room)
    assert seen == set.union(*ROOMS, OUTSIDE)


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("data", "from training.reporting.pages import marginals", {"reporting"}),
        ("engine", "def f():\n    import training.judging.evaluate", {"judging"}),
        ("retraining", "from training import lab", {"lab"}),
        ("lab", "from training.data import dataset", set()),
        ("run", "from training.tracking import record", set()),
        ("progress", "from training.data.dataset import Dataset", {"data"}),
    ],
)
def test_the_check_sees_a_higher_room(room: str, source: str, wrong: set[str]) -> None:
    assert imported_rooms(source) - may_import(room) == wrong


def test_the_check_sees_an_import_inside_a_function() -> None:
    assert imported("def f():\n    from training.engine.loop import train\n") == {"training"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("wgan_cli", {"torch", "bentoml", "mlflow", "numpy", "rich"}),
        ("wgan", {"torch", "bentoml", "mlflow", "numpy", "typer", "tqdm"}),
        ("models.artifact", TRAINING_ONLY | {"bentoml", "mlflow"}),
        ("service.entry", TRAINING_ONLY | {"torch", "matplotlib"}),
        ("service.app", TRAINING_ONLY | {"torch", "bentoml", "matplotlib"}),
        ("service.client", TRAINING_ONLY | {"torch", "bentoml", "models"}),
        ("training.run", {"matplotlib"}),
    ],
)
def test_what_an_import_brings_in(module: str, absent: set[str]) -> None:
    code = f"import os, sys, {module}\nprint(*{{m.split('.')[0] for m in sys.modules}})\n"
    code += "print(*os.environ)"
    command = [sys.executable, "-c", code]
    given = {name: value for name, value in os.environ.items() if name != UNTRACKED}
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=given
    ).stdout
    modules, variables = out.splitlines()
    assert not absent & set(modules.split())
    assert (UNTRACKED in variables.split()) == (module == "service.entry")
