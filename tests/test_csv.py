"""CSV files as people have them: each case is a small file, what it holds, and what is said."""

import bz2
import datetime
import gzip
import lzma
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.config import ColumnConfig, parse_data
from models.errors import ConfigError, DataError, ShapeError
from models.tables import TableSchema
from models.tables.reading import texts
from models.tables.reading.dialect import SAMPLE, CsvConfig, find_dialect
from models.tables.reading.texts import decompressed, read_csv
from models.tables.records import read_rows, typed
from training.data.coding import code_table
from training.data.columns import find_kind
from training.data.raw import RawData
from training.data.sources.files import locate
from training.data.sources.tables import load_table


def read(path: Path, **csv: Any) -> RawData:
    return load_table(locate(str(path)), parse_data({"source": str(path), "csv": csv}))


class Case(NamedTuple):
    content: str | bytes
    columns: dict[str, list[Any]]
    says: tuple[str, ...] = ()
    """Parts of notes; without any there are none."""
    csv: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "plain": Case("a,b,c\n1,x,1.5\n2,y,2\n", {"a": [1, 2], "b": ["x", "y"], "c": [1.5, 2.0]}),
    "no last newline": Case("a,b\r\n1,2\r\n3,4", {"a": [1, 3], "b": [2, 4]}),
    "one column": Case("price\n1,5\n2,25\n", {"price": [1.5, 2.25]}, ("'1,5' is read as 1.5",)),
    "German Excel": Case(
        "Ort;Preis;Stück\nKöln;1.234,50;3\nBonn;9,99;1.000\n".encode("cp1252"),
        {"Ort": ["Köln", "Bonn"], "Preis": [1234.5, 9.99], "Stück": [3, 1000]},
        (
            "cp1252",
            "';' is taken for the separator",
            "'1.234,50' is read as 1234.5",
            "'1.000' is read as 1000 (or",
        ),
    ),
    "byte order mark": Case("\ufeffname,n\né,1\n".encode(), {"name": ["é"], "n": [1]}),
    "UTF-16 of Excel": Case(
        "a\tb\n1\té\n2\t\n".encode("utf-16"),
        {"a": [1, 2], "b": ["é", None]},
        ("utf-16", "separator"),
    ),
    "UTF-16 without mark": Case(
        "aa,bb\n1,2\n3,4\n".encode("utf-16-le"), {"aa": [1, 3], "bb": [2, 4]}, ("utf-16-le",)
    ),
    "UTF-16 of another order without mark": Case(
        "aa,bb\n1,2\n3,4\n".encode("utf-16-be"), {"aa": [1, 3], "bb": [2, 4]}, ("utf-16-be",)
    ),
    "told encoding": Case(
        "a,b\n1,ж\n".encode("cp1251"), {"a": [1], "b": ["ж"]}, csv={"encoding": "cp1251"}
    ),
    "separators in quotes": Case(
        'name,note\n"Smith, John","said ""hi"""\n"Lee","two\nlines"\n',
        {"name": ["Smith, John", "Lee"], "note": ['said "hi"', "two\nlines"]},
    ),
    "quotes for inches": Case('size,x\n5",1\n6,2\n', {"size": ['5"', "6"], "x": [1, 2]}),
    "columns of both decimal signs": Case(
        "a;b\n1,5;1.25\n2,5;2.75\n",
        {"a": [1.5, 2.5], "b": [1.25, 2.75]},
        ("separator", "'1,5' is read as 1.5"),
    ),
    "spaces before quotes": Case(
        'LatD, "NS", City\n41, "N", "Youngstown, OH"\n42, "S", "Yankton"\n',
        {"LatD": [41, 42], "NS": ["N", "S"], "City": ["Youngstown, OH", "Yankton"]},
    ),
    "spaces before one quote": Case('a, b\n1, "x, y"\n2, z\n', {"a": [1, 2], "b": ["x, y", "z"]}),
    "line breaks and commas in quotes": Case(
        'a;b\n1;"x, y\nz, w"\n2;"p, q\nr, s"\n',
        {"a": [1, 2], "b": ["x, y\nz, w", "p, q\nr, s"]},
        ("';' is taken for the separator",),
    ),
    "line breaks in the header": Case('a,"b\nc"\n1,2\n', {"a": [1], "b\nc": [2]}),
    "line breaks in the header, after a title": Case(
        'title\n\na,"b\nc",d\n1,2,3\n',
        {"a": [1], "b\nc": [2], "d": [3]},
        ("line 3 is the header, after 'title'",),
    ),
    "line breaks in the first row": Case(
        '1,"x\ny"\n2,z\n', {"x1": [1, 2], "x2": ["x\ny", "z"]}, csv={"header": False}
    ),
    "spaces after commas": Case(
        "age, work, income\n39, State-gov, <=50K\n50, ?, >50K\n",
        {"age": [39, 50], "work": ["State-gov", None], "income": ["<=50K", ">50K"]},
        ("'?' stands for no value in work",),
    ),
    "money": Case(
        'item,cost\na,"$1,234.50"\nb,($20.00)\nc,-$3\nd,N/A\n',
        {"item": ["a", "b", "c", "d"], "cost": [1234.5, -20.0, -3.0, None]},
        (r"'cost': '$1,234.50' is read as 1234.5", "'N/A'"),
    ),
    "percent": Case("rate\n12.5%\n-3%\n", {"rate": [12.5, -3.0]}, ("'12.5%' is read as 12.5",)),
    "some percent": Case("rate\n12.5%\n3\n", {"rate": ["12.5%", "3"]}),
    "two currencies": Case("cost\n$5\n€6\n", {"cost": ["$5", "€6"]}),
    "thousands": Case(
        'n\n"1,234"\n"12"\n"1,234,567"\n', {"n": [1234, 12, 1234567]}, ("'1,234' is read as 1234",)
    ),
    "ambiguous comma": Case(
        'n\n"1,234"\n"5,678"\n', {"n": [1234, 5678]}, ("or set data.csv.decimal",)
    ),
    "told comma": Case(
        'n\n"1,234"\n"5,678"\n', {"n": [1.234, 5.678]}, ("read as 1.234",), {"decimal": ","}
    ),
    "Swiss and French thousands": Case(
        "a;b\n1'234.5;1 234\n10;2 000 000\n",
        {"a": [1234.5, 10.0], "b": [1234, 2000000]},
        ("separator", "1'234.5", "'1 234'"),
    ),
    "three decimals": Case(
        "lat,lon\n61.123,24.567\n60.000,25.100\n", {"lat": [61.123, 60.0], "lon": [24.567, 25.1]}
    ),
    "missing whole numbers": Case(
        "n,m\n1,9007199254740993\n,NA\n3,-9223372036854775808\n",
        {"n": [1, None, 3], "m": [9007199254740993, None, -(2**63)]},
        ("'NA' stands for no value in m",),
    ),
    "unsigned": Case("n\n18446744073709551615\n1\n", {"n": [2**64 - 1, 1]}),
    "beyond 64 bits": Case(
        "n\n123456789012345678901234567890\n1\n",
        {"n": ["123456789012345678901234567890", "1"]},
        ("more than 64 bits",),
    ),
    "leading zeros": Case(
        "zip\n01234\n98765\n", {"zip": ["01234", "98765"]}, ("01234 begins with a zero",)
    ),
    "signs and exponents": Case(
        "x\n+1\n-2e3\n.5\n\u22124\n", {"x": [1.0, -2000.0, 0.5, -4.0]}, ("'+1' is read as 1",)
    ),
    "truth": Case(
        "a,b,c\ntrue,yes,0\nFALSE,no,1\n,,\n",
        {"a": [True, False], "b": ["yes", "no"], "c": [0, 1]},
        ("1 rows without any value",),
    ),
    "blood groups": Case("g\n+\n-\n", {"g": ["+", "-"]}),
    "dash for nothing": Case(
        "g,n\nx,-\n-,5\n", {"g": ["x", None], "n": [None, 5]}, ("'-' stands for no value in g, n",)
    ),
    "told missing": Case(
        "g,n\nNA,-99\nx,5\n", {"g": ["NA", "x"], "n": [None, 5]}, ("'-99'",), {"missing": ["-99"]}
    ),
    "nothing at all": Case("a,b\n1,\n2,\n", {"a": [1, 2], "b": [None, None]}),
    "dates stay as they are written": Case(
        "d,t\n03/04/2024,2024-04-03T10:00:00Z\n25/12/2023,2023-12-25T00:00:00Z\n",
        {"d": ["03/04/2024", "25/12/2023"], "t": ["2024-04-03T10:00:00Z", "2023-12-25T00:00:00Z"]},
    ),
    "comments": Case(
        "# made by a tool\n# on Monday\na,b\n1,2\n# half\n3,4\n#5,6\n",
        {"a": [1, 3], "b": [2, 4]},
        ("comments",),
    ),
    "header in a comment": Case(
        "#chrom\tstart\nchr1\t5\nchr2\t7\n",
        {"chrom": ["chr1", "chr2"], "start": [5, 7]},
        ("separator", "comments"),
    ),
    "comment as wide as the table": Case(
        "# made, on Monday\na,b\n1,2\n", {"a": [1], "b": [2]}, ("comments",)
    ),
    "header in the second comment": Case(
        "## version 4\n#chrom\tstart\nchr1\t5\n5\t7\n",
        {"chrom": ["chr1", "5"], "start": [5, 7]},
        ("separator", "comments"),
    ),
    "hash before values": Case(
        "colour,n\n#ff0000,1\n#00ff00,2\n", {"colour": ["#ff0000", "#00ff00"], "n": [1, 2]}
    ),
    "hash in values": Case(
        "id,colour\n1,#ff0000\n2,#00ff00\n", {"id": [1, 2], "colour": ["#ff0000", "#00ff00"]}
    ),
    "title and blank lines": Case(
        "\n\nSales 2024\n\na,b,c\n1,2,3\n4,5,6\n\n\n   \n",
        {"a": [1, 4], "b": [2, 5], "c": [3, 6]},
        ("line 5 is the header, after 'Sales 2024'",),
    ),
    "separator line of Excel": Case(
        "sep=;\na;b;c\n1;2,5;3\n2;3,5;4\n",
        {"a": [1, 2], "b": [2.5, 3.5], "c": [3, 4]},
        ("'2,5' is read as 2.5",),
    ),
    "values like Excel's line": Case("option\nsep=;\nmode=x\n", {"option": ["sep=;", "mode=x"]}),
    "separator line in quotes": Case('"sep=\t"\r\na\tb\r\n1\t2\r\n', {"a": [1], "b": [2]}),
    "separator line, padded": Case("\nsep=,,,\na,b,c\n1,2,3\n", {"a": [1], "b": [2], "c": [3]}),
    "separator line without header": Case(
        "sep=|\n1|a\n2|b\n", {"x1": [1, 2], "x2": ["a", "b"]}, csv={"header": False}
    ),
    "separator line and another separator": Case(
        "sep=;\na|b\n1|2\n", {"a": [1], "b": [2]}, csv={"separator": "|"}
    ),
    "title one narrower": Case(
        "Sales, 2020\nregion,units,price\nx,1,2\ny,3,4\n",
        {"region": ["x", "y"], "units": [1, 3], "price": [2, 4]},
        ("line 2 is the header, after 'Sales, 2020'",),
    ),
    "title of words, one narrower": Case(
        "Sales, north\nregion,units,price\nx,1,2\ny,3,4\n",
        {"region": ["x", "y"], "units": [1, 3], "price": [2, 4]},
        ("line 2 is the header, after 'Sales, north'",),
    ),
    "title as wide": Case(
        "Sales, Q1, 2020\nregion,units,price\nx,1,NA\ny,3,4\n",
        {"region": ["x", "y"], "units": [1, 3], "price": [None, 4]},
        ("line 2 is the header, after 'Sales, Q1, 2020'", "'NA'"),
    ),
    "title above texts": Case(
        "Sales, 2020\nregion,kind,unit\nx,b,c\n",
        {"region": ["x"], "kind": ["b"], "unit": ["c"]},
        ("line 2 is the header, after 'Sales, 2020'",),
    ),
    "title as wide, above gaps": Case(
        "Sales, Q1, 2020\nregion,units,price\nx,1,NA\ny,NA,4\n",
        {"region": ["x", "y"], "units": [1, None], "price": [None, 4]},
        ("line 2 is the header, after 'Sales, Q1, 2020'", "'NA'"),
    ),
    "a year as name, above nothing": Case(
        "city,kind,2020\nregion,kind,unit\nx,b,\ny,c,\n",
        {"city": ["region", "x", "y"], "kind": ["kind", "b", "c"], "2020": ["unit", None, None]},
    ),
    "years as names, above texts": Case(
        "country,2019,2020\nland,low,high\nNauru,few,x\nChile,3,4\nPeru,5,6\n",
        {
            "country": ["land", "Nauru", "Chile", "Peru"],
            "2019": ["low", "few", "3", "5"],
            "2020": ["high", "x", "4", "6"],
        },
    ),
    "years as names": Case(
        "country,2019,2020\nNauru,NA,x\nChile,3,4\n",
        {"country": ["Nauru", "Chile"], "2019": [None, 3], "2020": ["x", "4"]},
        ("'NA'",),
    ),
    "a text above numbers": Case(
        "name,age\nBo,unknown\nAl,5\n", {"name": ["Bo", "Al"], "age": ["unknown", "5"]}
    ),
    "empty rows of Excel": Case(
        "a;b\n1;2\n;\n;\n", {"a": [1], "b": [2]}, ("separator", "2 rows without any value")
    ),
    "separator at the end": Case("a,b,\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}),
    "separator at the end of rows alone": Case(
        "a,b\n1,2,\n4,5,\n", {"a": [1, 4], "b": [2, 5]}, ("name less: the last column is empty",)
    ),
    "names": Case(
        " a b ,x,x,\n1,2,3,4\n",
        {"a b": [1], "x": [2], "x.1": [3], "Unnamed: 3": [4]},
        ("'x' stands above several columns",),
    ),
    "row names of R": Case(
        '"mpg","cyl"\n"Mazda",21,6\n"Fiat",32.4,4\n',
        {"Unnamed: 0": ["Mazda", "Fiat"], "mpg": [21.0, 32.4], "cyl": [6, 4]},
        ("one name less",),
    ),
    "row names of R, above a gap": Case(
        '"mpg","kind"\n"Mazda",NA,"x"\n"Fiat",32.4,"y"\n',
        {"Unnamed: 0": ["Mazda", "Fiat"], "mpg": [None, 32.4], "kind": ["x", "y"]},
        ("one name less: the first column is the rows' names", "'NA'"),
    ),
    "row names of R, beside gaps": Case(
        '"a","b"\n"r",1,"x"\n"s",2,"y"\n"t",3,""\n',
        {"Unnamed: 0": ["r", "s", "t"], "a": [1, 2, 3], "b": ["x", "y", None]},
        ("one name less: the first column is the rows' names",),
    ),
    "row names of R, above a gap in the last row": Case(
        '"a","b"\n"r",1,"x"\n"s",2,""\n',
        {"Unnamed: 0": ["r", "s"], "a": [1, 2], "b": ["x", None]},
        ("one name less: the first column is the rows' names",),
    ),
    "row names of R, of texts": Case(
        '"a","b"\n"r","x","y"\n"s","z","w"\n',
        {"Unnamed: 0": ["r", "s"], "a": ["x", "z"], "b": ["y", "w"]},
        ("one name less: the first column is the rows' names",),
    ),
    "row names of R, years": Case(
        '"n","2020"\n"Chile",3,4\n"Peru",5,6\n',
        {"Unnamed: 0": ["Chile", "Peru"], "n": [3, 5], "2020": [4, 6]},
        ("one name less",),
    ),
    "no header": Case("1,a\n2,b\n", {"x1": [1, 2], "x2": ["a", "b"]}, csv={"header": False}),
    "told all": Case(
        "junk\na|b\n'x|y'|1\n",
        {"a": ["x|y"], "b": [1]},
        csv={"separator": "|", "quote": "'", "skip": 1},
    ),
    "backslashes": Case(
        'a,b\n"say \\"hi\\", now",1\n', {"a": ['say "hi", now'], "b": [1]}, csv={"escape": "\\"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_files_as_people_have_them(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    content = case.content if isinstance(case.content, bytes) else case.content.encode()
    (tmp_path / "t.csv").write_bytes(content)
    found = read(tmp_path / "t.csv", **case.csv)
    assert found.table.to_pydict() == case.columns
    for column, values in case.columns.items():  # 1 == 1.0 == True in Python
        assert list(map(type, found.table[column].to_pylist())) == list(map(type, values))
    assert len(found.notes) == len(case.says), found.notes
    for part, note in zip(case.says, found.notes, strict=True):
        assert part in note, found.notes


BAD = {
    "too long": (
        "a,b\n1,2\n1,2,3\n4,5,6\n7,8\n",
        "row 2 below the header has 3 values, .* 2 columns .and 1 more",
    ),
    "too short": ("a,b,c\n1,2,3\n1,2\n4,5,6\n", "row 2 below the header has 2 values"),
    "footer": ("a,b\n1,2\n3,4\n5,6\nTotal: 345\n", "row 4 .*'Total: 345'"),
    "no header": ("1.5,2\n3,4\n", r"data.csv.header=false"),
    "no header but a comment": ("# made by me\n1\n2\n", r"data.csv.header=false"),
    "no rows": ("a,b\n", "has 0 rows"),
    "nothing": ("", "holds no rows"),
    "blank": ("\n  \n", "holds no rows"),
    "one row too short": ("a,b,c\n1,2\n4,5,6\n", r"but there are 3 columns: '1,2'; repair"),
    "zeros": ("a,b\n1,\x00\n", "line 2 holds a zero byte"),
    "open quote": ('a,b\n1,"x\n2,3\n', "row 1 below the header opens a quote .* never closed"),
    "third quote open": ('a,b\n1,"x"\n2,"y\n2,3\n', "row 2 below the header opens a quote"),
    "open quote far above": ('a\n1\n"' + "2\n" * 2**21, "row 2 below the header opens a quote"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, says = BAD[name]
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / "bad.csv")
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def notes_on(content: str, **csv: Any) -> tuple[str, ...]:
    return read_csv(content.encode(), CsvConfig(**csv)).notes


def test_only_a_number_that_could_be_another_is_doubted() -> None:
    doubt = " (or set data.csv.decimal)"
    assert notes_on('n\n"1,234"\n') == ("column 'n': '1,234' is read as 1234" + doubt,)
    assert notes_on("n|m\n1,5|2.5\n")[1:] == ("column 'n': '1,5' is read as 1.5",)
    assert notes_on('n\n"1,234"\n', decimal=",") == ("column 'n': '1,234' is read as 1.234",)
    assert notes_on("n\n+1\n") == ("column 'n': '+1' is read as 1",)


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " and 1 more"), (8, " and 3 more")])
def test_a_note_names_five_columns_at_most(count: int, more: str) -> None:
    names = [f"c{i}" for i in range(count)]
    text = "\n".join([",".join(names), ",".join(["NA"] * count), ",".join("1" * count)])
    assert notes_on(text) == (f"'NA' stands for no value in c0, c1, c2, c3, c4{more}",)


def test_rows_are_read_however_long_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow reads none that is longer than two of its blocks."""
    rows = [("x", 10), ("y" * 3000, 1), ("two\nlines " * 30, 3), ("\U0001d4b3" * 1000, 2)]
    body = "".join(f'{number},"{text}"\n' for text, number in rows)
    for block in (10, 1000, 2**20):
        monkeypatch.setattr(texts, "SMALLEST_BLOCK", block)
        found = read_csv(f"number,text\n{body}".encode(), CsvConfig()).table
        assert found["text"].to_pylist() == [text for text, _ in rows]
        assert found["number"].to_pylist() == [number for _, number in rows]
    monkeypatch.setattr(texts, "SMALLEST_BLOCK", 10)
    monkeypatch.setattr(texts, "LARGEST_BLOCK", 1000)
    with pytest.raises(DataError, match=r"x\.csv: no table as CSV"):
        read_rows(f"number,text\n{body}".encode(), "x.csv")
    monkeypatch.setattr(texts, "LARGEST_BLOCK", 997)
    many = "a,b\n" + '1,"x\ny\nz"\n' * 500  # a block ends with a row, not with any line
    monkeypatch.setattr(texts, "SMALLEST_BLOCK", 997)
    assert read_csv(many.encode(), CsvConfig()).table["b"].to_pylist() == ["x\ny\nz"] * 500


def test_wrong_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,\x81\n")
    with pytest.raises(DataError, match=r"line 2 holds byte 0x81, .*data\.csv\.encoding"):
        read(tmp_path / "t.csv")
    with pytest.raises(DataError, match="there is no 'klingon'"):
        read(tmp_path / "t.csv", encoding="klingon")


@pytest.mark.parametrize("told", ["separator", "quote", "escape", "comment"])
def test_what_marks_something_in_a_file_is_not_empty_and_mostly_one_letter(told: str) -> None:
    assert getattr(CsvConfig(**{told: ";"}), told) == ";"
    for text in ("",) if told == "comment" else ("", ";;"):
        with pytest.raises(ValidationError, match=told):
            CsvConfig(**{told: text})


def test_no_line_or_some_are_skipped() -> None:
    assert find_dialect("a,b\n1,2\n", CsvConfig(skip=0)).first_line == 1
    with pytest.raises(ValidationError, match="skip"):
        CsvConfig(skip=-1)


def test_columns_are_counted_before_they_are_read() -> None:
    """By the rows and by the header, which may be narrower, or a row that is wider."""
    for text, csv in (
        ("a,b,c\n1,2,3\n", CsvConfig()),
        ("a,b\nr,2,3\ns,4,5\n", CsvConfig()),
        ("1,2,3\n1,2\n1,2\n", CsvConfig(header=False)),
    ):
        find_dialect(text, csv, max_columns=3)
        with pytest.raises(ShapeError, match="has 3 columns, of which at most 2 are read"):
            find_dialect(text, csv, max_columns=2)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.csv\.seperator: no such key; did you mean 'sep"):
        parse_data({"source": "t.csv", "csv": {"seperator": ";"}})


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    def zst(plain: bytes) -> bytes:
        return pa.Codec("zstd").compress(plain, asbytes=True)  # type: ignore[no-any-return]

    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}
    for name, content in ("t.csv", b"a,b\n1,2\n"), ("t.v2.tsv", b"a\tb\n1\t2\n"):
        path = tmp_path / (name + suffix)
        path.write_bytes(compress[suffix](content))
        found = read(path)
        assert found.table.to_pydict() == {"a": [1], "b": [2]}
        assert found.name == name.removesuffix(".csv").removesuffix(".tsv")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("days", [12, 28])
def test_days_that_may_be_months_are_named(days: int) -> None:
    dates = [f"{day:02}/{month:02}/2024" for day in range(1, days + 1) for month in range(1, 13)]
    found = find_kind("d", pa.array(dates), ColumnConfig())
    assert found.kind == "time"
    assert found.note == "01/01/2024 could begin with the day or the month: taken for the day" * (
        days == 12
    )


def test_typed_files_keep_their_types(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "n": pd.array([1, None, 2**62 + 1], "Int64"),
            "when": pd.to_datetime(["2024-01-01", None, "2024-01-03"]),
            "kind": pd.Categorical(["a", "b", "a"]),
            "price": pa.array([1, 2, None], pa.decimal128(10, 2)),
        },
        index=[5, 7, 9],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = pa.Table.from_pandas(frame)
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as out,
    ):
        out.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        found = read(tmp_path / name)
        assert found.notes == ()
        assert found.table["n"].to_pylist() == [1, None, 2**62 + 1]
        assert found.table["when"].to_pylist()[2] == datetime.datetime(2024, 1, 3)
        assert found.table["kind"].to_pylist() == ["a", "b", "a"]
    frame.rename_axis("year").to_parquet(tmp_path / "named.parquet")
    assert read(tmp_path / "named.parquet").table["year"].to_pylist() == [5, 7, 9]


# ---- rows for a model, by its schema ------------------------------------------------------------


def fitted(path: Path, **csv: Any) -> TableSchema:
    """The schema that training finds in a file."""
    config = parse_data({"source": str(path), "csv": csv})
    raw = load_table(locate(str(path)), config)
    return code_table(raw, config, None).schema


@pytest.fixture
def german(tmp_path: Path) -> Path:
    """Decimal commas, and a category of which some texts are numbers and some are not."""
    rng = np.random.default_rng(0)
    lines = ["Preis;Code;Art;Neu"] + [
        f"{x:.3f};{code};{kind};{new}".replace(".", ",", 1)
        for x, code, kind, new in zip(
            rng.gamma(2, 3, 200),
            rng.choice(["1.0", "2.50", "3+", "NA-1"], 200),
            rng.choice(["true", "false", "perhaps"], 200),
            rng.choice(["true", "false"], 200),
            strict=True,
        )
    ]
    path = tmp_path / "german.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_few_rows_are_read_as_the_file_that_was_trained_on(german: Path) -> None:
    schema = fitted(german)
    assert schema.decimal == ","
    notes = list[str]()
    few = b"Preis;Code;Art;Neu\n1,234;2.50;true;true\n9,876;1.0;false;false\n"
    rows = typed(schema, read_rows(few, "few.csv", schema, say=notes.append))
    assert rows.to_pydict() == {
        "Preis": [1.234, 9.876],
        "Code": ["2.50", "1.0"],
        "Art": ["true", "false"],
        "Neu": [True, False],
    }
    assert any("';' is taken for the separator" in note for note in notes)
    assert not any("data.csv" in note for note in notes), "nothing can be set here"
    # A file of another dialect, such as the samples': its commas are separators.
    plain = b"Preis,Code,Art,Neu\n1.234,2.50,true,true\n9.876,1.0,false,false\n"
    assert typed(schema, read_rows(plain, "plain.csv", schema)).equals(rows)
    for method in (gzip.compress, bz2.compress, lzma.compress):
        assert decompressed(method(few)) == few


def test_the_other_reader_of_rows_for_a_model_reads_them_alike(
    german: Path, tmp_path: Path
) -> None:
    schema = fitted(german)
    path = tmp_path / "next.csv"
    path.write_text("Preis;Code;Art;Neu\n1,234;2.50;true;true\n9,876;1.0;false;false\n")
    config = parse_data({"source": str(path)})
    again = load_table(locate(str(path)), config, schema).table
    assert again.equals(read_rows(path.read_bytes(), "next.csv", schema))


def test_what_was_told_in_training_holds_for_rows(tmp_path: Path) -> None:
    path = tmp_path / "told.csv"
    lines = ["a|b"] + [f"{'-99' if i % 4 == 0 else i}|x{i % 3}" for i in range(200)]
    path.write_text("\n".join(lines))
    schema = fitted(path, missing=["-99"])
    config = parse_data({"source": str(path), "csv": {"missing": ["-99"]}}).csv
    rows = read_rows(b"a|b\n-99|x1\n|x2\n5|NA\n", "x.csv", schema, config)
    assert rows.to_pydict() == {"a": [None, None, 5], "b": ["x1", "x2", "NA"]}


def test_no_value_and_a_category_of_the_same_text(tmp_path: Path) -> None:
    path = tmp_path / "countries.parquet"
    pyarrow.parquet.write_table(pa.table({"land": ["NA", "DE", "-"] * 70, "n": range(210)}), path)
    schema = fitted(path)
    rows = read_rows(b"land,n\nNA,1\n-,2\n?,3\n", "x.csv", schema)
    assert rows["land"].to_pylist() == ["NA", "-", None]


def test_rows_without_a_value_are_gaps_of_rows_for_a_model(german: Path) -> None:
    schema = fitted(german)
    rows = read_rows(b"Preis;Code;Art;Neu\n;;;\n1,5;1.0;true;true\n", "x.csv", schema)
    assert rows["Preis"].to_pylist() == [None, 1.5]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2,3\n", "x.csv: row 1 below the header has 3 values"),
        (b"", "x.csv: holds no rows"),
        (b"a\0,b\n", "zero byte"),
        (b"PAR1 and no more", "no table as CSV, Parquet or Arrow"),
    ],
)
def test_broken_rows_for_a_model(content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_rows(content, "x.csv")


# ---- many columns ------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["a", "a.1", "a.2", "a.1.1", "b", ""]), min_size=2, max_size=12))
def test_names_that_stand_twice_get_the_first_free_number(names: list[str]) -> None:
    free = list[str]()
    for i, name in enumerate(names):
        first = name or f"Unnamed: {i}"
        numbered = (first, *(f"{first}.{k}" for k in range(1, len(names) + 1)))
        free.append(next(candidate for candidate in numbered if candidate not in free))
    text = ",".join(names) + "\n" + ",".join("x" for _ in names) + "\n"
    assert list(find_dialect(text, CsvConfig()).names) == free


@pytest.mark.parametrize("name", ["c{}", "the same", ""])
def test_the_time_that_a_header_takes_grows_as_its_length(name: str) -> None:
    text = ",".join(name.format(i) for i in range(100_000)) + "\n"
    began = time.process_time()
    names = find_dialect(text, CsvConfig()).names
    assert len(set(names)) == 100_000
    assert time.process_time() - began < 5, "minutes if each name were compared with all others"


def test_a_header_longer_than_what_is_looked_at_is_read(tmp_path: Path) -> None:
    names = [f"{'x' * 100}{i}" for i in range(3000)]
    lines = [",".join(names), *(",".join(map(str, range(3000))) for _ in range(3))]
    assert len(lines[0]) > SAMPLE
    path = tmp_path / "wide.csv"
    path.write_text("\n".join(lines) + "\n")
    raw = read(path)
    assert list(raw.columns) == names
    assert raw.table.to_pydict() == {name: [i] * 3 for i, name in enumerate(names)}


def test_rows_longer_than_a_block_of_arrow_s_are_read(tmp_path: Path) -> None:
    cells = ["x" * 500 + str(i) for i in range(3000)]
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([",".join(f"c{i}" for i in range(3000)), *[",".join(cells)] * 3]))
    table = read(path).table
    assert [table[f"c{i}"].to_pylist() for i in range(3000)] == [[cell] * 3 for cell in cells]


def test_a_table_of_50_000_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.arrow"
    wide = pa.table([[1]] * 50_000, names=[f"c{i}" for i in range(50_000)])
    pyarrow.feather.write_feather(wide, str(path))
    began = time.process_time()
    assert len(read(path).columns) == 50_000
    assert time.process_time() - began < 10
