"""Rows of a table over HTTP, and by the client."""

import concurrent.futures
import contextlib
import functools
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from models.errors import ConditionError
from models.images import encode_png
from models.tables import parse_conditions
from models.tables.files import write_rows
from models.trained import load
from service.client import Client, UnsuitableError
from service.endpoints.samples import MEDIA_TYPES
from tests.code_blocks import shell, to_run
from tests.mixed import people
from tests.servers import Server, is_problem, worker
from wgan_cli import main

GAPS: list[dict[str, Any]] = [{"age": 40, "home": None}, {"home": "own", "income": 0.5}]


@pytest.fixture
def server(rows_server: Server) -> Server:
    return rows_server


def of_a_table(block: str) -> bool:
    """Whether a block of the service's page asks a model of rows."""
    return "rows.csv" in block or "wine" in block


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return server.client.post(f"/v1/{path}", json=body)


WHERE = {"home": "own", "age": {"above": 40}, "income": None, "member": [True, False]}


@pytest.mark.parametrize("format", ["csv", "parquet", "arrow", "npz", "json"])
def test_rows_under_conditions_in_every_format(server: Server, format: str) -> None:
    response = server.samples(count=5000, seed=7, where=WHERE, format=format)
    assert response.status_code == 200, response.text
    file = io.BytesIO(response.content)
    match format:
        case "csv":
            frame = pd.read_csv(file)
        case "parquet":
            frame = pd.read_parquet(file)
        case "arrow":
            frame = pd.read_feather(file)
        case "npz":
            with np.load(file) as arrays:
                frame = pd.DataFrame(dict(arrays))
        case _:
            frame = pd.DataFrame(response.json()["samples"])
            assert response.json()["seed"] == 7
    assert len(frame) == 5000
    assert (frame.home == "own").all()
    assert (frame.age > 40).all()
    assert frame.age.dtype == np.int64
    assert frame.member.dtype == bool
    assert frame.income.isna().all()
    assert frame.id.is_unique
    again = server.samples(count=5000, seed=7, where=WHERE, format=format)
    assert again.content == response.content


SAME: list[tuple[dict[str, Any], list[str]]] = [
    ({"home": "own", "member": True}, ["home=own", "member=true"]),
    ({"age": {"above": 30, "at_most": 40}}, ["age>30", "age<=40"]),
    ({"income": None, "age": {"none_of": [50]}}, ["income=", "age!=50"]),
    ({"income": {"missing": False}, "home": None}, ["income!=", "home="]),
    ({"since": {"at_least": "2021-06-01", "below": "2021-07-01"}},
     ["since>=2021-06-01", "since<2021-07-01"]),
    ({"since": "2021-08-23", "income": {"below": 0.5}}, ["since=2021-08-23", "income<0.5"]),
    ({"home": ["own", "rent, old"]}, ["home=own", "home=rent, old"]),
    # What cannot be met:
    ({"age": {"above": 40, "below": 41}}, ["age>40", "age<41"]),
    ({"age": {"at_least": 60, "at_most": 20}}, ["age>=60", "age<=20"]),
    ({"age": None}, ["age="]),
    ({"since": {"above": "2021-02-30"}}, ["since>2021-02-30"]),
    ({"since": {"above": "2033-01-01"}}, ["since>2033-01-01"]),
    ({"home": {"above": "own"}}, ["home>own"]),
    ({"country": "NL"}, ["country=NL"]),
]  # fmt: skip


@pytest.mark.parametrize(("where", "texts"), SAME)
def test_conditions_are_the_same_by_http_python_and_command(
    server: Server, tmp_path: Path, where: dict[str, Any], texts: list[str]
) -> None:
    trained, out = load(str(server.artifact)), tmp_path / "rows.parquet"
    options = [part for text in texts for part in ("--where", text)]
    command = ["sample", str(server.artifact), "-n", "40", "--seed", "3", "--out", str(out)]
    response = server.samples(count=40, seed=3, where=where, format="parquet")
    if response.status_code == 200:
        frame = pd.read_parquet(io.BytesIO(response.content))
        assert main([*command, *options]) == 0
        pd.testing.assert_frame_equal(frame, pd.read_parquet(out))
        pd.testing.assert_frame_equal(
            frame, trained.sample(40, seed=3, where=where), check_dtype=False
        )
        return
    says = is_problem(response, 422)["detail"]
    assert next(iter(where)) in str(says)
    with pytest.raises(ConditionError) as caught:
        trained.sample(40, seed=3, where=where)
    assert str(caught.value) == says
    with pytest.raises(ConditionError) as caught:
        trained.model.restrict(parse_conditions(texts))
    assert str(caught.value).replace("'", "") == str(says).replace("'", "")
    assert main([*command, *options]) == 2


