"""Rules between a table's columns: what data must have for them, and which rows break them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pyarrow as pa

from models.errors import ConfigError, suggestion
from models.tables import AnyRule, TableSchema, parse_rule
from models.tables.rules import in_order
from models.tables.rules.unique import Unique
from training.data.schema import fit_values

Array = np.ndarray


def keys(texts: Iterable[str]) -> list[str]:
    """Names of the columns that rules, as a person writes them, make keys by themselves."""
    rules = [rule for text in texts for rule in parse_rule(text)]
    return [rule.names[0] for rule in rules if isinstance(rule, Unique) and rule.by_construction]


def with_rules(schema: TableSchema, texts: Iterable[str]) -> TableSchema:
    """Add rules to the schema of their columns; `fit_rules` fits them.

    Args:
        schema: of the columns, fitted.
        texts: the rules as a person writes them.

    Raises:
        ConfigError: a text is no rule, names an unknown column or contradicts another.
    """
    rules = [rule for text in texts for rule in parse_rule(text)]
    for rule in rules:
        for name in rule.names:
            if name not in schema.names:
                reason = schema.left_out.get(name)
                hint = f": left out, {reason}" if reason else suggestion(name, schema.names)
                raise ConfigError(f"data.rules: '{rule}': no column '{name}'{hint}")
    return TableSchema(
        columns=schema.columns, left_out=schema.left_out, rules=in_order(tuple(rules))
    )


def fit_rules(schema: TableSchema, table: pa.Table, is_training: Array) -> TableSchema:
    """Fit the rules of a schema, whose columns are fitted.

    Args:
        schema: see `with_rules`.
        table: all rows, in memory or a file's; they keep to the rules, see `broken_rows`.
        is_training: bool ``(N,)``.

    Raises:
        DataError: a rule cannot be put on columns of these kinds.
    """
    fit = partial(fit_values, is_training=is_training)
    columns, fitted = dict(schema.by_name), list[AnyRule]()
    for rule in schema.rules:
        shared = {name for other in schema.rules if other is not rule for name in other.names}
        fitted.append(rule.fitted(table, columns, shared, fit))
        columns |= fitted[-1].revised(table, columns, fit)
    return TableSchema(
        columns=tuple(columns.values()), left_out=schema.left_out, rules=tuple(fitted)
    )


def broken_rows(schema: TableSchema, table: pa.Table) -> tuple[Array, list[str]]:
    """Find the rows that break rules.

    Returns:
        bool ``(N,)``, true of rows that break a rule which holds by construction; and for each
        rule that rows break one line, with their number and an example.
    """
    is_broken, lines = np.zeros(len(table), bool), []
    for rule in schema.rules:
        breaks = ~rule.satisfied(table, schema.by_name)
        if breaks.any():
            row = int(breaks.argmax())
            example = ", ".join(f"{n} {table[n][row].as_py()}" for n in rule.names)
            lines.append(
                f"{breaks.sum()} of {len(table)} rows break the rule '{rule}', such as row "
                f"{row + 1}: {example}"
            )
        if rule.by_construction:
            is_broken |= breaks
    return is_broken, lines
