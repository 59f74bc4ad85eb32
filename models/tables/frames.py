"""pandas DataFrames and the Arrow tables that we compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models.errors import DataError, ShapeError, needs

if TYPE_CHECKING:
    import pandas as pd


def to_table(rows: Any) -> pa.Table:
    """Make a table of a DataFrame, without its index, or of a record batch; a table stays as it is.

    Raises:
        ShapeError: the rows are neither.
        DataError: a column holds values of several types.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if not hasattr(rows, "columns"):
        raise ShapeError("the model takes rows with named columns: a DataFrame or a pyarrow.Table")
    rows = _in_arrows_types(rows)
    try:
        return pa.Table.from_pandas(rows, preserve_index=False)
    except (ValueError, pa.ArrowException) as error:  # of names that stand twice it is pandas'
        said = "; ".join(map(str, error.args))
        raise DataError(f"the DataFrame is no table of values of one type: {said}") from None


def _in_arrows_types(rows: pd.DataFrame) -> pd.DataFrame:
    """Sparse columns dense, and categories that are intervals or periods as texts."""
    import pandas as pd

    odd = pd.IntervalDtype, pd.PeriodDtype
    changed = rows.copy(deep=False)
    for place, dtype in enumerate(rows.dtypes):
        column = rows.iloc[:, place]
        if isinstance(dtype, pd.SparseDtype):
            changed.isetitem(place, column.sparse.to_dense())
        elif isinstance(dtype, pd.CategoricalDtype) and isinstance(dtype.categories.dtype, odd):
            changed.isetitem(place, column.cat.rename_categories(str))
    return changed


@needs("train")
def to_frame(table: pa.Table) -> pd.DataFrame:
    """Make a DataFrame; whole numbers and truth values stay what they are beside missing values.

    Raises:
        UserError: pandas is not installed.
    """
    import pandas as pd

    frame = table.to_pandas()
    nullable = {
        pa.bool_(): pd.BooleanDtype(),
        **{
            getattr(pa, f"int{bits}")(): getattr(pd, f"Int{bits}Dtype")()
            for bits in (8, 16, 32, 64)
        },
        **{
            getattr(pa, f"uint{bits}")(): getattr(pd, f"UInt{bits}Dtype")()
            for bits in (8, 16, 32, 64)
        },
    }
    for name in table.column_names:
        if table[name].null_count and table[name].type in nullable:
            frame[name] = table[name].to_pandas(types_mapper=nullable.get)
    return frame
