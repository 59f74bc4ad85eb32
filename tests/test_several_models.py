"""Several models in one process: each with its own paths, versions, metrics and exchanges."""

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import wgan_cli
from models import registry
from models.artifact import load_artifact
from models.errors import ConfigError
from models.tables.files import records
from service import holders
from service import room as rooms
from service.client import Client, NotFoundError
from service.endpoints import ENDPOINTS
from service.holder import Slot
from service.room import NoRoom, Room, size_of
from service.settings import Settings
from tests.artifacts import make_artifact
from tests.registries import Registry, until
from tests.servers import (
    WGAN,
    Server,
    families,
    free_port,
    is_problem,
    running,
    sign,
    spoil_weights,
    wait_for,
)
from tests.test_app import made, talk
from tests.test_detector import with_detector
from training.tracking import track_and_register

WINDOW = 50
PARTS = ("generator", "critic")


class Several(Server):
    """A service of several artifact folders, by name."""

    def __init__(self, folder: Path, artifacts: dict[str, Path], **environment: str) -> None:
        self.environment = environment
        self.artifacts = artifacts
        self.port = free_port()
        self.log = folder / "log"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    @contextlib.contextmanager
    def running(self) -> Iterator["Several"]:
        command = [WGAN, "serve", "--port", self.port]
        command += [f"{name}={artifact}" for name, artifact in self.artifacts.items()]
        with running(command, self.port, self.log, **self.environment) as self.process, self.client:
            wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process, self.log)
            yield self


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    kinds = {"digits": "image", "Leute & Löhne": "rows"}
    return {
        name: make_artifact(folder / kind / "artifact", kind, seed=3)
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def both(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    folder = tmp_path_factory.mktemp("both")
    with Several(folder, artifacts, WGAN_DRIFT_WINDOW=str(WINDOW)).running() as found:
        yield found


IMAGES, ROWS = "/v1/models/digits", "/v1/models/Leute%20%26%20L%C3%B6hne"


def test_each_model_answers_as_a_service_of_its_own(
    both: Several, artifacts: dict[str, Path]
) -> None:
    for root, artifact, formats in (
        (IMAGES, artifacts["digits"], ("png", "zip", "npz", "json")),
        (ROWS, artifacts["Leute & Löhne"], ("csv", "npz", "parquet", "json")),
    ):
        app = made(WGAN_MODEL=str(artifact))

        async def ask(
            alone: httpx.AsyncClient, root: str = root, formats: tuple[str, ...] = formats
        ) -> None:
            for format in formats:
                body = {"count": 20, "seed": 7, "format": format}
                expected = await alone.post("/v1/samples", json=body)
                by_name = await alone.post("/v1/models/artifact/samples", json=body)
                found = both.client.post(f"{root}/samples", json=body)
                assert found.status_code == expected.status_code == 200, found.text
                assert found.content == expected.content == by_name.content
                assert found.headers["x-model-version"] == expected.headers["x-model-version"]
            for of_one, of_several in (
                ("/v1/model", root),
                ("/v1/model/samples.png", f"{root}/samples.png"),
            ):
                expected, found = await alone.get(of_one), both.client.get(of_several)
                if of_one == "/v1/model":
                    assert without_times(found.json()) == without_times(expected.json())
                else:
                    assert found.content == expected.content

        talk(app, ask)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "serving_since"}


def test_scores_imputations_and_drift_are_the_models_own(
    both: Several, artifacts: dict[str, Path]
) -> None:
    images = load_artifact(artifacts["digits"])
    people = load_artifact(artifacts["Leute & Löhne"])
    items = images.sample(5, WINDOW)
    answer = both.client.post(f"{IMAGES}/scores", json={"samples": items.tolist()})
    np.testing.assert_allclose(answer.json()["scores"], images.score(items), rtol=1e-5)
    with Client(str(both.client.base_url), name="Leute & Löhne") as client:
        rows = client.rows(10, seed=5)
        assert rows.items == records(people.rows(people.sample(5, 10), 5))
        assert len(client.score(rows.items).scores) == 10
        assert client.impute(rows.items, seed=1).items == rows.items
        assert client.drift()["items"] == 10
        assert client.model()["version"] == client.drift()["version"] == rows.origin.version
        assert client.picture() == people.picture
    assert both.client.get(f"{IMAGES}/drift").json()["items"] == WINDOW
    is_problem(both.client.post(f"{IMAGES}/imputations", json={"rows": [{"a": 1}]}), 422)


def test_a_path_without_a_model_or_of_an_unknown_one_is_a_404_that_names_those_served(
    both: Several,
) -> None:
    asked = 0
    before = both.client.get("/metrics").text.count("\n")
    for endpoint in (e for e in ENDPOINTS if e.by_name):
        body = {} if endpoint.method == "POST" else None
        strange = [
            endpoint.by_name.format(name=name) for name in ("wine", "Digits", "{}", "x" * 900)
        ]
        for path in strange:
            answer = both.client.request(endpoint.method, path, json=body)
            says = str(is_problem(answer, 404)["detail"])
            assert says.endswith("there are: digits, Leute & Löhne"), path
            asked += 1
    assert asked >= 24
    assert both.client.get("/metrics").text.count("\n") == before
    for endpoint in (e for e in ENDPOINTS if e.by_name):
        answer = both.client.request(endpoint.method, endpoint.path, json={})
        assert "digits, Leute & Löhne" in str(is_problem(answer, 404)["detail"])
    is_problem(both.client.get(f"{IMAGES}/samples"), 405)
    is_problem(both.client.get(f"{IMAGES}/else"), 404)
    with (
        Client(str(both.client.base_url)) as client,
        pytest.raises(NotFoundError, match="digits, Leute"),
    ):
        client.samples(1)
    version = both.client.get(ROWS).json()["version"]
    is_problem(both.client.get(IMAGES, params={"model": version}), 404)  # of the other
    assert both.client.get(ROWS, params={"model": version}).status_code == 200


def test_metrics_and_the_log_tell_the_model(both: Several) -> None:
    def values(metric: str, **wanted: str) -> float:
        rows = families(both).get(metric, [])
        return sum(value for labels, value in rows if wanted.items() <= labels.items())

    asked = {"model": "Leute & Löhne", "endpoint": "/v1/samples", "status": "200"}
    before = values("wgan_samples", model="digits"), values("wgan_requests", **asked)
    for root, count in ((IMAGES, 11), (ROWS, 4)):
        body = {"count": count, "format": "json"}
        assert both.client.post(f"{root}/samples", json=body).status_code == 200
    assert values("wgan_samples", model="digits") == before[0] + 11
    assert values("wgan_requests", **asked) == before[1] + 1
    found = families(both)
    for metric in ("wgan_model_ready", "wgan_model_age_seconds", "wgan_quality"):
        told = {labels["model"] for labels, _ in found[metric]}
        assert told == {"digits", "Leute & Löhne"}, metric
    assert found["wgan_models_bytes"] == [({}, sum(map(size_of, both.artifacts.values())))]
    entries = [json.loads(line) for line in both.log.read_text().splitlines()]
    told = [e["model"] for e in entries if e.get("path") == "/v1/models/Leute & Löhne/samples"]
    assert set(told) == {"Leute & Löhne"}


def test_what_is_served_is_listed_and_described(both: Several) -> None:
    listed = both.client.get("/v1/models").json()
    assert listed["names"] == ["digits", "Leute & Löhne"]
    assert [serving["name"] for serving in listed["serving"]] == listed["names"]
    paths = both.client.get("/docs.json").json()["paths"]
    assert "/v1/samples" not in paths
    name, *_ = paths["/v1/models/{name}/samples"]["post"]["parameters"]
    assert name["schema"]["enum"] == listed["names"]


def test_settings_name_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(models: str, **more: str) -> Settings:
        return Settings.read(WGAN_MODELS=models, **more)

    found = read(" digits@champion, runs/wine ,b=digits@3,/runs/day=7/c,d=/runs/day=7")
    assert found.champions == {
        "digits": "digits@champion",
        "wine": str(tmp_path / "runs/wine"),
        "b": "digits@3",
        "c": "/runs/day=7/c",
        "d": "/runs/day=7",
    }
    assert read(found.models) == found
    assert Settings.read(WGAN_MODEL="runs/a=b,c").champions == {"a=b,c": f"{tmp_path}/runs/a=b,c"}
    challenged = read("digits@champion,wine@champion", WGAN_CHALLENGER="wine@challenger")
    assert challenged.challengers == {"wine": "wine@challenger"}
    alone = Settings.read(WGAN_MODEL="digits@champion", WGAN_CHALLENGER="trial@3")
    assert alone.challengers == {"digits": "trial@3"}
    for folder in ("/runs/lr=0.1", "/runs/a,b", "/runs/x=1/a@2,c=3"):
        alone = Settings.read(WGAN_MODEL="/runs/base", WGAN_CHALLENGER=folder)
        assert alone.challengers == {"base": folder}
        workers = Settings.read(**alone.environment())
        assert workers.challengers == alone.challengers
    for models, more, says in (
        ("a/artifact,b/artifact", {}, "two models have the name artifact"),
        ("@1", {}, "@1 has no name"),
        ("/", {}, "/ has no name"),
        ("/runs/base,/runs/lr=0.1", {}, "lr=0.1 has one of / = @ in its name; write NAME=MODEL"),
        ("a@1", {"WGAN_CHALLENGER": "/runs/lr=0.1"}, "WGAN_CHALLENGER=.*write NAME=MODEL"),
        ("a@1", {"WGAN_MODEL": "a@1"}, "leave out WGAN_MODEL"),
        ("a@1,b@1", {"WGAN_CHALLENGER": "c@1"}, "c is none of the models a, b"),
    ):
        with pytest.raises(ConfigError, match=says):
            read(models, **more)


def test_a_process_is_ready_once_each_model_has_run_or_failed(tmp_path: Path) -> None:
    good, other = (make_artifact(tmp_path / name, "vector", seed=i) for i, name in enumerate("ab"))
    app = made(WGAN_MODELS=f"{good},none={tmp_path}/none,{other}", WGAN_CHALLENGER=f"b={good}")

    async def ask(client: httpx.AsyncClient) -> None:
        assert app.is_ready
        told = [holder.served is not None for holder in app.context.holders]
        assert told == [True, False, True]
        path = "/v1/models/b?model=challenger"
        while (answer := await client.get(path)).status_code == 503:  # it is loaded afterwards
            await asyncio.sleep(0.05)
        assert answer.json()["version"] == load_artifact(good).digest[:12]
        assert (await client.get("/v1/models/a?model=challenger")).status_code == 422
        assert (await client.get("/v1/models/none")).status_code == 503
        every = app.context.holders
        assert [every.has_model(name) for name in ("a", "none", "unknown", None)] == [
            *(True, False, True, True)
        ]
        assert (every.only, every.registry_answers) == (None, None)
        assert (await client.get("/v1/models/unknown")).status_code == 404
        is_problem(await client.post("/v1/samples", json={}), 404)
        told = (await client.get("/metrics")).text
        assert 'wgan_rejections_total{reason="no_model"} 1.0' in told

    assert not app.is_ready
    talk(app, ask)
    nothing = made(WGAN_MODELS=f"{tmp_path}/none,{tmp_path}/no")

    async def wait(client: httpx.AsyncClient) -> None:
        assert not nothing.is_ready

    talk(nothing, wait)


def test_a_model_that_hangs_holds_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are served and followed; its own first try goes on, and is not doubled."""
    monkeypatch.setattr(holders, "FIRST_MODEL_SECONDS", 0.1)
    good = make_artifact(tmp_path / "good", "vector")
    app = made(WGAN_MODELS=f"slow={tmp_path}/slow,good={good},none={tmp_path}/none")
    slow, _, none = app.context.holders
    goes_on, tries = threading.Event(), []

    def hang() -> None:
        tries.append("slow")
        goes_on.wait(20)
        goes_on.set()

    monkeypatch.setattr(slow.champion, "refresh", hang)
    followed = {holder.name: threading.Event() for holder in (slow, none)}
    for holder in (slow, none):
        monkeypatch.setattr(holder, "follow", followed[holder.name].set)

    async def ask(client: httpx.AsyncClient) -> None:
        while not app.is_ready:
            await asyncio.sleep(0.05)
        assert not goes_on.is_set()
        assert (await client.get("/v1/models/good")).status_code == 200
        assert (await client.get("/v1/models/slow")).status_code == 503
        assert followed["none"].wait(30)
        assert not followed["slow"].is_set()
        starting = [t for t in threading.enumerate() if t.name.startswith(("first try", "start"))]
        assert starting
        assert all(thread.daemon for thread in starting), "none holds up the end"
        goes_on.set()
        assert followed["slow"].wait(30)
        assert tries == ["slow"]

    try:
        talk(app, ask)
    finally:
        goes_on.set()


def test_a_version_that_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    """The bound is 1 MiB; an artifact of 512x512 weights has a little more than that."""
    large = make_artifact(tmp_path / "large", "vector", critic={"width": 512, "depth": 2})
    small = make_artifact(tmp_path / "small", "vector")
    assert size_of(small) < 2**19 < 2**20 < size_of(large)
    room = Room(1)
    served = room.load(small, "small@1", "small", "champion", "cpu")
    assert room.held == size_of(small)
    with pytest.raises(NoRoom, match=r"of large@1 have 1\.\d+ MiB.* WGAN_MODELS_MEMORY=1$"):
        room.load(large, "large@1", "large", "champion", "cpu")
    kept, _ = served.model, room.load(small, "small@2", "small", "champion", "cpu")
    assert room.held == 2 * size_of(small)  # a request under way keeps the first
    del served, kept, _
    assert room.held == 0
    detector = with_detector(load_artifact(small))
    detector.reference = torch.zeros(2**16, 8)  # its features count too
    detector.save(small, tmp_path / "guarded")
    with pytest.raises(NoRoom, match=r"of guarded@1 have 2\.\d+ MiB"):
        room.load(tmp_path / "guarded", "guarded@1", "guarded", "champion", "cpu")
    assert Room(0).load(large, None, "large", "champion", "cpu").model.digest


def test_a_version_that_nobody_uses_makes_room_for_one_of_just_the_bound(tmp_path: Path) -> None:
    """It may be in a cycle, and then waits for the garbage collector."""
    small, exact = (make_artifact(tmp_path / name, "vector") for name in ("small", "exact"))
    with (exact / "run.json").open("a") as file:
        file.write(" " * (2**20 - size_of(exact)))
    sign(exact)
    room = Room(1)
    served = room.load(small, None, "a", "champion", "cpu")
    served.model.itself = served.model  # type: ignore[attr-defined]
    gc.disable()
    try:
        del served
        assert room.held == size_of(small)
        held = room.load(exact, None, "a", "champion", "cpu")
        assert held.model.digest
        assert room.held == 2**20
    finally:
        gc.enable()


def test_an_error_of_the_machine_while_a_version_is_loaded_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> torch.Tensor:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    folder, room = make_artifact(tmp_path / "artifact"), Room(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv_transpose2d", fail)
        with pytest.raises(RuntimeError, match=r"^CUBLAS_STATUS_ALLOC_FAILED$"):
            room.load(folder, None, "a", "champion", "cpu")
    assert room.load(folder, None, "a", "champion", "cpu").model.digest


def test_metrics_are_read_while_a_version_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading takes no time here, so that it happens thousands of times."""

    class Version:
        pass

    room, errors, is_over = Room(0), list[Exception](), threading.Event()
    monkeypatch.setattr(rooms, "load", lambda *_: types.SimpleNamespace(model=Version()))

    def read() -> None:
        while not is_over.is_set():
            try:
                assert room.held == 0  # the folder is empty
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(20):
            held = [room.load(tmp_path, None, "a", "champion", "cpu") for _ in range(50)]
            assert len(held) == 50
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        thread.join()
    assert not errors


def test_a_refusal_that_ends_while_metrics_are_read_fails_no_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made(WGAN_MODEL=str(make_artifact(tmp_path / "artifact", "vector")))
    told = iter(["artifact@1"])  # whatever reads it next finds None
    monkeypatch.setattr(
        Slot, "refused", property(lambda _: next(told, None), lambda *_: None), raising=False
    )

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal told
        for _ in range(2):  # the thread that follows the model ends with a look of its own
            told = iter(["artifact@1"])
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            await asyncio.sleep(0.5)
        assert 'version="artifact@1"} 1.0' in answer.text

    talk(app, ask)


GROWTH = """
import sys
from pathlib import Path
from service.room import Room, size_of

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

room, held, before = Room(0), [], 0
for folder in map(Path, sys.argv[1:]):
    held.append(room.load(folder, None, "a", "champion", "cpu"))
    print(size_of(folder), resident() - before)
    before = resident()
"""


@pytest.mark.parametrize(("kind", "width"), [("image", 256), ("vector", 2048), ("rows", 1536)])
def test_a_version_takes_one_to_three_times_its_files(
    kind: str, width: int, tmp_path: Path
) -> None:
    """What docs/operating.md says of memory; the first of three versions is a small one."""
    networks: dict[str, dict[str, Any]] = {part: {"width": width} for part in PARTS}
    folders = [make_artifact(tmp_path / "small", kind)]
    folders += [make_artifact(tmp_path / f"{i}", kind, seed=i, **networks) for i in range(3)]
    command = [sys.executable, "-c", GROWTH, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [map(int, line.split()) for line in done.stdout.splitlines()[1:]]
    sizes, growths = zip(*lines, strict=True)
    assert min(sizes) > 2**22
    assert sum(sizes) < sum(growths) < 3 * sum(sizes), done.stdout


def test_folders_that_do_not_fit_together_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = make_artifact(tmp_path / "large", "vector", critic={"width": 512, "depth": 2})
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    monkeypatch.setenv("WGAN_MODELS_MEMORY", "2")
    assert wgan_cli.main(["serve", "--port", "1", str(large), "--model", f"b={large}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WGAN_MODELS_MEMORY=2" in line
    assert line.startswith("error: the files of b have 1.")


# ---- with a real registry ------------------------------------------------------------------------


def register(artifact: Path, name: str) -> str:
    """Register an artifact under a name of its own."""
    run = json.loads((artifact / "run.json").read_text())
    run["config"]["name"] = name
    (artifact / "run.json").write_text(json.dumps(run))
    sign(artifact)
    return track_and_register(load_artifact(artifact), artifact)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    home = Registry(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", home.database)
        for number in (1, 2):
            digits = make_artifact(folder / f"digits{number}", seed=number)
            assert register(digits, "digits") == f"digits@{number}"
        assert register(make_artifact(folder / "ring1", "vector"), "ring") == "ring@1"
        wide = make_artifact(folder / "ring2", "vector", critic={"width": 512, "depth": 2})
        assert register(wide, "ring") == "ring@2"
        spoilt = make_artifact(folder / "ring3", "vector", seed=3)
        spoil_weights(spoilt)
        assert register(spoilt, "ring") == "ring@3"
        with home.running():
            yield home


@contextlib.contextmanager
def following(home: Registry, folder: Path, models: str, **settings: str) -> Iterator[Several]:
    service = Several(folder, {})
    environment = {
        "WGAN_MODELS": models,
        "MLFLOW_TRACKING_URI": home.uri,
        "WGAN_CACHE": str(folder / "cache"),
        "WGAN_REGISTRY_POLL_SECONDS": "0.3",
        **settings,
    }
    command: list[object] = [WGAN, "serve", "--port", service.port]
    server = running(command, service.port, service.log, **environment)
    with server as service.process, service.client:
        wait_for(f"http://127.0.0.1:{service.port}/readyz", service.process, service.log)
        yield service


def told(service: Several, metric: str) -> dict[str, float]:
    """Values by model."""
    return {labels["model"]: value for labels, value in families(service).get(metric, [])}


def outcomes(service: Several, model: str) -> dict[str, float]:
    """How often an attempt at a model's champion ended how."""
    return {
        labels["outcome"]: value
        for labels, value in families(service)["wgan_model_reloads"]
        if "outcome" in labels and labels["model"] == model
    }


def test_each_follows_its_own_alias_and_one_may_be_missing(home: Registry, tmp_path: Path) -> None:
    registry.promote("digits", "1", "a test")

    def version(service: Several, name: str) -> str:
        answer = service.client.post(f"/v1/models/{name}/samples", json={"format": "npz"})
        return answer.headers.get("x-model-version", str(answer.status_code))

    models = "digits@champion,ring@champion,nobody@champion"
    with following(home, tmp_path, models) as service:
        assert version(service, "digits") == "digits@1"
        assert told(service, "wgan_model_ready") == {"digits": 1, "ring": 0, "nobody": 0}
        assert "nobody: nobody@champion is missing" in service.log.read_text()
        answer = service.client.post("/v1/models/nobody/samples", json={})
        is_problem(answer, 503)
        registry.promote("ring", "1", "a test")
        until(lambda: version(service, "ring") == "ring@1", "served the second", service.log)
        swapped = outcomes(service, "ring")["swapped"]
        registry.promote("digits", "2", "a test")
        until(lambda: version(service, "digits") == "digits@2", "exchanged", service.log)
        assert version(service, "ring") == "ring@1"
        assert outcomes(service, "ring")["swapped"] == swapped
        registry.promote("ring", "3", "a test")  # it is not sound
        until(lambda: outcomes(service, "ring")["refused"] > 0, "refused", service.log)
        assert (version(service, "ring"), version(service, "digits")) == ("ring@1", "digits@2")
        (refused,) = families(service)["wgan_model_refused_info"]
        assert refused[0] == {"model": "ring", "role": "champion", "version": "ring@3"}
        assert outcomes(service, "digits")["refused"] == 0
        listed = service.client.get("/v1/models").json()
        assert [s["version"] for s in listed["serving"]] == ["digits@2", "ring@1"]
        assert {row["name"] for row in listed["models"]} == {"digits", "ring"}
        assert service.client.get("/readyz").status_code == 200


def test_a_version_without_room_is_named_and_takes_nothing_from_the_others(
    home: Registry, tmp_path: Path
) -> None:
    registry.promote("digits", "1", "a test")
    registry.promote("ring", "2", "a test")
    with following(
        home, tmp_path, "digits@champion,ring@champion", WGAN_MODELS_MEMORY="1"
    ) as service:
        assert told(service, "wgan_model_ready") == {"digits": 1, "ring": 0}
        assert "ring@champion does not fit" in service.log.read_text()
        assert "the files of ring@2 have 1." in service.log.read_text()
        assert outcomes(service, "ring")["no_room"] > 0
        assert outcomes(service, "ring")["refused"] == 0
        is_problem(service.client.post("/v1/models/ring/samples", json={}), 503)
        assert service.client.post("/v1/models/digits/samples", json={}).status_code == 200
        registry.promote("ring", "1", "a test")  # small enough
        until(lambda: told(service, "wgan_model_ready")["ring"] == 1, "served", service.log)
        registry.promote("ring", "2", "a test")
        until(lambda: outcomes(service, "ring")["no_room"] > 5, "without room", service.log)
        answer = service.client.get("/v1/models/ring")
        assert answer.json()["version"] == "ring@1"
