"""Whole runs for tests, by the code that the command runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from models.artifact import load_artifact
from models.config import Config
from models.model import Model
from training.reporting import charts
from training.run import run_training

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    [__name__, "torch._dynamo", "torch.distributed.run", "matplotlib.backends.backend_svg"]
)


def trained(config: Config, folder: Path, register: bool = True) -> tuple[Model, str | None, str]:
    """Train in ``folder``: the model, its reference if it was registered, and what was said."""
    said: list[str] = []
    reference = run_training(
        config,
        folder,
        torch.device("cpu"),
        register=register,
        say=said.append,
    )
    return load_artifact(folder / "artifact"), reference, "\n".join(said)


def draw_nothing(set_: Callable[[object, str, object], None]) -> None:
    """Have charts made and not drawn, by `setattr` or by a patch's: a run's page has eight."""
    set_(charts, "_to_svg", lambda *_: "")


def forked(
    main: Callable[[list[str]], int],
    arguments: Sequence[object],
    log: Path,
    folder: Path = Path(),
    errors: Path | None = None,
    closed: Sequence[str] = (),
    *,
    draws: bool = True,
    **environment: str,
) -> ForkServerProcess:
    """Start a command in a process of its own, without the seconds that its imports take.

    It is forked from one that has imported them.

    Args:
        main: the command, such as `wgan_cli.main`.
        arguments: its arguments.
        log: where what it prints goes.
        folder: where it runs.
        errors: where what it prints to stderr goes; by default into ``log`` too.
        closed: names of streams that are closed when it starts, such as ``stdin``.
        draws: whether its pages have charts, which take longer than a short run.
        environment: variables to set beside ours.
    """
    process = WARM.Process(
        target=_run,
        args=(
            main,
            [*map(str, arguments)],
            log.absolute(),
            errors and errors.absolute(),
            closed,
            folder.absolute(),
            {**os.environ, "OMP_NUM_THREADS": "1", **environment},
            draws,
        ),
    )
    process.start()
    return process


def _run(
    main: Callable[[list[str]], int],
    arguments: list[str],
    log: Path,
    errors: Path | None,
    closed: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    draws: bool,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup would have them ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not draws:
        draw_nothing(setattr)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if errors:
        with errors.open("w") as file:
            os.dup2(file.fileno(), 2)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if name in closed:
            os.close(number)
            setattr(sys, name, None)  # as Python has it then
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(main(arguments))
