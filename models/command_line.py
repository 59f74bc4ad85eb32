"""Parts that commands share: exit codes, options, requests to stop.

A module of commands imports this and Typer, and nothing heavy: what a command needs is imported
when it runs, so that `wgan --help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from models.errors import UserError

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_REJECTED = 3
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: run the command again and it goes on."""
EXIT_SIGINT = 130

DATA_HELP = (
    "a built-in data set; a .npy, .npz, .h5, .zarr, .csv or .parquet file; a folder, .zip or .tar "
    "of images; or a URL of one of these"
)
MODEL_HELP = "the folder of a run or an artifact, or a registry name such as digits@champion"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}; digits alone means its champion")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
ClassOption = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="class, of a conditional model")
]
DeviceKind = Literal["cpu", "cuda"]
DeviceOption = Annotated[DeviceKind, typer.Option(help="where to compute")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="k=v", help="such as training.batch_size=32; may be repeated"),
]


def new_app(help: str | None = None) -> typer.Typer:
    """Create an empty group of commands, with help in plain text that reads well in a pipe."""
    return typer.Typer(help=help, rich_markup_mode=None, add_completion=False)


def example(command: str) -> str:
    """The end of a command's help: an example that is not wrapped."""
    return f"\b\nexample:\n  {command}"


def complain(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def assignments(texts: list[str] | None) -> dict[str, Any]:
    """Read the values of ``--set``: dotted keys and values, which are JSON or plain text.

    Raises:
        UserError: one has no ``=``.
    """
    overrides = {}
    for text in texts or []:
        key, equals, setting = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write key=value, such as training.batch_size=32")
        overrides[key] = value(setting)
    return overrides


def value(text: str) -> Any:
    """Read a setting: JSON, or else plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class StopNow(BaseException):
    """A stop was requested; not an `Exception`, which work that is stopped might catch."""


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a request; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self._raises = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def __call__(self) -> bool:
        """Return True if a stop was requested; pass the object as ``stop_requested``."""
        return self.requested

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise `StopNow` as soon as a stop is requested while the block runs."""
        self._raises = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._raises = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
        if self._raises:
            raise StopNow
