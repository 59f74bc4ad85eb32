"""A model's life in the service: exchanged, refused, kept; with a real registry server."""

import concurrent.futures
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models import registry
from models.artifact import load_artifact
from tests.registries import Registry, register, until
from tests.servers import WGAN, free_port, is_problem, running, serving, wait_for

GOOD = (1, 2, 3)
CUT_SHORT, WITHOUT_NUMBERS = 4, 5
"""Versions whose files changed after they were registered, and whose critic gives NaN."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("life")
    home = Registry(folder)
    with pytest.MonkeyPatch.context() as patch:
        # The versions are made in the database itself, and served over HTTP.
        patch.setenv("MLFLOW_TRACKING_URI", home.database)
        for number in (*GOOD, CUT_SHORT, WITHOUT_NUMBERS):
            register(folder, number, number == WITHOUT_NUMBERS)
        source = registry.client().get_model_version("tiny", str(CUT_SHORT)).source
        spoilt = Path(source.removeprefix("file://")) / "critic.safetensors"
        spoilt.write_bytes(spoilt.read_bytes()[:-10])
        registry.promote("tiny", "1", "a test")
        with home.running():
            yield home


SOON = 60.0


class Service:
    def __init__(self, home: Registry, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.log = home.folder / f"log-{self.port}"
        self.environment = {
            "MLFLOW_TRACKING_URI": home.uri,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "WGAN_CACHE": str(home.folder / "cache"),
            "WGAN_REGISTRY_POLL_SECONDS": "0.3",
            **environment,
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    @contextlib.contextmanager
    def running(self, *options: str) -> Iterator["Service"]:
        with self.started("tiny@champion", *options):
            self.is_ready()
            yield self

    @contextlib.contextmanager
    def started(self, model: str = "tiny@champion", *options: str) -> Iterator["Service"]:
        command = serving(model, self.port)
        if options:
            command = [WGAN, "serve", "--model", model, "--port", self.port, *options]
        server = running(command, self.port, self.log, bool(options), **self.environment)
        with server as self.process, self.client:
            yield self

    def is_ready(self) -> None:
        wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process, self.log)

    def version(self, **body: object) -> str:
        response = self.client.post("/v1/samples", json={"format": "npz", **body})
        assert response.status_code == 200, response.text
        return response.headers["x-model-version"]

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by its labels' values, in the order of their names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
            if sample.name == name
        }

    def labels(self, name: str) -> list[dict[str, str]]:
        return [
            sample.labels
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
            if sample.name == name
        ]


@pytest.fixture(scope="module")
def service(home: Registry) -> Iterator[Service]:
    with Service(home).running() as found:
        yield found


def serves(service: Service, version: str) -> None:
    until(lambda: service.version() == version, f"served {version}", service.log)


@contextlib.contextmanager
def load(service: Service, threads: int = 3) -> Iterator[list[tuple[int, int, bytes, str]]]:
    """Ask for samples all the while: seed, status, content and version of each answer."""
    answers: list[tuple[int, int, bytes, str]] = []
    done = threading.Event()

    def ask(seed: int) -> None:
        with httpx.Client(base_url=service.client.base_url, timeout=60) as client:
            while not done.is_set():
                body = {"count": 20, "seed": seed, "format": "npz"}
                answer = client.post("/v1/samples", json=body)
                version = answer.headers.get("x-model-version", "")
                answers.append((seed, answer.status_code, answer.content, version))

    askers = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
    for asker in askers:
        asker.start()
    try:
        yield answers
    finally:
        done.set()
        for asker in askers:
            asker.join(60)


def test_a_version_is_exchanged_under_load_and_no_request_is_lost(
    home: Registry, service: Service
) -> None:
    serves(service, "tiny@1")
    with load(service) as answers:
        registry.promote("tiny", "2", "a test")
        serves(service, "tiny@2")
        registry.promote("tiny", "1", "a test")
        serves(service, "tiny@1")
        registry.promote("tiny", "2", "a test")
        serves(service, "tiny@2")
    assert len(answers) > 20
    assert {status for _, status, _, _ in answers} == {200}
    assert {version for *_, version in answers} == {"tiny@1", "tiny@2"}
    for number in (1, 2):  # whole answers, each of the version that it names
        model = load_artifact(home.folder / f"artifact{number}")
        expected = {seed: model.sample(seed, 20) for seed in range(3)}
        for seed, _, content, version in answers:
            if version == f"tiny@{number}":
                samples = np.load(io.BytesIO(content))["samples"]
                assert np.array_equal(samples, expected[seed])
    (info,) = service.labels("wgan_model_info")
    assert info["version"] == "tiny@2"
    assert info["guarantee"] == model.run.constraint.guarantee
    assert service.series("wgan_model_reloads_total")["tiny", "swapped", "champion"] >= 4
    assert service.series("wgan_registry_reachable") == {(): 1.0}


@pytest.mark.parametrize(
    ("number", "says"),
    [(CUT_SHORT, "critic.safetensors: changed or truncated"), (WITHOUT_NUMBERS, "score nan")],
)
def test_a_bad_version_is_refused_and_named_while_the_last_good_one_serves(
    service: Service, number: int, says: str
) -> None:
    registry.promote("tiny", "2", "a test")
    serves(service, "tiny@2")
    refused = {"model": "tiny", "role": "champion", "version": f"tiny@{number}"}
    before = service.series("wgan_model_reloads_total")["tiny", "refused", "champion"]
    with load(service) as answers:
        registry.promote("tiny", str(number), "a test")
        until(
            lambda: service.labels("wgan_model_refused_info") == [refused], "refused", service.log
        )
    assert {(status, version) for _, status, _, version in answers} == {(200, "tiny@2")}
    assert service.client.get("/readyz").status_code == 200
    log = service.log.read_text()
    assert says in log
    assert f"tiny@{number} is refused" in log
    assert service.series("wgan_model_reloads_total")["tiny", "refused", "champion"] == before + 1
    registry.promote("tiny", "3", "a test")
    serves(service, "tiny@3")
    assert not service.labels("wgan_model_refused_info")


def test_the_registrys_versions_are_listed(service: Service) -> None:
    registry.promote("tiny", "2", "a test")
    serves(service, "tiny@2")
    time.sleep(0.5)
    listed = service.client.get("/v1/models").json()
    assert listed["registry_answers"] is True
    assert [m["version"] for m in listed["models"]] == ["5", "4", "3", "2", "1"]
    assert [m["aliases"] for m in listed["models"]].index(["champion"]) == 3
    assert listed["models"][0]["constraint"] == "gradient_penalty"
    (serving,) = listed["serving"]
    assert (serving["role"], serving["version"]) == ("champion", "tiny@2")
    assert (serving["name"], listed["names"]) == ("tiny", ["tiny"])
    assert serving["digest"] == listed["models"][3]["digest"]


def test_champion_and_challenger_side_by_side(home: Registry) -> None:
    registry.client().set_registered_model_alias("tiny", "challenger", "1")
    registry.promote("tiny", "2", "a test")
    models = {n: load_artifact(home.folder / f"artifact{n}") for n in (1, 2)}
    options = {"WGAN_CHALLENGER": "tiny@challenger", "WGAN_CHALLENGER_SHARE": "0.25"}
    with Service(home, **options).running() as both:
        until(
            lambda: both.client.get("/v1/model?model=challenger").status_code == 200,
            "both",
            both.log,
        )
        assert both.version(model="champion") == "tiny@2"
        assert both.version(model="challenger") == "tiny@1"
        items = models[1].sample(0, 2)
        files = [("files", ("a.npy", array_file(items)))]
        for number, role in ((1, "challenger"), (2, "champion")):
            by_body = both.client.post(
                "/v1/scores", json={"samples": items.tolist(), "model": role}
            )
            by_query = both.client.post(f"/v1/scores?model={role}", files=files)
            for answer in (by_body, by_query):
                assert answer.headers["x-model-version"] == f"tiny@{number}"
                found = np.float32(answer.json()["scores"])
                np.testing.assert_array_equal(found, models[number].score(items))
        about = both.client.get("/v1/model", params={"model": "challenger"}).json()
        assert (about["version"], about["role"]) == ("tiny@1", "challenger")
        assert both.client.get("/v1/model").json()["version"] == "tiny@2"
        assert {both.version(model="tiny@1") for _ in range(20)} == {"tiny@1"}
        assert {both.version(model="tiny@2") for _ in range(20)} == {"tiny@2"}
        assert both.version(model="%74iny@1") == "tiny@1"  # as the header has some names
        for name in ("another", "tiny@3", "tiny@champion"):
            for gone in (
                both.client.get("/v1/model", params={"model": name}),
                both.client.post("/v1/samples", json={"model": name}),
                both.client.post("/v1/scores", params={"model": name}, files=files),
            ):
                says = is_problem(gone, 404)["detail"]
                assert says == f"{name} is not served here, but tiny@2 and tiny@1"
        is_problem(both.client.get("/v1/model?model="), 400)
        is_problem(both.client.get("/v1/model?model=tiny@1&model=tiny@1"), 400)
        both_named = {"samples": items.tolist(), "model": "tiny@2"}
        is_problem(both.client.post("/v1/scores?model=tiny@1", json=both_named), 400)
        # Of 400 a quarter is 100, with a standard deviation of 8.7.
        went = [both.version() for _ in range(400)].count("tiny@1")
        assert 60 < went < 140
        roles = {labels["role"]: labels["version"] for labels in both.labels("wgan_model_info")}
        assert roles == {"champion": "tiny@2", "challenger": "tiny@1"}
        assert both.series("wgan_samples_total")["tiny", "challenger"] == went + 22
        assert both.series("wgan_findings")["tiny", "challenger", "critical"] == 0


def array_file(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_naming_a_challenger_that_is_not_there_is_422(service: Service) -> None:
    is_problem(service.client.post("/v1/samples", json={"model": "challenger"}), 422)
    is_problem(service.client.get("/v1/model?model=challenger"), 422)


def test_the_registry_may_go_and_come_back_and_a_restart_serves_from_the_cache(
    home: Registry, service: Service
) -> None:
    registry.promote("tiny", "2", "a test")
    serves(service, "tiny@2")
    home.shut()
    until(
        lambda: service.series("wgan_registry_reachable") == {(): 0.0}, "unreachable", service.log
    )
    assert service.version() == "tiny@2"
    assert service.client.get("/readyz").status_code == 200
    assert service.series("wgan_model_reloads_total")["tiny", "unreachable", "champion"] > 0
    listing = service.client.get("/v1/models").json()
    assert listing["serving"][0]["version"] == "tiny@2"
    assert listing["registry_answers"] is False
    with Service(home).running("--workers", "1") as restarted:  # with the same cache
        assert restarted.version() == "tiny@2"
        assert restarted.series("wgan_model_reloads_total")["tiny", "cached", "champion"] == 1
        until(
            lambda: restarted.series("wgan_registry_reachable") == {(): 0.0},
            "unreachable",
            restarted.log,
        )
        home.open()
        until(
            lambda: restarted.series("wgan_registry_reachable") == {(): 1.0},
            "reachable",
            restarted.log,
        )
        registry.promote("tiny", "3", "a test")
        serves(restarted, "tiny@3")
        serves(service, "tiny@3")


def test_no_request_and_no_restart_waits_for_a_registry_that_hangs(
    home: Registry, tmp_path: Path
) -> None:
    registry.promote("tiny", "2", "a test")
    # Whatever waits for an answer of the registry takes twice as long as `SOON`.
    options = {"WGAN_CACHE": str(tmp_path), "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
    with Service(home, **options).running() as service:
        until(lambda: service.client.get("/v1/models").json()["models"], "listed", service.log)
        with home.hanging():
            listed = service.client.get("/v1/models").json()
            time.sleep(1)  # three polls
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(60) as askers:
                # More than there are threads for such requests, as a scrape comes along.
                paths = [*["/v1/models"] * 60, "/metrics"]
                *answers, metrics = askers.map(service.client.get, paths)
            assert time.monotonic() - began < SOON
            assert 'wgan_model_ready{model="tiny"} 1.0' in metrics.text
            for answer in answers:
                later = answer.json()
                assert later["models"] == listed["models"]
                assert later["age_seconds"] >= listed["age_seconds"] + 1
            began = time.monotonic()
            with Service(home, **options).running() as restarted:
                assert time.monotonic() - began < SOON
                assert restarted.version() == "tiny@2"
                listing = restarted.client.get("/v1/models").json()
                assert (listing["models"], listing["age_seconds"]) == ([], None)


def test_without_its_alias_a_service_is_not_ready_or_serves_the_last_good_version(
    home: Registry, tmp_path: Path
) -> None:
    api = registry.client()
    model, options = "tiny@later", {"WGAN_CACHE": str(tmp_path)}
    with Service(home, **options).started(model) as first:
        until(
            lambda: first.series("wgan_model_reloads_total")["tiny", "missing", "champion"] > 1,
            "missing",
            first.log,
        )
        is_problem(first.client.get("/readyz"), 503)
        is_problem(first.client.post("/v1/samples", json={}), 503)
        assert first.series("wgan_registry_reachable") == {(): 1.0}
        api.set_registered_model_alias("tiny", "later", "1")
        first.is_ready()
        assert first.version() == "tiny@1"
    api.delete_registered_model_alias("tiny", "later")
    with Service(home, **options).started(model) as second:
        second.is_ready()
        assert second.version() == "tiny@1"
        until(lambda: "tiny@later is missing" in second.log.read_text(), "told", second.log)
        assert second.version() == "tiny@1"


def test_a_registry_may_be_empty(home: Registry, tmp_path: Path) -> None:
    options = {"WGAN_CACHE": str(tmp_path)}
    with Service(home, **options).started("nobody@champion") as service:
        until(lambda: "nobody@champion is missing" in service.log.read_text(), "told", service.log)
        assert service.client.get("/readyz").status_code == 503
        assert service.client.get("/livez").status_code == 200


def test_a_damaged_cache_is_fetched_again(home: Registry, tmp_path: Path) -> None:
    registry.promote("tiny", "1", "a test")
    options = {"WGAN_CACHE": str(tmp_path)}
    with Service(home, **options).running() as first:
        assert first.version() == "tiny@1"
    (weights,) = tmp_path.glob("models/*/1/generator.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with Service(home, **options).running() as second:
        assert second.version() == "tiny@1"
        assert "is fetched again" in second.log.read_text()