@pytest.mark.parametrize(
    ("where", "status", "says"),
    [
        ({"hom": "own"}, 422, "no column 'hom'; did you mean 'home'?"),
        ({"home": "castle"}, 422, "no category 'castle'"),
        ({"age": {"above": 400}}, 422, "age is from 18 to 89"),
        ({"age": None}, 422, "never missing"),
        ({"age": {"over": 4}}, 400, "/where/age/over"),
        ({"age": {}}, 400, "says nothing"),
        ({"age": []}, 400, "at least 1"),
        ({"home": [["own"]]}, 400, "/where/home"),
        ({"home": "o" * 1001}, 400, "1000 characters"),
        ({"home" * 300: "own"}, 400, "1000 characters"),
        ({"age": 10**400}, 400, "64 bits"),
        ({"age": list(range(2000))}, 400, "at most 1024"),
        ({}, 400, "/where"),
    ],
)
def test_conditions_that_cannot_be_met(
    server: Server, where: dict[str, Any], status: int, says: str
) -> None:
    problem = is_problem(server.samples(where=where, format="json"), status)
    assert says in json.dumps(problem)


def test_gaps_are_filled(server: Server) -> None:
    answer = post(server, "imputations", rows=GAPS, seed=3)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Seed"] == "3"
    first, second = answer.json()["rows"]
    assert first["age"] == first["years"] == 40
    assert first["home"] is not None
    assert (second["home"], second["income"]) == ("own", 0.5)
    assert answer.json() == post(server, "imputations", rows=GAPS, seed=3).json()
    seeds = [int(post(server, "imputations", rows=GAPS).headers["X-Seed"]) for _ in range(3)]
    assert all(seed < 2**53 for seed in seeds)  # JavaScript can send them back


@pytest.mark.parametrize(
    ("rows", "status", "says"),
    [
        ([{"hom": "own"}], 422, "did you mean 'home'"),
        ([{"home": "castle"}], 422, "unknown category 'castle'"),
        ([{"age": "forty"}], 422, "column 'age'"),
        ([{"age": [1]}], 422, "column 'age'"),
        ([{"age": {"a": 1}}], 422, "column 'age'"),
        ([{"age": 10**400}], 422, "column 'age'"),
        ([{"age": 1}, {"age": "x"}], 422, "column 'age'"),
        ([{"home": "c" * 10**6}], 422, "unknown category"),
        ([{"x" * 10**6: 1}], 422, "no column"),
        ([{"age": 40}] * 1025, 422, "at most 1024"),
        ([], 400, "/rows"),
        (["own"], 400, "/rows/0"),
    ],
)
def test_rows_that_are_refused(server: Server, rows: list[Any], status: int, says: str) -> None:
    for path in ("imputations", "scores"):
        response = post(server, path, rows=rows)
        problem = json.dumps(is_problem(response, status))
        assert says in problem or (path == "scores" and "no column 'age'" in problem)
        assert len(response.content) < 2000


def test_rows_are_scored_by_the_names_of_their_columns(server: Server) -> None:
    rows = server.samples(count=20, seed=1, format="json").json()["samples"]
    scores = post(server, "scores", rows=rows).json()["scores"]
    turned = [dict(reversed(row.items())) for row in rows]
    assert post(server, "scores", rows=turned).json()["scores"] == scores
    model = server.model
    codes = np.concatenate(list(model.samples(1, 20)))
    assert len(scores) == len(codes)
    is_problem(post(server, "scores", samples=codes.tolist()), 422)
    is_problem(post(server, "scores", samples=[], rows=rows), 400)
    del rows[0]["age"]
    assert "age" in str(is_problem(post(server, "scores", rows=rows), 422)["detail"])


def test_pictures_are_refused(server: Server) -> None:
    assert "parquet" in str(is_problem(server.samples(count=1, format="png"), 422)["detail"])
    assert server.samples(count=1).json()["samples"][0]["home"]  # rows, where nothing is asked for
    files = [("files", ("a.png", encode_png(np.zeros((8, 8, 1), np.uint8))))]
    is_problem(server.client.post("/v1/scores", files=files), 415)


