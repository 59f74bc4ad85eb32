"""Metrics and the access log tell what the client saw, whoever it was and however it ended."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

from deploy import tools
from models.artifact import load_artifact
from service.exchange import client_address, network
from tests.attacks import KEYS, SCOPES, bearer, line, raw
from tests.servers import Server, families, npz_file, sign

PLACES = 4
PROMTOOL = tools.find("promtool")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("exchanges")
    (folder / "keys").write_text("".join(line(n, KEYS[n], SCOPES[n]) for n in KEYS))
    environment = {
        "WGAN_API_KEYS_FILE": str(folder / "keys"),
        "WGAN_MAX_IN_FLIGHT": str(PLACES),
        "WGAN_PROXIES": "1",
        "WGAN_DRIFT_WINDOW": "50",
    }
    server = Server("image", folder, **environment)
    run = json.loads((server.artifact / "run.json").read_text())
    run["lipschitz"]["gradient_norm"] = {"real": {"mean": 1, "max": 2, "quantiles": {"0.5": 1}}}
    (server.artifact / "run.json").write_text(json.dumps(run))
    sign(server.artifact)
    server.model = load_artifact(server.artifact)
    server.client.headers.update(bearer("all"))
    with server.running():
        yield server


def ask(server: Server, request_id: str, key: str = "all", **body: object) -> socket.socket:
    """Send a request for samples, and read nothing of its answer."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = (
        "POST /v1/samples HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        f"X-Request-ID: {request_id}\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\n"
        f"Authorization: {bearer(key)['authorization']}\nContent-Length: {len(content)}"
    )
    connection.sendall(raw(head, content))
    return connection


def until(found: Callable[[], Any]) -> Any:
    for _ in range(300):
        if answer := found():
            return answer
        time.sleep(0.05)
    raise AssertionError("it never came")


def logged(server: Server, request_id: str) -> dict[str, Any]:
    """The line of a request."""

    def lines() -> list[dict[str, Any]]:
        entries = map(json.loads, server.log.read_text().splitlines())
        ours = [e for e in entries if e["logger"] == "wgan.access"]
        return [e for e in ours if e["request_id"] == request_id]

    (entry,) = until(lines)
    return dict(entry)


def counted(server: Server, endpoint: str = "/v1/samples") -> dict[str, float]:
    """Requests to an endpoint, by status."""
    found = families(server).get("wgan_requests", [])
    return {
        labels["status"]: value
        for labels, value in found
        if labels.get("endpoint") == endpoint and "status" in labels
    }


def rejected(server: Server, reason: str) -> float:
    found = families(server)["wgan_rejections"]
    return next(value for labels, value in found if labels.get("reason") == reason)


LARGE = {"count": 100_000, "format": "json"}


def test_clients_that_leave_are_no_errors_of_ours(server: Server) -> None:
    for number in range(5):
        ask(server, f"before-{number}", **LARGE).close()
        assert logged(server, f"before-{number}")["status"] == 499
    during = ask(server, "during", "sampler", **LARGE)
    assert during.recv(12) == b"HTTP/1.1 200"
    during.close()
    entry = logged(server, "during")
    assert (entry["status"], entry["version"]) == (499, server.model.digest[:12])
    assert (entry["key"], entry["client"]) == ("sampler", "192.0.2.7")
    statuses = counted(server)
    assert statuses["499"] == 6
    assert not [status for status in statuses if status.startswith("5")]
    assert rejected(server, "gone") == 6


def test_a_stream_is_in_flight_until_its_end_and_takes_as_long(server: Server) -> None:
    def seconds() -> float:
        return sum(
            value
            for labels, value in families(server).get("wgan_request_duration_seconds", [])
            if labels == {"model": "artifact", "endpoint": "/v1/samples"}
        )

    assert until(lambda: families(server)["wgan_requests_in_flight"][0][1] == 0)
    before = seconds()
    with ask(server, "stream", **LARGE) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
        time.sleep(1.5)
        assert families(server)["wgan_requests_in_flight"][0][1] == 1
        while not connection.recv(2**20).endswith(b"0\r\n\r\n"):
            pass
    assert logged(server, "stream")["status"] == 200
    assert seconds() - before > 1.5  # the count and the sum have grown
    assert families(server)["wgan_requests_in_flight"][0][1] == 0


