"""Write what `retrain.config` may hold into the chart's schema: `python -m deploy.schema`.

It follows from the models that `wgan retrain` reads the file with, so that Helm refuses most of
what the command would refuse. What hangs on several settings at once is left to the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.config import Config
from models.constraints import CONSTRAINTS
from training.judging.figures import FIGURES
from training.presets import PRESETS
from training.retraining.config import RetrainConfig

Node = dict[str, Any]
FILE = Path(__file__).parent / "chart/values.schema.json"
NAME = "retrainConfig"
"""Of the definition in the chart's schema."""
WORDS = {"title", "description", "default", "discriminator", "format"}
"""Keys of a schema that allow or forbid nothing here."""


def retrain_config() -> Node:
    """The schema of `retrain.config`, as JSON schema of draft 7."""
    found = _plain(RetrainConfig.model_json_schema())
    properties = found["properties"]
    properties["preset"] = {"enum": list(PRESETS)}
    properties["constraint"] = {"enum": list(CONSTRAINTS)}
    properties["folder"]["pattern"] = "^/runs(/|$)"  # nothing else is kept
    for limits in ("least", "most"):
        properties["gates"]["properties"][limits] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: {"type": "number"} for name in FIGURES},
        }
    properties["set"] = _settings()
    return found


def _settings() -> Node:
    """The schema of ``set``: any part of a run's configuration, nested or with dotted names."""
    sections = _plain(Config.model_json_schema())["properties"]
    sections["constraint"] = _merged(sections["constraint"]["oneOf"])
    for section in ("table", "privacy"):
        sections[section] = next(one for one in sections[section]["anyOf"] if "properties" in one)
    dotted = {}
    for section, node in sections.items():
        node.pop("required", None)
        for name, field in node.get("properties", {}).items():
            _take_texts(field)
            place = f"#/definitions/{NAME}/properties/set/properties"
            dotted[f"{section}.{name}"] = {"$ref": f"{place}/{section}/properties/{name}"}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": sections | dotted,
        "patternProperties": {r"^data\.(columns|csv)\..": {}},
    }


def _take_texts(field: Node) -> None:
    """Let a list be one text, and a mapping the name of a file, as the models do."""
    if field.get("type") in ("array", "object"):
        whole = field.copy()
        field.clear()
        field["anyOf"] = [whole, {"type": "string"}]


def _merged(kinds: list[Node]) -> Node:
    """One schema for the settings of all kinds of constraint; the command knows which has which."""
    fields: dict[str, list[Node]] = {}
    for kind in kinds:
        for name, field in kind["properties"].items():
            if field not in fields.setdefault(name, []):
                fields[name].append(field)
    properties = {n: f[0] if len(f) == 1 else {"anyOf": f} for n, f in fields.items()}
    properties["kind"] = {"enum": list(CONSTRAINTS)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _plain(schema: Node) -> Node:
    """A schema of pydantic's without references, words for people and what draft 7 lacks."""
    parts = schema.get("$defs", {})

    def plain(node: Any, is_schema: bool = True) -> Any:
        if isinstance(node, list):
            return [plain(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(parts[node["$ref"].rpartition("/")[2]])
        found = {
            key: plain(value, key != "properties" if is_schema else True)
            for key, value in node.items()
            if not (is_schema and (key in WORDS or key == "$defs"))
        }
        if is_schema and "prefixItems" in found:
            found["items"] = found.pop("prefixItems")
        return found

    return dict(plain(schema))


def text() -> str:
    """The chart's schema with this definition brought up to date."""
    schema = json.loads(FILE.read_text())
    schema["definitions"][NAME] = retrain_config()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
