"""Rows, conditions and files of rows of an attacker, each with the statuses that are right."""

import io
import json
import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tests.hostile import Attack, form
from tests.mixed import people

TYPES = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}
COMPLETED = {"UTF-16", "age b'NaN'", "age b'0x10'"}
"""Files that only lack columns or cells, which are gaps."""
NUMBERS = ["1e308", "-1e308", "1e999", str(10**400), str(2**63), str(2**64), "-0.0", "1.5", "NaN"]


def cells() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The JSON of a row's ``age``, and its statuses."""
    for number in NUMBERS:
        # A number far outside the data is one that the column may be asked about all the same.
        yield number, number, (400, 422) if number in ("1e999", "NaN") else (200, 422)
    for value in [
        '"forty"', "true", "[]", "[1]", "{}", '{"a": 1}', '"\\u0000"', '"1e308"', '"NaN"', '"inf"',
        '"' + "9" * 5000 + '"', "[" * 50 + "]" * 50, '"\\udfff"',
    ]:  # fmt: skip
        yield value[:20], value, (400, 422)
    yield "deep", "[" * 10**5 + "]" * 10**5, (400,)


def rows_bodies() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The JSON of ``rows`` for /v1/imputations and /v1/scores, and its statuses."""
    for name, value, statuses in cells():
        yield f"age {name}", f'[{{"age": {value}}}]', statuses
    for value in [
        "null", "1", '"x"', "{}", "[1]", "[null]", "[[]]", '["age"]', '[[["age", 1]]]', "[]",
        '[{"age": 1},]', '[{1: 2}]', '[{"age": NaN}]',
    ]:  # fmt: skip
        yield value, value, (400,)
    for name, rows in {
        "unknown": [{"hom": "own"}],
        "no name": [{"": 1}],
        "a prototype": [{"__proto__": {"age": 1}}],
        "a long name": [{"x" * 10**6: 1}],
        "many names": [{f"c{i}": i for i in range(500_000)}],
        "types mixed": [{"age": 1}, {"age": "x"}, {"age": [2]}],
        "types of lists mixed": [{"age": [1, "x", None, {}]}],
        "a long text": [{"home": "c" * 10**6}],
        "a date that is none": [{"since": "2021-02-30"}],
        "a date before all": [{"since": "-99999-01-01"}],
        "a date in words": [{"since": "yesterday"}],
        "a date as a number": [{"since": 1e300}],
        "a name that is none": [{"member": 2}],
        "1025 rows": [{"age": 40}] * 1025,
        "100,000 rows": [{}] * 100_000,
    }.items():
        yield name, json.dumps(rows), (422,)
    yield "a name twice", '[{"age": 1, "age": "x"}]', (422,)
    yield "half a pair of surrogates", '[{"home": "\\ud800"}]', (400, 422)


def conditions() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The JSON of ``where``, and its statuses."""
    for number in NUMBERS:
        for key in ("above", "at_most", "one_of"):
            value = f"[{number}]" if key == "one_of" else number
            yield f"{key} {number[:8]}", f'{{"age": {{"{key}": {value}}}}}', (200, 400, 422)
    for value in [
        "{}", "[]", "1", '"age"', "NaN", '{"age": {}}', '{"age": []}', '{"age": [[]]}',
        '{"age": [null]}', '{"age": {"age": 1}}', '{"age": {"above": true}}',
        '{"age": {"above": []}}',
        '{"age": {"missing": "yes"}}', '{"age": {"missing": true, "above": 1}}',
        '{"age": {"one_of": []}}', '{"age": {"one_of": {}}}', '{"age": {"none_of": 1}}',
        '{"age": ' + "[" * 10**5 + "]" * 10**5 + "}", '{"age":' * 10**4,
        '{"age": [' + ",".join(["1"] * 2000) + "]}", '{"home": "' + "x" * 2000 + '"}',
        '{"home": "\\ud800"}',
    ]:  # fmt: skip
        yield value[:40], value, (400, 422)
    for name, where in {
        "unknown": {"hom": 1},
        "no name": {"": 1},
        "a category that is none": {"home": "castle"},
        "an order of categories": {"home": {"above": "own"}},
        "a truth value that is none": {"member": "maybe"},
        "a number that is none": {"age": {"above": "x"}},
        "infinite": {"age": {"above": "inf"}},
        "not a number": {"age": "nan"},
        "empty": {"age": {"above": 50, "below": 50}},
        "turned round": {"age": {"at_least": 60, "at_most": 20}},
        "never missing": {"age": None},
        "a constant": {"country": "NL"},
        "an identifier": {"id": "p0001"},
        "a date that is none": {"since": {"above": "2021-02-30"}},
        "a date as a number": {"since": 7},
        "a year of its own": {"since": {"above": "99999999-01-01"}},
        "a text with a zero": {"home": "\x00"},
        "many unknown": {f"c{i}": 1 for i in range(20_000)},
    }.items():
        yield name, json.dumps(where), (422,)


