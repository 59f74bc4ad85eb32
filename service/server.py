"""Starting the server: BentoML in the foreground, in this process's place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from models import registry
from service.keys import VARIABLE, read_keys
from service.state import ModelHolder, workers_wanted


def serve(model: str, host: str, port: int, workers: int | None = None) -> NoReturn:
    """Replace this process by a server of a model, until SIGTERM or SIGINT.

    Args:
        model: an artifact folder, or a registry name such as ``digits@champion``.
        host: to bind.
        port: to bind.
        workers: processes that answer; default: ``WGAN_WORKERS``, or 1.

    Raises:
        ConfigError: a variable of the environment holds nothing of use, or the file of API keys
            has a mistake.
    """
    keys = os.environ.get(VARIABLE)
    if keys:
        read_keys(Path(keys))  # a mistake is told here, rather than in a log
    environment = {
        **os.environ,
        "WGAN_MODEL": _absolute(model),
        "MLFLOW_TRACKING_URI": registry.tracking_uri(),
        "BENTOML_DO_NOT_TRACK": "True",
        **({VARIABLE: str(Path(keys).absolute())} if keys else {}),
    }
    challenger = os.environ.get("WGAN_CHALLENGER")
    if challenger:
        environment["WGAN_CHALLENGER"] = _absolute(challenger)
    if workers is not None:
        environment["WGAN_WORKERS"] = str(workers)
    os.environ.update(environment)
    ModelHolder.configured()  # a mistake is told here, in one line
    workers_wanted()
    # Two servers that share BentoML's home wipe each other's state.
    environment.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="wgan-bentoml-"))
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:WganService"]
    options = ["--working-dir", str(root), "--host", host, "--port", str(port)]
    # Seconds for requests under way to end after SIGTERM; BentoML would wait for ever.
    options += ["--timeout-graceful-shutdown", "20"]
    os.execve(sys.executable, [*command, *options], environment)


def _absolute(model: str) -> str:
    return model if registry.is_reference(model) else str(Path(model).absolute())