def test_refusals_are_counted_as_the_client_sees_them(server: Server) -> None:
    before, scores = counted(server), counted(server, "/v1/scores")
    keys = ["all"] * 2 + ["sampler", "other"]  # one caller alone cannot take all places
    assert len(keys) == PLACES
    crowd = [ask(server, f"crowd-{n}", key, **LARGE) for n, key in enumerate(keys)]
    try:
        for connection in crowd:
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert server.samples(count=20).status_code == 503
        assert server.client.post("/v1/scores", content=npz_file()).status_code == 503
    finally:
        for connection in crowd:
            connection.close()
    for number in range(PLACES):  # each is counted when its connection's end is seen
        assert logged(server, f"crowd-{number}")["status"] == 499
    no_key = server.client.post("/v1/samples", headers={"authorization": ""})
    assert no_key.status_code == 401
    assert server.client.get("/v1/samples").status_code == 405
    assert until(lambda: counted(server).get("405", 0) > before.get("405", 0))
    after = counted(server)
    for status in ("503", "401", "405"):
        assert after[status] - before.get(status, 0) == 1
    assert counted(server, "/v1/scores")["503"] - scores.get("503", 0) == 1


def test_a_version_that_is_not_served_is_no_unknown_path(server: Server) -> None:
    before = {reason: rejected(server, reason) for reason in ("not_served", "unknown_path")}
    for name in ("digits@1", "champion", "another"):
        named = server.client.get("/v1/model", params={"model": name})
        assert named.status_code == (200 if name == "champion" else 404)
    assert server.client.get("/v1/nothing").status_code == 404
    assert rejected(server, "not_served") - before["not_served"] == 2
    assert rejected(server, "unknown_path") - before["unknown_path"] == 1


def test_probes_are_no_clients(server: Server) -> None:
    before = families(server)["wgan_rejections"]
    assert server.client.post("/readyz").status_code == 405
    assert families(server)["wgan_rejections"] == before


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: run `make tools`")
def test_promtool_finds_nothing_wrong_with_the_metrics(server: Server, tmp_path: Path) -> None:
    server.samples(count=3)
    for count in (60, 3):
        items = server.model.sample(0, count).tolist()
        assert server.client.post("/v1/scores", json={"samples": items}).status_code == 200
    told = server.client.get("/metrics").text
    for family in ("wgan_drift_distance", "wgan_critic_gradient_norm", "wgan_requests_total"):
        assert f"\n{family}{{" in told
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"],
        input=told,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_log_tells_who_asked_for_what(server: Server) -> None:
    headers = {**bearer("nobody"), "x-request-id": "who", "x-forwarded-for": "2001:db8::1"}
    assert server.client.get("/v1/model", headers=headers).status_code == 200
    entry = logged(server, "who")
    assert (entry["key"], entry["client"], entry["path"]) == ("nobody", "2001:db8::1", "/v1/model")
    headers = {"authorization": "Bearer x", "x-request-id": "unknown"}
    assert server.client.get("/v1/nothing", headers=headers).status_code == 401
    entry = logged(server, "unknown")
    assert (entry["key"], entry["client"]) == (None, "127.0.0.1")


@pytest.mark.parametrize(
    ("sent", "proxies", "address"),
    [
        (["1.1.1.1"], 0, "9.9.9.9"),
        (["1.1.1.1, 2.2.2.2"], 1, "2.2.2.2"),
        (["1.1.1.1, 2.2.2.2"], 2, "1.1.1.1"),
        (["1.1.1.1", "2.2.2.2"], 2, "1.1.1.1"),  # two lines are one list
        (["1.1.1.1"], 2, "9.9.9.9"),  # it came past a proxy
        ([], 1, "9.9.9.9"),
        (["1.1.1.1, 2.2.2.2:443"], 1, "2.2.2.2"),
        (["[2001:db8::2]:443"], 1, "2001:db8::2"),
        (["2001:db8::2"], 1, "2001:db8::2"),
        (['unknown", "key": "mine'], 1, "9.9.9.9"),
        (["\xff"], 1, "9.9.9.9"),
    ],
)
def test_the_client_s_address_is_that_which_the_outermost_proxy_saw(
    sent: list[str], proxies: int, address: str
) -> None:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in sent]
    scope: Scope = {"type": "http", "client": ("9.9.9.9", 1), "headers": headers}
    assert client_address(scope, proxies) == address


def test_without_an_address_there_is_none() -> None:
    assert client_address({"type": "http", "client": None, "headers": []}, 0) == ""


def test_an_ipv4_client_is_the_same_however_its_address_is_written() -> None:
    assert network("::ffff:192.0.2.1") == network("192.0.2.1") == "192.0.2.1"
    assert network("::ffff:192.0.2.1") != network("::ffff:192.0.2.2")
    assert network("2001:db8::1") == network("2001:db8::2%eth0") == "2001:db8::/64"
