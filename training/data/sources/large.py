"""Rows of tables that are too large for memory: read column by column, or batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from training.data.sources.files import Location, reading
from training.progress import track

MAX_BYTES_IN_MEMORY = 2**28
"""Size up to which a file is read at once: as it is, and at 8 bytes a value."""
BATCH = 2**14
"""Rows that are read at once."""


class LargeRows(ABC):
    """Rows on the disk, with those methods of a `pyarrow.Table` that reading needs."""

    def __init__(self, num_rows: int, schema: pa.Schema, size: int) -> None:
        """Take the number of rows, their names and types, and the size of the file in bytes."""
        self.num_rows, self.schema, self.size = num_rows, schema, size
        self.column_names = schema.names

    def __len__(self) -> int:
        return self.num_rows

    @property
    def is_large(self) -> bool:
        """True if they are too large to be read at once."""
        # Values that repeat take few bytes in a file, and as many as others in memory.
        return max(self.size, 8 * len(self) * len(self.column_names)) > MAX_BYTES_IN_MEMORY

    @abstractmethod
    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Read one column."""

    @abstractmethod
    def to_batches(self, max_chunksize: int = BATCH) -> Iterator[pa.RecordBatch]:
        """Read all columns, some rows at once."""

    def take(self, indices: pa.Array) -> pa.Table:
        """Read the rows at indices, in their order."""
        wanted = np.asarray(indices)
        order = np.argsort(wanted, kind="stable")
        ascending, found, first = wanted[order], list[pa.Table](), 0
        count = -(-self.num_rows // BATCH)
        for batch in track(self.to_batches(BATCH), "reading rows", count):
            ends = np.searchsorted(ascending, [first, first + len(batch)])
            here = ascending[slice(*ends)] - first
            found.append(pa.Table.from_batches([batch]).take(pa.array(here)))
            first += len(batch)
        return pa.concat_tables(found).take(pa.array(np.argsort(order)))


class ParquetRows(LargeRows):
    """The rows of a Parquet file."""

    def __init__(self, location: Location) -> None:
        """Open a file, and look at its types alone."""
        self.location = location
        with location.open() as file, pq.ParquetFile(file) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        super().__init__(metadata.num_rows, schema, sum(g.total_byte_size for g in groups))

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Read one column."""
        with reading(self.location.source), self.location.open() as file:
            return pq.read_table(file, columns=[name])[name]

    def to_batches(self, max_chunksize: int = BATCH) -> Iterator[pa.RecordBatch]:
        """Read all columns, some rows at once."""
        with (
            reading(self.location.source),
            self.location.open() as file,
            pq.ParquetFile(file) as parquet,
        ):
            for group in range(parquet.num_row_groups):
                # One iterator over all groups would keep what it has read of each.
                yield from parquet.iter_batches(max_chunksize, [group])
                pa.default_memory_pool().release_unused()


class ArrowRows(LargeRows):
    """The rows of an Arrow file (Feather V2)."""

    def __init__(self, location: Location) -> None:
        """Open a file; its first column is read, which says how many rows there are."""
        self.location = location
        with location.open() as file:
            schema, size = pa.ipc.open_file(file).schema, file.seek(0, 2)
        super().__init__(sum(map(len, self._batches(0))), schema, size)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Read one column."""
        column = self.schema.get_field_index(name)
        return pa.chunked_array(
            [batch.column(0) for batch in self._batches(column)], self.schema.field(name).type
        )

    def to_batches(self, max_chunksize: int = BATCH) -> Iterator[pa.RecordBatch]:
        """Read all columns, some rows at once."""
        for batch in self._batches():
            for first in range(0, len(batch), max_chunksize):
                yield batch.slice(first, max_chunksize)

    def _batches(self, *columns: int) -> Iterator[pa.RecordBatch]:
        """Read the batches that the file is made of, all columns or some."""
        options = pa.ipc.IpcReadOptions(included_fields=list(columns), use_threads=False)
        with (
            reading(self.location.source),
            self.location.open() as file,
            pa.ipc.open_file(file, options=options) as reader,
        ):
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class ColumnFiles(LargeRows):
    """Rows of which each column is a Parquet file of its own."""

    def __init__(self, paths: dict[str, Path]) -> None:
        """Open the files.

        Args:
            paths: of each column's file, by the column's name; all have row groups of one size.
        """
        self._files = [ParquetRows(Location(str(p), str(p), None)) for p in paths.values()]
        schema = pa.schema([rows.schema.field(0) for rows in self._files])
        super().__init__(len(self._files[0]), schema, sum(rows.size for rows in self._files))

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Read one column."""
        return self._files[self.column_names.index(name)][name]

    def to_batches(self, max_chunksize: int = BATCH) -> Iterator[pa.RecordBatch]:
        """Read all columns, some rows at once."""
        for batches in zip(*(f.to_batches(max_chunksize) for f in self._files), strict=True):
            yield pa.RecordBatch.from_arrays([batch[0] for batch in batches], schema=self.schema)


class ConvertedRows(LargeRows):
    """Rows of which each column is converted when it is read."""

    def __init__(
        self, rows: LargeRows, convert: Callable[[str, pa.ChunkedArray], pa.ChunkedArray]
    ) -> None:
        """Take rows, and what makes of a column's name and values those that are read."""
        self._rows, self._convert = rows, convert
        empty = rows.schema.empty_table()
        columns = {name: convert(name, empty[name]) for name in rows.column_names}
        super().__init__(len(rows), pa.table(columns).schema, rows.size)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """Read one column."""
        return self._convert(name, self._rows[name])

    def to_batches(self, max_chunksize: int = BATCH) -> Iterator[pa.RecordBatch]:
        """Read all columns, some rows at once."""
        for batch in self._rows.to_batches(max_chunksize):
            rows = pa.Table.from_batches([batch])
            columns = [
                self._convert(name, rows[name]).combine_chunks() for name in self.column_names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=self.schema)
