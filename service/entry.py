"""The module that BentoML imports in each process: the service made from the environment.

All that concerns the whole process is here: logs, uvicorn's protocol, BentoML's own settings.
"""

from __future__ import annotations

import os

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# Uvicorn believes an X-Forwarded-For that comes from this machine; WGAN_PROXIES is our word on it.
os.environ["FORWARDED_ALLOW_IPS"] = ""

import bentoml

from service import metrics, protocol, telemetry
from service.app import create_app
from service.handshakes import TlsProtocol
from service.limits import TIMEOUT
from service.settings import Settings
from service.tls import Certificate

settings = Settings.read()
telemetry.log_as_json()
if settings.metrics_folder:
    metrics.cache_process_id()
app = create_app(settings)
if settings.tls_cert and settings.tls_key:
    certificate = Certificate(settings.tls_cert, settings.tls_key)
    protocol.install(app.direct(), app.connections, TlsProtocol, certificate=certificate)
else:
    protocol.install(app.direct(), app.connections)


# BentoML's own request metrics label each raw path, so every unknown path would add a series.
@bentoml.service(
    name="wgan",
    workers=settings.workers,
    # A second bound, around `Guard`: the guard's own comes first.
    traffic={"timeout": 2 * TIMEOUT},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class WganService:
    """Serves samples and scores; see `ENDPOINTS` for the routes."""

    @bentoml.on_startup  # type: ignore[untyped-decorator] # BentoML leaves it untyped
    async def load(self) -> None:
        """Start to load the models."""
        await app.start()

    async def __is_ready__(self) -> bool:
        """Return True if the worker can answer."""
        return app.is_ready


# The decorator makes a Service of the class, which mypy does not see.
WganService.mount_asgi_app(app.routes, path="/")  # type: ignore[attr-defined]
WganService.add_asgi_middleware(app.surround)  # type: ignore[attr-defined]
