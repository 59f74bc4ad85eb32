"""Settings by dotted keys, as of `wgan train --set`, put into those of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.errors import ConfigError
from models.os_errors import require_end

Values = dict[str, Any]


def override(values: Values, overrides: dict[str, Any]) -> None:
    """Put settings of dotted keys into nested values.

    Args:
        values: of a configuration; changed in place.
        overrides: dotted keys, such as ``training.steps``, and their values.

    Raises:
        ConfigError: a file that a value names cannot be read.
    """
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if not name:
            values[section] = value
        elif isinstance(values.setdefault(section, {}), dict):
            if section == "data" and name.startswith("columns"):
                _set_columns(values[section], name, value)
            elif section == "data" and name.startswith("csv."):
                csv = values[section].setdefault("csv", {})
                values[section]["csv"] = {**csv, name.removeprefix("csv."): value}
            elif key == "data.rules":
                values[section][name] = _read_rules(value)
            else:
                values[section][name] = value


def _set_columns(data: Values, key: str, value: Any) -> None:
    """Put the user's word on columns into the data section.

    Args:
        data: the section.
        key: ``columns``, or ``columns.NAME.SETTING``, where the name may have points in it.
        value: of ``columns`` a YAML file's path, or what it holds; of a setting its value.

    Raises:
        ConfigError: the file cannot be read.
    """
    _, _, path = key.partition(".")
    if not path:
        data["columns"] = _read_columns(value) if isinstance(value, str) else value
        return
    name, _, setting = path.rpartition(".")
    columns = data.setdefault("columns", {})
    if not name or not isinstance(columns, dict):
        raise ConfigError(f"data.{key}: write data.columns.NAME.SETTING, or data.columns=FILE.yaml")
    columns[name] = {**columns.get(name, {}), setting: value}


def _read_rules(rules: Any) -> Any:
    """The rules in a YAML file, if that is what is named; else what was given."""
    if not isinstance(rules, str) or Path(rules).suffix not in (".yaml", ".yml"):
        return rules
    listed = _read_yaml("data.rules", rules)
    if not isinstance(listed, list):
        raise ConfigError(f"data.rules: {rules} holds no list; write each rule as - a < b")
    return listed


def _read_columns(path: str) -> Any:
    columns = _read_yaml("data.columns", path)
    if not isinstance(columns, dict):
        raise ConfigError(f"data.columns: {path} holds no columns; write NAME: {{kind: integer}}")
    return {str(name): told for name, told in columns.items()}  # 2024 is a name too


def _read_yaml(key: str, path: str) -> Any:
    """What a file holds that a setting names."""
    import yaml

    try:
        return yaml.safe_load(require_end(Path(path)).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"{key}: {path} cannot be read as YAML: {reason}") from None
