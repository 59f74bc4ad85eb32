"""Rules between columns: to add a kind, write its class and name it here."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from models.errors import ConfigError
from models.tables.rules.base import Rule
from models.tables.rules.combination import Combination
from models.tables.rules.inequality import Inequality
from models.tables.rules.one_of import OneOf
from models.tables.rules.total import Total
from models.tables.rules.unique import Unique

AnyRule = Annotated[Inequality | Total | Combination | Unique | OneOf, Field(discriminator="kind")]
KINDS: tuple[type[Rule], ...] = get_args(get_args(AnyRule)[0])


def parse_rule(text: str) -> tuple[AnyRule, ...]:
    """Read a rule as a person writes it; a chain of comparisons is several.

    >>> [str(rule) for rule in parse_rule("start < middle <= end")]
    ['start < middle', 'middle <= end']

    Raises:
        ConfigError: it is none.
    """
    for kind in KINDS:
        if rules := kind.read(text):
            return rules  # type: ignore[return-value]
    raise ConfigError(
        f"{text!r}: write a rule as a < b, a <= b, c = a + b, unique(a), combination(a, b) or "
        "one_of(a, b); put a name with signs in it in backquotes"
    )


def in_order(rules: tuple[AnyRule, ...]) -> tuple[AnyRule, ...]:
    """Order rules so that each comes after those that make the columns which it reads.

    Raises:
        ConfigError: two make the same column, or they go round in a circle.
    """
    ordered, rest = list[AnyRule](), list(rules)
    makers: dict[str, AnyRule] = {}
    for rule in rules:
        for name in rule.makes:
            if name in makers:
                raise ConfigError(f"rules '{makers[name]}' and '{rule}': both make {name}")
            makers[name] = rule
    while rest:
        unmade = {name for rule in rest for name in rule.makes}
        ready = [rule for rule in rest if not unmade & set(rule.reads)]
        if not ready:
            raise ConfigError(f"rules {', '.join(f'{str(r)!r}' for r in rest)} go in a circle")
        ordered += ready
        rest = [rule for rule in rest if rule not in ready]
    return tuple(ordered)
