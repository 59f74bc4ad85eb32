"""The start of the server: `wgan serve` checks every setting, then becomes BentoML."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from models import registry
from models.errors import ConfigError
from service.keys import read_keys
from service.settings import Settings, misspelt


def serve(
    model: str,
    host: str,
    port: int,
    workers: int | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    models: str = "",
) -> NoReturn:
    """Replace this process by a server of a model, or of several, until SIGTERM or SIGINT.

    Args:
        model: an artifact folder, or a registry name such as ``digits@champion``.
        host: IP address to bind.
        port: port to bind.
        workers: processes that answer; default: ``WGAN_WORKERS``, or 1.
        tls_cert: file of the TLS certificate; default: ``WGAN_TLS_CERT``, or none.
        tls_key: file of its key; default: ``WGAN_TLS_KEY``, or none.
        models: in place of ``model``, several of them, as in ``WGAN_MODELS``.

    Raises:
        ConfigError: an environment variable has a bad value, the file of API keys has a mistake,
            the TLS certificate or a trusted key cannot be used, or the address cannot be bound.
    """
    options = {"WGAN_WORKERS": workers, "WGAN_TLS_CERT": tls_cert, "WGAN_TLS_KEY": tls_key}
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings.read(WGAN_MODEL=model, WGAN_MODELS=models, **given)
    if settings.api_keys_file:
        read_keys(settings.api_keys_file)
    if settings.trusted_keys:
        from models.signing import read_keys as read_trusted_keys

        read_trusted_keys(settings.trusted_keys)
    if settings.tls_cert and settings.tls_key:
        from service.tls import read_certificate

        read_certificate(settings.tls_cert, settings.tls_key)
    for challenger in settings.challengers.values():
        if not registry.is_reference(challenger) and not os.path.isdir(challenger):
            raise ConfigError(f"WGAN_CHALLENGER={challenger:.100}: there is no such folder")
    _check_address(host, port)
    for line in misspelt():
        print(f"warning: {line}", file=sys.stderr)
    environment = {**os.environ, **settings.environment(), "BENTOML_DO_NOT_TRACK": "True"}
    # Two servers that share BentoML's home wipe each other's state.
    environment.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="wgan-bentoml-"))
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "bentoml", "serve", "service.entry:WganService"]
    command += ["--working-dir", str(root), "--host", host, "--port", str(port)]
    command += ["--timeout-keep-alive", str(settings.keep_alive_seconds)]
    # Seconds for requests under way to end after SIGTERM; BentoML would wait for ever.
    command += ["--timeout-graceful-shutdown", str(settings.finish_seconds)]
    os.execve(sys.executable, command, environment)


def _check_address(host: str, port: int) -> None:
    """Bind an address and let it go again.

    Raises:
        ConfigError: it is in use, not of this machine, or no address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)  # a name is none: BentoML takes IP addresses only
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}") from None
