"""Tables: the schema of their columns, and the code in which networks see them.

A table is a `pyarrow.Table`. `TableSchema` says what each column is; its columns turn values into
codes, the numbers that networks compute with, and back, so that every value made is one that the
column may hold.
"""

from models.tables.category import BooleanColumn, CategoryColumn
from models.tables.conditions import Condition, parse_conditions
from models.tables.fixed import ConstantColumn, CopyColumn, IdentifierColumn
from models.tables.kinds import AnyColumn
from models.tables.layout import Choice, Part, Value
from models.tables.number import NumberColumn
from models.tables.rules import AnyRule, parse_rule
from models.tables.schema import TableSchema, rule_shares
from models.tables.times import TimeColumn

__all__ = [
    "AnyColumn",
    "AnyRule",
    "BooleanColumn",
    "CategoryColumn",
    "Choice",
    "Condition",
    "ConstantColumn",
    "CopyColumn",
    "IdentifierColumn",
    "NumberColumn",
    "Part",
    "TableSchema",
    "TimeColumn",
    "Value",
    "parse_conditions",
    "parse_rule",
    "rule_shares",
]
