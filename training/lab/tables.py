"""Two tables in one encoding, so that a distance between their rows has a meaning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from models.config import ColumnConfig
from models.errors import DataError
from models.tables import AnyColumn, CategoryColumn, NumberColumn, TableSchema
from models.tables.records import typed
from training.data.coding import match_columns
from training.data.schema import find_structure, fit_schema
from training.judging.tables.rows import comparable, is_missing, is_number
from training.lab.samples import Sets, drawn, most_items

Array = np.ndarray
OWN_UNITS = "Euclidean over all values, in their own units"
MIXED_UNITS = (
    "Euclidean over all columns: numbers and times in standard deviations of both sets together, "
    "another category and a missing value count 1"
)


def coded(
    tables: Sequence[pa.Table],
    sources: Sequence[str],
    schema: TableSchema | None,
    told: Mapping[str, ColumnConfig],
    seed: int,
) -> Sets:
    """Bring two tables to one encoding, with columns matched by name; see docs/w1.md.

    Args:
        tables: A and B.
        sources: their names, for what is said.
        schema: of a model that they are compared with; None: fitted to the columns in common.
        told: the user's word on columns, where there is no model.
        seed: of the rows that are drawn of too many.

    Returns:
        The two sets; their ``rows`` are numbered as in the tables.

    Raises:
        DataError: they have no column in common, a column has two types, or values fit no column.
    """
    said, cautions = list[str](), list[str]()
    if schema is None:
        schema, tables, said, cautions = _in_common(tables, sources, told)
    else:
        for table, source in zip(tables, sources, strict=True):
            with _naming(source):
                said += match_columns(table.column_names, schema)
    rows, chosen = list[Array](), list[Array | None]()
    for table, source in zip(tables, sources, strict=True):
        with _naming(source):
            rows.append(comparable(typed(schema, table), schema))
    columns = [column for column in schema.columns if column.parts]  # as `comparable` takes them
    most = most_items(_width(np.concatenate(rows), columns))
    for number, source in enumerate(sources):
        some = drawn(len(rows[number]), most, seed)
        chosen.append(some)
        if some is not None:
            rows[number] = rows[number][some]
            said.append(f"of {source} {most} rows are compared, drawn at random")
    a, b, names, units = _encoded(rows, columns, said)
    return Sets(
        a, b, names, units, said, cautions, (rows[0], rows[1]), columns, (chosen[0], chosen[1])
    )


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Name a side in errors."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _in_common(
    tables: Sequence[pa.Table], sources: Sequence[str], told: Mapping[str, ColumnConfig]
) -> tuple[TableSchema, list[pa.Table], list[str], list[str]]:
    """Fit a schema to the columns that both tables have.

    Returns:
        The schema, the tables with its columns, lines for the user, and cautions.
    """
    names = [table.column_names for table in tables]
    ignored = {
        name
        for name, own in told.items()
        if own.kind == "left_out" and any(name in own_names for own_names in names)
    }
    common = [name for name in names[0] if name in names[1] and name not in ignored]
    alone = "; ".join(
        f"only {source} has {', '.join(only)}"
        for source, own, other in zip(sources, names, names[::-1], strict=True)
        if (only := [name for name in own if name not in other and name not in ignored])
    )
    if not common:
        raise DataError(f"the tables have no column in common: {alone}")
    tables = [_plain(t.select(common), o) for t, o in zip(tables, tables[::-1], strict=True)]
    for name in common:
        try:
            pa.concat_tables([t.select([name]) for t in tables], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            types = [str(table.schema.field(name).type) for table in tables]
            kinds = " and ".join(
                f"{'text' if 'string' in found else found} in {source}"
                for found, source in zip(types, sources, strict=True)
            )
            raise DataError(
                f"column {name!r} is {kinds}: repair one of them, or leave the column out by "
                f"data.columns.{name}.kind=left_out"
            ) from None
    whole = pa.concat_tables(tables, promote_options="permissive")
    told = {name: own for name, own in told.items() if name not in ignored}
    structure = find_structure(whole, told)
    schema = fit_schema(whole, structure, told, np.ones(len(whole), bool))
    cautions = [f"columns of one side alone are not compared: {alone}"] if alone else []
    return schema, tables, structure.notes, cautions


def _plain(table: pa.Table, other: pa.Table) -> pa.Table:
    """Decode dictionaries, such as pandas' categories, where the other table has another type."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) and other.schema.field(field.name).type != field.type:
            decoded = table[i].cast(field.type.value_type)
            table = table.set_column(i, field.name, decoded)
    return table


def _width(rows: Array, columns: Sequence[AnyColumn]) -> int:
    """Number of values that a row of `comparable` is encoded as."""
    return sum(
        1 + bool(is_missing(rows[str(i)]).any())
        if is_number(rows, str(i))
        else len(np.unique(rows[str(i)]))
        for i in range(len(columns))
    )


def _encoded(
    rows: Sequence[Array], columns: Sequence[AnyColumn], said: list[str]
) -> tuple[Array, Array, list[str], str]:
    """Encode what `comparable` made of two tables' rows: numbers alone as they are, or else all.

    Returns:
        A and B, the names of their values, and the units of a distance.
    """
    kinds = {type(column) for column in columns}
    has_gaps = any(is_missing(x[field]).any() for x in rows for field in x.dtype.names or ())
    if kinds == {NumberColumn} and not has_gaps:
        a, b = (np.stack([x[str(i)] for i in range(len(columns))], axis=1) for x in rows)
        return a, b, [column.name for column in columns], OWN_UNITS
    both = np.concatenate(rows)
    values = dict[str, Array]()
    for i, column in enumerate(columns):
        found, missing = both[str(i)], is_missing(both[str(i)])
        if is_number(both, str(i)):
            known = found[~missing]
            values[column.name] = np.zeros(len(found))
            values[column.name][~missing] = (known - known.mean()) / (known.std() or 1.0)
            if missing.any():
                values[f"whether {column.name} is missing"] = missing.astype(float)
            continue
        assert isinstance(column, CategoryColumn), "only numbers and categories are learned"
        options = [*column.categories, *column.others, "another value", "no value"]
        for number in np.unique(found):  # -1 stands for no value
            # Two different categories are then 1 apart.
            values[f"{column.name} = {options[number]}"] = (found == number) / np.sqrt(2)
    every = np.stack([*values.values()], axis=1)
    said.append(
        f"mixed types: {len(columns)} columns ({', '.join(sorted({c.kind for c in columns}))}) are "
        f"compared by {len(values)} values"
    )
    return every[: len(rows[0])], every[len(rows[0]) :], [*values], MIXED_UNITS
