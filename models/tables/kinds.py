"""The kinds of columns there are: to add one, write its class and name it here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.tables.category import BooleanColumn, CategoryColumn
from models.tables.fixed import ConstantColumn, CopyColumn, IdentifierColumn
from models.tables.number import NumberColumn
from models.tables.times import TimeColumn

AnyColumn = Annotated[
    NumberColumn
    | TimeColumn
    | CategoryColumn
    | BooleanColumn
    | ConstantColumn
    | CopyColumn
    | IdentifierColumn,
    Field(discriminator="kind"),
]
