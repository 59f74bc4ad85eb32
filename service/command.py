"""The command `wgan serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.command_line import MODEL_HELP, new_app
from models.errors import UserError

if TYPE_CHECKING:
    from service.settings import Settings

app = new_app()


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help=f"{MODEL_HELP}; or NAME=MODEL; default: the environment's WGAN_MODEL or "
            "WGAN_MODELS",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="P")] = 3000,
    host: Annotated[str, typer.Option(help="IP address to bind")] = "127.0.0.1",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="the same as an option; repeat it for several"),
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
    """Serve a model over HTTP, or several."""
    from service import sources
    from service.settings import Settings

    # Read before the model is loaded: a bad setting ends the command at once.
    given = {"WGAN_TLS_CERT": tls_cert, "WGAN_TLS_KEY": tls_key}
    files = {name: file for name, file in given.items() if file}
    named = {}
    if models := [*(models or ()), *(model or ())]:  # they take the place of both variables
        is_one = len(models) == 1 and not sources.has_name(models[0])
        one, several = (models[0], "") if is_one else ("", ",".join(models))
        named = {"WGAN_MODEL": one, "WGAN_MODELS": several}
    settings = Settings.read(**files, **named)
    if not settings.champions:
        raise UserError("name a model: wgan serve MODEL, or set WGAN_MODEL")
    from service.server import serve as start_server

    _check_signatures(settings)  # before anything of the models is read
    _check(settings)
    start_server(settings.model, host, port, workers, tls_cert, tls_key, settings.models)


def _check_signatures(settings: Settings) -> None:
    """Check the trusted keys, and that one of them has signed each folder to be served.

    What is served is checked where it is loaded: see `service.holder`.
    """
    if not settings.trusted_keys:
        return
    from models import registry, signing

    trusted = signing.read_keys(settings.trusted_keys)
    for model in (*settings.champions.values(), *settings.challengers.values()):
        if not registry.is_reference(model) and os.path.isdir(model):  # others are told elsewhere
            signing.check_signature(Path(model), trusted)


def _check(settings: Settings) -> None:
    """Report a mistake here, in one line, instead of starting a server that is never ready.

    A registry is not asked: it may be away, or have no such version yet, and the service's cache
    may hold the last good one.
    """
    from models import registry
    from models.artifact import FETCHED
    from models.trained import artifact_folder
    from service.room import Room

    room, held = Room(settings.models_memory), []
    for name, model in settings.champions.items():
        if registry.is_reference(model):
            registry.split(model)
        else:
            with artifact_folder(model, FETCHED) as folder:
                held.append(room.load(folder, None, name, "champion", "cpu"))