def parquet(table: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(table: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema, **options) as writer:
        writer.write_table(table)
    return out.getvalue()


def nested_parquet(depth: int) -> bytes:
    """A Parquet file of one column within so many groups, and no rows, in Thrift's compact form."""

    def element(fields: bytes) -> bytes:
        return fields + b"\x00"

    children = b"\x15\x02"  # num_children, one field on: 1
    root = element(b"\x48\x01r" + children)
    group = element(b"\x35\x00" + b"\x18\x01g" + children)  # required
    leaf = element(b"\x15\x02" + b"\x25\x00" + b"\x18\x01x")  # int32, required
    count, size = depth + 2, b""
    while count > 127:
        size, count = size + bytes([count & 127 | 128]), count >> 7
    schema = b"\x19\xfc" + size + bytes([count]) + root + group * depth + leaf
    meta = b"\x15\x02" + schema + b"\x16\x00" + b"\x19\x0c" + b"\x00"
    return b"PAR1" + meta + struct.pack("<I", len(meta)) + b"PAR1"


def files() -> Iterator[tuple[str, bytes, str, tuple[int, ...]]]:
    """Hostile files of rows, each with its format and its statuses."""
    good = people(20)
    many = pa.table({"age": np.zeros(30_000_000, np.int64)})
    text = pa.array(["x" * 10**6])
    unpacked = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), text)
    bomb = pa.table({"home": unpacked})
    bad, both, unsuitable = (415,), (415, 422), (422,)
    yield "nothing", b"", "csv", both
    yield "zeros", bytes(1000), "csv", both
    yield "text", b"hello", "csv", both
    yield "a URL", b"http://127.0.0.1/x.csv", "csv", both
    yield "quotes without end", b'age\n"' + b"x" * 10**5, "csv", both
    yield "rows of other lengths", b"age,home\n1,own\n1\n", "csv", both
    yield "a row of 100,000 cells", b"age\n" + b"1," * 100_000, "csv", both
    names = b",".join(b"c%d" % i for i in range(100_000))
    yield "100,000 columns", names + b"\n", "csv", unsuitable
    yield "4,000,000 columns", b"," * 4_000_000 + b"\n", "csv", unsuitable
    yield "a name 4,000,000 times", b"age," * 4_000_000 + b"\n", "csv", unsuitable
    yield "names of a megabyte", b"a" * 10**6 + b"," + b"b" * 10**6 + b"\n1,2\n", "csv", both
    yield "a name twice", b"age,age\n1,2\n", "csv", unsuitable
    yield "not UTF-8", b"age,home\n1,\xff\xfe\n", "csv", both
    yield "UTF-16", "age\n1\n".encode("utf-16"), "csv", both
    yield "a cell of 10 MB", b"home\n" + b"x" * 10**7 + b"\n", "csv", both
    yield "4,000,000 rows", b"age\n" + b"1\n" * 4_000_000, "csv", unsuitable
    yield "no rows", b"age,income,home,member,since\n", "csv", unsuitable
    yield "formulas", b"age\n=cmd|'/c calc'!A1\n", "csv", unsuitable
    for number in (b"1e308", b"NaN", b"inf", b"9" * 5000, b"0x10", b"1_0"):
        line = number + b",own,true,2021-01-01\n"
        yield f"age {number[:8]!r}", b"age,home,member,since\n" + line, "csv", unsuitable
    for format, write in (("parquet", parquet), ("arrow", arrow)):
        whole = write(good)
        for size in (8, len(whole) // 2, len(whole) - 5):
            yield f"{format} of {size} bytes", whole[:size], format, bad
        rng = np.random.default_rng(0)
        for seed in range(3):
            spoilt = np.frombuffer(whole, np.uint8).copy()
            places = rng.integers(8, len(whole) // (1 + seed % 2) - 12, 20)
            spoilt[places] = rng.integers(0, 256, 20)
            yield f"{format} spoilt {seed}", spoilt.tobytes(), format, both
        nested = pa.table({"age": pa.array([[1], [2, 3]]), "home": pa.array([{"a": 1}, None])})
        yield f"{format} of lists", write(nested), format, unsuitable
        odd = pa.table([[1], [2]], names=["age", "age"])
        yield f"{format} with a name twice", write(odd), format, both
        large = good.set_column(1, "age", pa.array([1e308] * 20))
        yield f"{format} of 1e308", write(large), format, unsuitable
        infinite = good.set_column(2, "income", pa.array([np.inf] * 20))
        yield f"{format} of infinite numbers", write(infinite), format, unsuitable
        yield f"{format} of unknown columns", write(pa.table({"x": [1]})), format, unsuitable
        wide = pa.table([[1]] * 5000, names=[f"c{i}" for i in range(5000)])
        yield f"{format} of 5,000 columns", write(wide), format, unsuitable
        again = pa.table([[1]] * 5000, names=["age"] * 5000)
        yield f"{format} with a name 5,000 times", write(again), format, unsuitable
        yield f"{format} without columns", write(pa.table({})), format, both
        yield f"{format} whose texts unpack to 1 GB", write(bomb), format, unsuitable
    yield "parquet of 30 million rows", parquet(many, compression="gzip"), "parquet", unsuitable
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    yield "arrow of 30 million rows", arrow(many, options=options), "arrow", unsuitable
    tail = struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "parquet of a column 1,000 deep", nested_parquet(1000), "parquet", bad
    yield "parquet of a column 100,000 deep", nested_parquet(100_000), "parquet", bad
    yield "parquet with a footer of 2 GB", b"PAR1" + bytes(100) + tail, "parquet", bad


def attacks() -> dict[str, Attack]:
    """All of them, by name."""
    found: dict[str, Attack] = {}
    for name, text, statuses in rows_bodies():
        for path in ("imputations", "scores"):
            body = f'{{"rows": {text}}}'.encode()
            # Scores need all columns, which these rows do not have.
            right = tuple(422 if s == 200 and path == "scores" else s for s in statuses)
            found[f"{path}: {name}"] = Attack(right, body, path=f"/v1/{path}")
    for name, text, statuses in conditions():
        body = f'{{"where": {text}, "format": "json"}}'.encode()
        found[f"where: {name}"] = Attack(statuses, body)
    for name, text in {
        "seed -1": '{"rows": [{}], "seed": -1}',
        "seed 1e3": '{"rows": [{}], "seed": 1e3}',
        "seed of 400 digits": '{"rows": [{}], "seed": ' + "9" * 400 + "}",
        "no rows": "{}",
        "another field": '{"rows": [{}], "url": "http://127.0.0.1/"}',
        "a long model": '{"rows": [{}], "model": "' + "x" * 10_000 + '"}',
    }.items():
        found[f"imputations: {name}"] = Attack((400,), text.encode(), path="/v1/imputations")
    another = b'{"rows": [{}], "model": "../../etc"}'
    found["imputations: another model"] = Attack((404,), another, path="/v1/imputations")
    for name, content, format, statuses in files():
        path = "/v1/scores"
        found[f"file: {name}"] = Attack(statuses, content, TYPES[format], path)
        if name in ("text", "a name twice", "parquet whose texts unpack to 1 GB"):
            multipart = "multipart/form-data; boundary=b"
            found[f"form: {name}"] = Attack(statuses, form(content, "x.csv"), multipart, path)
        right = (200,) if name in COMPLETED else statuses
        found[f"imputations: file: {name}"] = Attack(
            right, content, TYPES[format], "/v1/imputations"
        )
    for query in ("seed=-1", "seed=1e3", "seed=" + "9" * 5000, "seed=", "format=png", "model=",
                  "rows=1", "seed=1&seed=2", "format=csv%00", "seed=%F0%9F%98%80"):  # fmt: skip
        path = f"/v1/imputations?{query}"
        found[f"imputations: query {query[:20]}"] = Attack((400,), b"age\n40\n", "text/csv", path)
    part = form(b"age\n40\n", "x.csv").removesuffix(b"--b--\r\n")
    for name, parts in {
        "two files": part * 2,
        "no file": b"",
        "300 files": part * 300,
        "another part": part + part.replace(b"files", b"rows"),
        "a text in place of a file": part.replace(b'; filename="x.csv"', b""),
    }.items():
        kind = "multipart/form-data; boundary=b"
        found[f"imputations: {name}"] = Attack(
            (400,), parts + b"--b--\r\n", kind, "/v1/imputations"
        )
    return found


TABLE_ATTACKS = attacks()