def test_files_of_rows_are_scored_as_records_are(server: Server, tmp_path: Path) -> None:
    record = server.samples(count=60, seed=1, format="json").json()["samples"]
    scores = post(server, "scores", rows=record).json()["scores"]
    files = {
        format: server.samples(count=60, seed=1, format=format).content
        for format in ("csv", "parquet", "arrow")
    }
    frame = pd.read_parquet(io.BytesIO(files["parquet"]))
    frame = frame[frame.columns[::-1]].assign(home=frame.home.astype("category"))
    out = io.BytesIO()
    frame.to_feather(out, compression="zstd")
    files["feather"] = out.getvalue()
    files["text"] = frame.to_csv(index=False, sep=";", decimal=",").encode("utf-16")
    for format, content in files.items():
        kind = MEDIA_TYPES.get(format, MEDIA_TYPES["arrow"])
        headers = {"content-type": kind}
        raw = server.client.post("/v1/scores", content=content, headers=headers)
        assert raw.json()["scores"] == scores, format
        (tmp_path / format).write_bytes(content)
    parts = [("files", (name, content)) for name, content in files.items()]
    form = server.client.post("/v1/scores", files=parts)
    assert form.json()["scores"] == scores * len(files)
    with Client(str(server.client.base_url)) as client:
        assert client.score_files(tmp_path / "parquet").scores.tolist() == scores


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"age,home\n40,own\n", 422, "file 0 (rows.csv): no column"),
        (b"age\nforty\n", 422, "column 'age': not int64"),
        (b"PAR1 and no more", 415, "no table as CSV, Parquet or Arrow"),
        (b"ARROW1 and no more", 415, "no table as CSV, Parquet or Arrow"),
        (b"age\n" + b"40\n" * 1025, 422, "at most 1024 rows"),
        (b"age,home,income,member,since\n", 422, "no rows"),
    ],
)
def test_files_of_rows_that_are_refused(
    server: Server, content: bytes, status: int, says: str
) -> None:
    answer = server.client.post("/v1/scores", files=[("files", ("rows.csv", content))])
    assert says in str(is_problem(answer, status)["detail"])


def read(content: bytes, format: str) -> pd.DataFrame:
    """Rows in a file; dates as texts, which is what CSV and npz files have."""
    file = io.BytesIO(content)
    match format:
        case "json":
            frame = pd.DataFrame(json.loads(content)["rows"])
        case "npz":
            with np.load(file) as arrays:
                frame = pd.DataFrame(dict(arrays))
        case "csv":
            frame = pd.read_csv(file)
        case _:
            frame = {"parquet": pd.read_parquet, "arrow": pd.read_feather}[format](file)
    return frame.assign(since=frame.since.astype(str), home=frame.home.astype(str))


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_files_of_rows_with_gaps_come_back_completed(server: Server, kind: str) -> None:
    gaps = people(60).to_pandas().drop(columns=["member", "country"])
    gaps.loc[::2, "age"] = None
    gaps.loc[::2, "years"] = None
    gaps.loc[::3, "home"] = None
    gaps["since"] = gaps.since.where(gaps.index % 4 > 0)
    rows = pa.Table.from_pandas(gaps, preserve_index=False)
    content = b"".join(write_rows([rows], kind))
    expected = load(str(server.artifact)).impute(rows, seed=3)
    expected = expected.assign(since=expected.since.astype(str), home=expected.home.astype(str))
    assert not expected.isna().any(axis=None)
    headers = {"content-type": MEDIA_TYPES[kind]}
    for format in (None, "json", "csv", "npz", "parquet", "arrow"):
        query = {"seed": "3", **({} if format is None else {"format": format})}
        raw = server.client.post("/v1/imputations", params=query, content=content, headers=headers)
        assert raw.status_code == 200, raw.text
        assert raw.headers["X-Seed"] == "3"
        assert raw.headers["content-type"] == MEDIA_TYPES[format or kind]
        frame = read(raw.content, format or kind)
        pd.testing.assert_frame_equal(frame, expected, check_dtype=False)
        parts = [("files", ("x", content))]
        form = server.client.post("/v1/imputations", params=query, files=parts)
        assert form.content == raw.content
    body = {"rows": GAPS, "seed": 3, "format": kind}
    as_file = server.client.post("/v1/imputations", json=body)
    assert as_file.headers["content-type"] == MEDIA_TYPES[kind]
    told = pd.DataFrame(post(server, "imputations", rows=GAPS, seed=3).json()["rows"])
    pd.testing.assert_frame_equal(read(as_file.content, kind), told, check_dtype=False)


@pytest.mark.parametrize(
    ("content", "query", "status", "says"),
    [
        (b"age,hom\n40,own\n", {}, 422, "did you mean 'home'"),
        (b"age\nforty\n", {}, 422, "column 'age': not int64"),
        (b"home\ncastle\n", {}, 422, "unknown category 'castle'"),
        (b"PAR1 and no more", {}, 415, "the body: no table as CSV, Parquet or Arrow"),
        (b"age\n" + b"40\n" * 1025, {}, 422, "at most 1024 rows"),
        (b"age,home\n", {}, 422, "no rows"),
        (b"age\n40\n", {"seed": "-1"}, 400, "/seed"),
        (b"age\n40\n", {"seed": "first"}, 400, "/seed"),
        (b"age\n40\n", {"format": "png"}, 400, "/format"),
        (b"age\n40\n", {"seeds": "1"}, 400, "/seeds"),
        (b"age\n40\n", {"model": "none@1"}, 404, "none@1 is not served"),
    ],
)
def test_files_of_rows_with_gaps_that_are_refused(
    server: Server, content: bytes, query: dict[str, str], status: int, says: str
) -> None:
    headers = {"content-type": "text/csv"}
    answer = server.client.post("/v1/imputations", params=query, content=content, headers=headers)
    assert says in json.dumps(is_problem(answer, status))


