"""The schema of a table: its columns, and the code of a whole row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from models.errors import ConditionError, DataError, suggestion
from models.tables.column import Column
from models.tables.conditions import Condition
from models.tables.kinds import AnyColumn
from models.tables.layout import Part

Array = np.ndarray


class TableSchema(BaseModel, frozen=True, extra="forbid"):
    """What each column of a table is.

    A row's code is one after the other what its columns' codes are; so are its restrictions, the
    code of the conditions that it must meet.
    """

    columns: tuple[AnyColumn, ...]
    left_out: dict[str, str] = {}
    """Columns of the data that are not learned, each with the reason."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def parts(self) -> list[Part]:
        """Parts of a row's code."""
        return [part for column in self.columns for part in column.parts]

    @property
    def width(self) -> int:
        """Numbers in a row's code."""
        return sum(part.width for part in self.parts)

    @property
    def restriction_width(self) -> int:
        """Numbers in the code of a row's conditions."""
        return sum(part.restrictions for part in self.parts)

    def encode(self, table: pa.Table) -> Array:
        """Code a table, whose columns are found by name.

        Returns:
            float32 ``(N, width)``.

        Raises:
            DataError: a column is missing, or holds what it may not.
        """
        missing = [name for name in self.names if name not in table.column_names]
        needed = [n for n in missing if self.column(n).parts]
        if needed:
            raise DataError(f"no column {needed[0]!r}{suggestion(needed[0], table.column_names)}")
        codes = [c.encode(_whole(table[c.name])) for c in self.columns if c.parts]
        return np.concatenate([np.zeros((len(table), 0), np.float32), *codes], axis=1)

    def decode(self, codes: Array, first: int = 0) -> pa.Table:
        """Make the rows of codes.

        Args:
            codes: ``(N, width)``.
            first: number of the first row, from which identifiers follow.
        """
        arrays = []
        for column, where in self._codes():
            arrays.append(column.decode(codes[:, where], first))
        return pa.Table.from_arrays(arrays, names=self.names)

    def restrict(self, conditions: Mapping[str, Condition]) -> Array:
        """Code conditions: float32 ``(restriction_width,)``, all 0 without any.

        Raises:
            ConditionError: a column is unknown, or no row meets the condition.
        """
        restrictions = np.zeros(self.restriction_width, np.float32)
        for name in conditions:
            if name not in self.names:
                raise ConditionError(f"no column '{name}'{suggestion(name, self.names)}")
        start = 0
        for column in self.columns:
            stop = start + sum(part.restrictions for part in column.parts)
            if column.name in conditions:
                restrictions[start:stop] = column.restrict(conditions[column.name])
            start = stop
        return restrictions

    def column(self, name: str) -> Column:
        """The column of a name."""
        return self.columns[self.names.index(name)]

    def _codes(self) -> Iterable[tuple[Column, slice]]:
        """Each column with its place in a row's code."""
        start = 0
        for column in self.columns:
            stop = start + sum(part.width for part in column.parts)
            yield column, slice(start, stop)
            start = stop


def _whole(values: pa.ChunkedArray) -> pa.Array:
    whole = values.combine_chunks()
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole
