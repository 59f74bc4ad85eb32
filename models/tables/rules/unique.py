"""Keys: columns whose values no two rows share."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from models.tables.column import column_values
from models.tables.fixed import IdentifierColumn
from models.tables.rules.base import Columns, Fit, RuleOnColumns

Array = np.ndarray


class Unique(RuleOnColumns, frozen=True):
    """No two rows have the same values in the columns, and none is missing.

    One column is an identifier: each row gets a new one. Several are learned as they are, since a
    row is made without knowing the others: how many rows keep to the rule is only counted.
    """

    fewest: ClassVar[int] = 1
    kind: Literal["unique"] = "unique"

    @property
    def makes(self) -> tuple[str, ...]:
        """None: networks see a key of several columns, and one column is no part of the code."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """The key."""
        return self.columns

    @property
    def by_construction(self) -> bool:
        """True of one column."""
        return len(self.columns) == 1

    def revised(self, table: pa.Table, columns: Columns, fit: Fit) -> Columns:
        """Make a key of one column an identifier."""
        name = self.columns[0]
        if not self.by_construction or isinstance(columns[name], IdentifierColumn):
            return {}
        return {name: fit("identifier", name, column_values(table, name))}

    def satisfied(self, table: pa.Table, columns: Columns) -> Array:
        """Tell for each row if no row before it has its key."""
        keys, has_key = [], np.ones(len(table), bool)
        for name in self.columns:
            indices = column_values(table, name).dictionary_encode("encode").indices
            keys.append(indices.to_numpy(zero_copy_only=False))
            has_key &= column_values(table, name).is_valid().to_numpy(zero_copy_only=False)
        _, firsts = np.unique(np.stack(keys, axis=1), axis=0, return_index=True)
        is_first = np.zeros(len(table), bool)
        is_first[firsts] = True
        return is_first & has_key
