"""Conditions that generated rows must meet, column by column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from models.errors import ConditionError

Scalar = bool | int | float | str
End = StrictInt | StrictFloat | StrictStr
_COMPARISON = re.compile(
    r"\s*(?P<name>[^<>=!]+?)\s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*"
)


class Condition(BaseModel, frozen=True, extra="forbid"):
    """What the values of one column must be; all that is given must hold.

    In short, a value stands for itself, a list for any of its values and None for a missing value:
    `Condition.model_validate` takes these too.

    >>> Condition.model_validate(["D", "E"]) == Condition(one_of=("D", "E"))
    True
    >>> Condition(above=5000, at_most=6000).in_words("price")
    'price > 5000 and price <= 6000'
    """

    one_of: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    none_of: tuple[Scalar, ...] = ()
    above: End | None = None
    """A number, or a date or time as ISO 8601 writes it."""
    at_least: End | None = None
    below: End | None = None
    at_most: End | None = None
    missing: bool | None = None
    """True: there must be no value; False: there must be one. None: whatever else is given needs a
    value."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        nothing = Condition.model_construct()
        if self == nothing:
            raise ValueError("says nothing: give one_of, at_least, at_most or another")
        if self.missing and self != nothing.model_copy(update={"missing": True}):
            raise ValueError("asks for no value and for more: what is missing is nothing else")
        return self

    @property
    def has_ends(self) -> bool:
        """True if a value must lie above or below something."""
        return any(end is not None for end in (self.above, self.at_least, self.below, self.at_most))

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, given: Any) -> Any:
        """A value stands for itself, a list for any of its values, None for a missing one."""
        given = _plain(given)
        if given is None:
            return {"missing": True}
        if isinstance(given, bool | int | float | str):
            return {"one_of": [given]}
        return {"one_of": given} if isinstance(given, list | tuple) else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The short forms too."""
        full = handler.resolve_ref_schema(handler(schema))
        scalar = {"type": ["boolean", "number", "string"]}
        return {
            "description": full.pop("description", ""),
            "anyOf": [
                full,
                {**scalar, "description": "The value itself."},
                {"type": "array", "items": scalar, "minItems": 1, "description": "One of these."},
                {"type": "null", "description": "No value."},
            ],
        }

    def in_words(self, name: str) -> str:
        """The condition as a person writes it, for the column ``name``."""
        words = [] if self.one_of is None else [f"{name} in {list(self.one_of)}"]
        words += [f"{name} != {value}" for value in self.none_of]
        for operator, end in (
            (">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most),
        ):  # fmt: skip
            words += [] if end is None else [f"{name} {operator} {end}"]
        if self.missing is not None:
            words.append(f"{name} is {'' if self.missing else 'not '}missing")
        return " and ".join(words)


def _plain(given: Any) -> Any:
    """What Python callers give, as JSON has it: numpy's scalars, dates and times."""
    if isinstance(given, dict):
        return {key: _plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [_plain(value) for value in given]
    if isinstance(given, datetime) and given.time() == time() and given.tzinfo is None:
        return given.date().isoformat()  # which columns of dates take too
    if isinstance(given, date | time):
        return given.isoformat()
    return given.item() if isinstance(given, np.generic) else given


def parse_conditions(texts: Iterable[str]) -> dict[str, Condition]:
    """Read conditions as people write them: ``cut=Ideal``, ``price>5000``, ``income=`` (missing).

    Several conditions on one column must all hold, but several values after ``=`` are
    alternatives.

    >>> parse_conditions(["cut=Ideal", "cut=Good", "price>=5000"])["cut"].one_of
    ('Ideal', 'Good')

    Raises:
        ConditionError: a text is no condition.
    """
    fields: dict[str, dict[str, Any]] = {}
    names = {">": "above", ">=": "at_least", "<": "below", "<=": "at_most"}
    for text in texts:
        match = _COMPARISON.fullmatch(text)
        if match is None:
            raise ConditionError(f"'{text}': write a condition as name=value, name>value or alike")
        name, operator, value = match.group("name", "operator", "value")
        of_column = fields.setdefault(name, {})
        if operator in names:
            if not value:
                raise ConditionError(f"'{text}': write a value after {operator}")
            if names[operator] in of_column:
                raise ConditionError(f"'{text}': {name} has {operator} twice")
            of_column[names[operator]] = value
        elif not value:
            of_column["missing"] = operator == "="
        else:
            key = "one_of" if operator == "=" else "none_of"
            of_column[key] = (*of_column.get(key, ()), value)
    return conditions_of(fields)


def conditions_of(given: Mapping[str, Any]) -> dict[str, Condition]:
    """Read conditions by column, each a `Condition` or what stands for one in short.

    Raises:
        ConditionError: one is neither.
    """
    conditions = {}
    for name, condition in given.items():
        try:
            conditions[name] = Condition.model_validate(condition)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConditionError(f"{name}: {message}") from None
    return conditions
