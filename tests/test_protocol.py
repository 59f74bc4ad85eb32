"""The private parts of uvicorn that service/protocol.py uses are still there."""

import importlib.metadata
import inspect
import tomllib
from pathlib import Path

import pytest
import uvicorn
from packaging.requirements import Requirement
from prometheus_client import Counter, Gauge
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.connections import Connections
from service.protocol import BoundedProtocol, install

VERSION = importlib.metadata.version("uvicorn")
HELP = (
    f"uvicorn {VERSION} changed what service/protocol.py builds on: adapt it, then move the bound"
)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("on_message_begin", ["self"]),
        ("on_headers_complete", ["self"]),
        ("on_body", ["self", "body"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("resume_writing", ["self"]),
        ("send_400_response", ["self", "msg"]),
        ("_start_asgi_task", ["self", "cycle", "app"]),
        ("_should_upgrade_to_ws", ["self"]),
    ],
)
def test_what_is_overridden_is_there(method: str, parameters: list[str]) -> None:
    assert method in vars(HttpToolsProtocol), HELP
    assert method in vars(BoundedProtocol)
    assert list(inspect.signature(getattr(HttpToolsProtocol, method)).parameters) == parameters, (
        HELP
    )


def test_what_is_called_and_read_is_as_expected() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    for use in (
        "self._start_asgi_task(self.cycle, app)",  # each request goes through it
        "self._start_asgi_task(cycle, app)",  # pipelined ones too
        "self.send_400_response(",
        "app = self.app",
        "self.transport",
        "self.client = ",
        "self.timeout_keep_alive = config.timeout_keep_alive",
        "on_response=self.on_response_complete",
    ):
        assert use in source, f"{HELP} ({use})"
    assert "scope" in inspect.signature(RequestResponseCycle.__init__).parameters, HELP
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.response_complete = False" in cycle, HELP
    assert "self.more_body = True" in cycle, HELP
    assert "self.write_paused = False" in inspect.getsource(FlowControl), HELP


def test_uvicorn_speaks_the_installed_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    direct = {("GET", "/x"): app}
    watch = Connections(Gauge("a", "b", registry=None), Counter("c", "d", registry=None))
    install(direct, watch)  # type: ignore[arg-type]
    config = uvicorn.Config("x", log_config=None)
    config.http_protocol_class = None  # type: ignore[assignment]
    config.app = app  # type: ignore[assignment]
    config.load()
    spoken = config.http_protocol_class
    assert issubclass(spoken, BoundedProtocol), HELP
    assert spoken.direct == direct
    assert spoken.watch is watch
    assert BoundedProtocol.direct == {}


def test_the_version_is_bounded_and_within_the_bound() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    wanted = map(Requirement, project["project"]["optional-dependencies"]["service"])
    (uvicorn_wanted,) = (r for r in wanted if r.name == "uvicorn")
    assert any(bound.operator == "<" for bound in uvicorn_wanted.specifier)
    assert VERSION in uvicorn_wanted.specifier
