"""Any configuration that the schema allows: kept without loss, or refused in one line."""

from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from models.config import Config, parse_config
from models.errors import ConfigError
from tests.artifacts import tiny_config

SCHEMA = Config.model_json_schema()
SECTIONS = [name for name in SCHEMA["properties"] if name != "name"]
TEXTS = st.text("aeé ,;:#'\"{}[]\\\n\t0!&*-~", max_size=8)


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a part of the schema allows; patterns and numbers of items are left to luck."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if parts := schema.get("anyOf", schema.get("oneOf")):
        return st.one_of(*map(values_of, parts))
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    return KINDS[schema["type"]](schema)


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        return st.dictionaries(TEXTS, values_of(schema["additionalProperties"]), max_size=3)
    fields = {name: values_of(part) for name, part in schema["properties"].items()}
    needed = {*schema.get("required", []), "kind"} & fields.keys()
    return st.fixed_dictionaries({name: fields.pop(name) for name in needed}, optional=fields)


def _arrays(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "prefixItems" in schema:
        return st.tuples(*map(values_of, schema["prefixItems"])).map(list)
    return st.lists(values_of(schema["items"]), max_size=3)


def _numbers(kind: Any, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    open_ends = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return kind(low, high).filter(lambda number: number not in open_ends)


KINDS: dict[str, Any] = {
    "null": lambda schema: st.none(),
    "boolean": lambda schema: st.booleans(),
    "string": lambda schema: st.sampled_from(["digits", "0..1", "a < b", "#c0ffee"]) | TEXTS,
    "integer": partial(_numbers, st.integers),
    "number": partial(_numbers, st.floats),
    "array": _arrays,
    "object": _objects,
}


def read(values: dict[str, Any]) -> Config | str:
    """The configuration, or why it is none."""
    try:
        return parse_config(values)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("section", SECTIONS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_configuration_is_kept_or_refused_in_one_line(section: str, data: st.DataObject) -> None:
    value = data.draw(values_of(SCHEMA["properties"][section]))
    values = {**tiny_config().model_dump(mode="json"), section: value}
    config = read(values)
    event("refused" if isinstance(config, str) else "kept")
    if isinstance(config, str):
        assert "\n" not in config
        assert any(name in config for name in SECTIONS)
        return
    written = config.model_dump(mode="json")
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(written))) == config


def test_a_column_s_name_does_not_break_the_line() -> None:
    data = {"source": "x.csv", "columns": {"a\nb": {"low": float("inf")}}}
    found = read({**tiny_config().model_dump(mode="json"), "data": data})
    assert found == "data.columns.'a\\nb'.low: Input should be a finite number, got inf"
