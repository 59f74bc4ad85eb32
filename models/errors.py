"""The errors that reach a user. Each message is one line that says what to do."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.redaction import redacted


class UserError(Exception):
    """A mistake in a configuration, in data or in a file: command-line exit code 2.

    Its message holds no secrets: see `models.redaction`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """The data cannot be used."""


class RowError(DataError):
    """A row cannot be used, one of those that are looked at together; see `rows_from`."""

    def __init__(self, row: int, what: str, column: str | None = None) -> None:
        """Take the row's index, what is wrong with it, and perhaps in which column."""
        self.row, self.what, self.column = row, what, column
        where = "" if column is None else f"column {column!r}: "
        super().__init__(f"{where}row {row + 1} {what}")


@contextlib.contextmanager
def rows_from(first: int) -> Iterator[None]:
    """Count the row of a `RowError` from the beginning, where those looked at follow others."""
    try:
        yield
    except RowError as error:
        raise RowError(first + error.row, error.what, error.column) from None


class UnreachableError(DataError):
    """What is behind a URL cannot be reached now, which may pass: command-line exit code 75."""


class OversizeError(DataError):
    """A file holds, or unpacks to, more than is read."""


class ArtifactError(UserError):
    """An artifact is missing, tampered with, truncated or foreign."""


class BrokenFileError(UserError):
    """A file of ours cannot be read: it was cut or changed."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: broken ({' '.join(reason.split())}); {remedy}")


class RegistryError(UserError):
    """The model registry cannot be used, or refuses."""


class AwayError(RegistryError):
    """The registry or its storage does not answer, or fails; that may pass: exit code 75."""


class AbsentError(RegistryError):
    """The registry or its storage answered that the thing is not there."""


class ForbiddenError(RegistryError):
    """The registry or its storage answered that this is not allowed (401, 403)."""


class UnsupportedServerError(ForbiddenError):
    """The registry's server is too old a version of MLflow."""


class MachineError(RegistryError):
    """This machine fails where it writes, or on the way to the registry, such as by a full disk."""


class DeviceError(UserError):
    """This machine lacks the device that is asked for."""


class ClassError(UserError):
    """An unknown class, or a class for a model without classes."""


class ConditionError(UserError):
    """No row can meet the conditions that are asked for."""


class ShapeError(UserError):
    """Samples do not have the shape that the model was made for."""


class ExportError(UserError):
    """A model cannot be written in another program's format, or computes something else there."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """End a message about an unknown word: with the known word nearest to it, or with all of them.

    >>> suggestion("digts", ["digits", "mnist5k"])
    "; did you mean 'digits'?"
    >>> suggestion("x", ["digits", "mnist5k"])
    '; there are: digits, mnist5k'
    """
    known = list(known)
    if not known:
        return "; there are none"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(known)}"


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into one line that says how to install it.

    Works as a decorator too.

    Args:
        extra: name of our package's extra that the block needs, such as ``train``.

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if importlib.util.find_spec(package):  # it is there, so the import itself is a mistake
            raise
        raise UserError(
            f"{package} is not installed, and is needed here: pip install 'wgan-foundry[{extra}]'"
        ) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