def test_ways_to_send_rows_with_gaps_that_are_refused(server: Server) -> None:
    one = ("files", ("x.csv", b"age\n40\n"))
    url = "/v1/imputations"
    assert "send one file" in str(is_problem(server.client.post(url, files=[one, one]), 400))
    form = server.client.post(url, files=[one], data={"seed": "3"})
    assert "the rest is in the query" in str(is_problem(form, 400))
    beside = server.client.post(url, params={"seed": "3"}, json={"rows": GAPS})
    assert "in the body" in str(is_problem(beside, 400))
    text = server.client.post(url, content=b"age", headers={"content-type": "text/plain"})
    assert "text/csv" in str(is_problem(text, 415))


def test_the_description_has_the_short_forms(server: Server) -> None:
    document = server.client.get("/docs.json").json()
    condition = document["components"]["schemas"]["Condition"]
    types = [form.get("type") for form in condition["anyOf"]]
    assert types == ["object", ["boolean", "number", "string"], "array", "null"]
    assert "/v1/imputations" in document["paths"]
    columns = server.client.get("/v1/model").json()["data"]["table"]["columns"]
    assert [column["name"] for column in columns][:2] == ["id", "age"]


def test_the_client(server: Server, tmp_path: Path) -> None:
    with Client(str(server.client.base_url)) as client:
        rows = client.rows(30, seed=2, where={"home": "own"})
        assert {row["home"] for row in rows.items} == {"own"}
        assert rows.origin.seed == 2
        assert len(client.score(rows.items).scores) == 30
        filled = client.impute(GAPS, seed=1, model="champion")
        assert filled.items[0]["age"] == 40
        (tmp_path / "gaps.csv").write_text("age,home\n40,\n,own\n")
        file = client.impute_file(tmp_path / "gaps.csv", seed=1, model="champion")
        assert file.origin.seed == 1
        assert file.content.startswith(b"age,home,")
        rows = json.loads(client.impute_file(tmp_path / "gaps.csv", 1, format="json").content)
        assert rows["rows"] == client.impute([{"age": 40}, {"home": "own"}], seed=1).items
        frame = pd.read_parquet(io.BytesIO(client.file("parquet", 5, seed=2).content))
        assert frame.id.tolist() == [row["id"] for row in client.rows(5, seed=2).items]
        with pytest.raises(UnsuitableError, match="did you mean"):
            client.rows(where={"hom": 1})


def test_files_of_rows_are_read_one_at_a_time(server: Server) -> None:
    """Each reader may take 256 MiB, however many processors there are."""
    content = server.samples(count=1000, seed=1, format="csv").content
    kind, tasks = {"content-type": "text/csv"}, worker(server) / "task"
    most = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        post = functools.partial(server.client.post, "/v1/scores", content=content, headers=kind)
        answers = [pool.submit(post) for _ in range(4)]
        while not all(answer.done() for answer in answers):
            with contextlib.suppress(OSError):  # a thread has ended
                readers = [(task / "children").read_text().split() for task in tasks.iterdir()]
                most = max(most, sum(map(len, readers)))
            time.sleep(0.01)
    assert {answer.result().status_code for answer in answers} == {200}
    assert most == 1


def test_the_commands_of_the_docs(server: Server, tmp_path: Path) -> None:
    rows = people(20)
    for name, table in (("rows", rows), ("gaps", rows.drop_columns(["home", "years"]))):
        (tmp_path / f"{name}.csv").write_bytes(b"".join(write_rows([table], "csv")))
    (tmp_path / "more.parquet").write_bytes(b"".join(write_rows([rows], "parquet")))
    for block in filter(of_a_table, to_run("docs/service.md", "sh")):
        text = block.replace("127.0.0.1:3000", f"127.0.0.1:{server.port}")
        shell(text.replace("/models/wine/", "/models/artifact/"), tmp_path)
    for made in (
        pd.read_csv(tmp_path / "completed.csv"),
        pd.read_parquet(tmp_path / "completed.parquet"),
    ):
        assert made.age.tolist() == rows["age"].to_pylist()
        assert set(made.home) <= {"own", "rent, old"}
    assert len(pd.read_csv(tmp_path / "wine.csv")) == 64
