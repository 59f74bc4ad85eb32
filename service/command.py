"""The command `wgan serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.command_line import MODEL_HELP, new_app
from models.errors import UserError

app = new_app()


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="P")] = 3000,
    host: Annotated[str, typer.Option(help="IP address to bind")] = "127.0.0.1",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help=f"{MODEL_HELP}; default: the environment's WGAN_MODEL"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="processes; default: WGAN_WORKERS, or 1"),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="certificate chain in PEM: serves HTTPS"),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the certificate's key in PEM")
    ] = None,
) -> None:
    """Serve a model over HTTP."""
    from service.settings import Settings

    # Read before the model is loaded: a bad setting ends the command at once.
    given = {"WGAN_TLS_CERT": tls_cert, "WGAN_TLS_KEY": tls_key}
    settings = Settings.read(**{name: file for name, file in given.items() if file})
    model = model or settings.model
    if not model:
        raise UserError("name a model: wgan serve --model MODEL, or set WGAN_MODEL")
    _check(model)
    from service.server import serve as start_server

    start_server(model, host, port, workers, tls_cert, tls_key)


def _check(model: str) -> None:
    """Report a mistake here, in one line, instead of starting a server that is never ready.

    A registry is not asked: it may be away, or have no such version yet, and the service's cache
    may hold the last good one.
    """
    from models import registry
    from models.trained import load_served

    if registry.is_reference(model):
        registry.split(model)
    else:
        load_served(model)
