"""Parquet files that are too large for memory, read column by column or batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.sources.files import Location, reading
from training.progress import track

MAX_BYTES_IN_MEMORY = 2**28
"""Size, without compression, up to which a file is read at once."""
BATCH = 2**14
"""Rows that are read at once."""


class ParquetRows:
    """The rows of a Parquet file, with those methods of a `pyarrow.Table` that reading needs."""

    def __init__(self, location: Location) -> None:
        """Open a file, and look at its types alone."""
        self.location = location
        with location.open() as file, pq.ParquetFile(file) as parquet:
            self.num_rows, self.schema = parquet.metadata.num_rows, parquet.schema_arrow
        self.column_names = self.schema.names

    def __len__(self) -> int:
        return self.num_rows

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

    def take(self, indices: pa.Array) -> pa.Table:
        """Read the rows at indices, in their order."""
        wanted = np.asarray(indices)
        order = np.argsort(wanted, kind="stable")
        ascending, found, first = wanted[order], list[pa.Table](), 0
        count = -(-self.num_rows // BATCH)
        for batch in track(self.to_batches(), "reading rows", count):
            ends = np.searchsorted(ascending, [first, first + len(batch)])
            here = ascending[slice(*ends)] - first
            found.append(pa.Table.from_batches([batch]).take(pa.array(here)))
            first += len(batch)
        return pa.concat_tables(found).take(pa.array(np.argsort(order)))


def is_large(parquet: pq.ParquetFile) -> bool:
    """True if a file is too large to be read at once."""
    metadata = parquet.metadata
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return bool(sum(group.total_byte_size for group in groups) > MAX_BYTES_IN_MEMORY)
