"""Directions of imports: between the packages, and between the rooms of `training`."""

import ast
import json
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


ABSENT = {
    "service.client": TRAINING_ONLY | {"torch", "bentoml", "models"},
    "wgan": {"torch", "bentoml", "mlflow", "numpy", "typer", "tqdm"},
    "wgan_cli": {"torch", "bentoml", "mlflow", "numpy", "rich"},
    "service.app": TRAINING_ONLY | {"torch", "bentoml", "matplotlib"},
    "models.artifact": TRAINING_ONLY | {"bentoml", "mlflow"},
    "training.run": {"matplotlib"},
}
"""What an import must not bring in, by module."""
IN_TURN = """
import importlib, json, os, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    print(json.dumps([[m.split(".")[0] for m in sys.modules], [*os.environ]]))
"""
"""Prints after each import what there is. What was imported before can only add to it."""


def brought_in(*modules: str) -> dict[str, tuple[set[str], set[str]]]:
    """The packages and the variables that there are after each of some imports in turn."""
    given = {name: value for name, value in os.environ.items() if name != UNTRACKED}
    command = [sys.executable, "-c", IN_TURN, *modules]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=given
    ).stdout
    found = [tuple(map(set, json.loads(line))) for line in out.splitlines()]
    return dict(zip(modules, found, strict=True))


@pytest.fixture(scope="module")
def together() -> dict[str, tuple[set[str], set[str]]]:
    """In as few processes as that allows: several of them take seconds to import PyTorch."""
    alone, *others = ABSENT
    return brought_in(alone) | brought_in(*others)


@pytest.mark.parametrize(("module", "absent"), ABSENT.items())
def test_what_an_import_brings_in(
    module: str, absent: set[str], together: dict[str, tuple[set[str], set[str]]]
) -> None:
    modules, variables = together[module]
    assert module.partition(".")[0] in modules
    assert not absent & modules
    assert UNTRACKED not in variables


def test_what_the_entry_of_the_service_brings_in() -> None:
    modules, variables = brought_in("service.entry")["service.entry"]
    assert not (TRAINING_ONLY | {"torch", "matplotlib"}) & modules
    assert UNTRACKED in variables
