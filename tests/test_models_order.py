"""Modules of `models` import only what stands before them in one order."""

import ast
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
ORDER = [
    "redaction",
    "errors",
    "durable",
    "remote",
    "cache",
    "progress",
    "command_line",
    "distance",
    "device",
    "image_parts",
    "images",
    "pipe",
    "stored_zip",
    "text_files",
    "values",
    "section",
    "tables",
    "formats",
    "networks",
    "lipschitz",
    "constraints",
    "augmentation",
    "privacy",
    "selection",
    "training",
    "config",
    "sampling",
    "folding",
    "refinement",
    "record",
    "schema_changes",
    "model",
    "run_folder",
    "artifact",
    "detector",
    "promotions",
    "registry_errors",
    "registry_search",
    "os_errors",
    "outputs",
    "tracking_server",
    "secret_files",
    "registry",
    "registry_files",
    "champions",
    "model_names",
    "array_files",
    "file_trees",
    "item_files",
    "trained",
    "signing",
    "bulk",
    "export",
    "commands",
]
WITHIN = {
    "networks": [
        "settings",
        "convolution",
        "piecewise",
        "recurrent",
        "cones",
        "initial",
        "parts",
        "skips",
        "stages",
        "conditional",
        "resnet",
        "dcgan",
        "rows",
        "build",
    ],
    "tables": [
        "layout",
        "scores",
        "conditions",
        "column",
        "number",
        "times",
        "category",
        "fixed",
        "kinds",
        "rules",
        "schema",
        "reading",
        "frames",
        "files",
        "records",
        "gaps",
    ],
    "export": ["graphs", "formats", "check", "layouts", "folder", "command"],
    "lipschitz": [
        "gradients",
        "operators",
        "torus",
        "descent",
        "ellipsoid",
        "tighter",
        "unrolled",
        "certificate",
        "signals",
        "bracket",
    ],
}


def imported(source: str) -> set[str]:
    """Dotted names below `models` that a file imports when it runs."""
    tree = ast.parse(source)
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in for_types:
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                if parts[0] == "models":
                    found.add(".".join(parts[1:3]))
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("models") for alias in node.names)
    return found


def place(file: Path) -> list[str]:
    return list(file.relative_to(MODELS).with_suffix("").parts)


FILES = [file for file in sorted(MODELS.rglob("*.py")) if file != MODELS / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(MODELS)))
def test_a_module_imports_only_what_stands_before_it(file: Path) -> None:
    own = place(file)
    for name in imported(file.read_text()):
        room, _, rest = name.partition(".")
        assert ORDER.index(room) <= ORDER.index(own[0]), f"{file} imports models.{name}"
        inner = WITHIN.get(room)
        if inner and room == own[0] and own[1] != "__init__":
            assert rest in inner, f"{file} imports models.{room} itself"
            is_beside = rest == own[1] and len(own) > 2  # in one package
            assert is_beside or inner.index(rest) < inner.index(own[1]), (
                f"{file} imports models.{name}"
            )


def test_every_module_has_its_place() -> None:
    assert {place(file)[0] for file in FILES} == set(ORDER)
    for room, inner in WITHIN.items():
        assert {
            place(file)[1] for file in FILES if place(file)[0] == room and len(place(file)) > 1
        } == {
            *inner,
            "__init__",
        }


def test_the_check_sees_imports_inside_functions_but_not_those_for_types() -> None:
    source = "if TYPE_CHECKING:\n    from models.config import Config\n"
    assert imported(source) == set()
    assert imported("def f():\n    from models import registry\n") == {"registry"}
    assert imported(source + "from models.networks.build import x") == {"networks.build"}
