"""A private certificate authority: the chart's one value reaches every client in the pods."""

import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart import needs_helm, render
from tests.manifests import containers
from tests.test_tls import write_certificate

pytestmark = needs_helm
CLIENTS = {
    "mlflow": 'import os; os.environ["MLFLOW_TRACKING_URI"] = URL\n'
    'from models import registry; registry.champion("mlflow")',
    "fsspec, https": "import fsspec; fsspec.open(URL + '/https').open().read()",
    "fsspec, s3": "import fsspec; options = {'endpoint_url': URL, 'key': 'a', 'secret': 'b'}\n"
    "fsspec.filesystem('s3', **options).cat_file('s3/file')",
    "pushgateway": "import prometheus_client as p\n"
    "p.push_to_gateway(URL, 'pushgateway', p.CollectorRegistry())",
    "traces": "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter\n"
    "from opentelemetry.sdk.trace import TracerProvider\n"
    "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
    "provider = TracerProvider()\n"
    "exporter = OTLPSpanExporter(URL + '/traces', timeout=3)\n"
    "provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
    "provider.get_tracer('t').start_span('s').end()",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, list[str]]]:
    """A server with a certificate of its own: its address, the certificate, and what was asked."""
    cert, key = write_certificate(tmp_path_factory.mktemp("ca"), "private")
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            body = b'{"registered_model": {"name": "mlflow"}}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST"):
        setattr(Handler, f"do_{method}", Handler.answer)
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    found.socket = context.wrap_socket(found.socket, server_side=True)
    found.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust us
    threading.Thread(target=found.serve_forever, args=[0.01], daemon=True).start()
    yield f"https://127.0.0.1:{found.server_port}", cert, asked
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_trusts_the_authority(
    client: str, server: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, cert, asked = server
    documents = render("values", True, "--set", "caBundle.secret=ca,caBundle.key=our.pem")
    environments = []
    for _, spec, container in containers(documents):
        (volume,) = [v for v in spec["volumes"] if v["name"] == "ca"]
        assert volume["secret"]["items"] == [{"key": "our.pem", "path": "ca.crt"}]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "ca"]
        file = f"{mount['mountPath']}/ca.crt"
        environments.append(
            {v["name"]: str(cert) for v in container["env"] if v.get("value") == file}
        )
    assert len(environments) == 3
    assert all(environment == environments[0] for environment in environments)
    wanted = asked_by(client, address, {}, tmp_path, asked)
    assert not wanted, "without the value it is trusted by chance"
    assert asked_by(client, address, environments[0], tmp_path, asked)


def asked_by(
    client: str, address: str, more: dict[str, str], folder: Path, asked: list[str]
) -> list[str]:
    """What a client, in a process of its own, asks the server."""
    asked.clear()
    script = f"URL = {address!r}\n{CLIENTS[client]}"
    environment = {**os.environ, **more, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    subprocess.run(
        [sys.executable, "-c", script],
        env={
            **environment,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "AWS_MAX_ATTEMPTS": "1",
        },
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return list(asked)
