"""Very many samples, as files of one size in a folder or bucket, made by one process or by several.

Which samples a file holds follows from its name alone, so the files are the same for any number of
processes, and one that was interrupted goes on with the files that are not there yet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel

from models.durable import put
from models.errors import UserError
from models.formats import stream_samples
from models.model import Model
from models.progress import say, track
from models.remote import fault, reached

if TYPE_CHECKING:
    from models.tables import Condition

Array = np.ndarray
T = TypeVar("T")
SAMPLES_PER_FILE = 2**16
"""So many are made in seconds to minutes, which is what an interruption costs. Each chunk of a
forward lies in one file."""
FORMATS = ("parquet", "arrow", "npz", "npy", "zip", "csv", "json")
RECORD = "sampling.json"
UNFINISHED = ".unfinished"
"""Ending of a file's name, after its writer's, until it is whole."""


class Sampling(BaseModel, frozen=True):
    """What a folder holds: its `RECORD`, which every process that writes there must agree with."""

    model: str
    """Digest of the artifact: an alias may move while processes start."""
    count: int
    seed: int
    format: str
    class_name: str | None
    where: list[str]
    samples_per_file: int


class Folder:
    """A folder of this machine, or behind a URL that fsspec knows, such as ``s3://bucket/prefix``.

    Raises, in all methods too:
        UserError: what speaks the protocol is not installed, or access is denied.
        UnreachableError: nobody answers; where that may pass, reading was tried several times.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        fs, path = self._told("opened", fsspec.core.url_to_fs, url)
        self._fs, self._path = fs, path.rstrip("/")
        if isinstance(fs, LocalFileSystem):  # in a bucket there are no folders to make
            self._told("written", lambda: fs.makedirs(self._path, exist_ok=True))

    def names(self) -> set[str]:
        """Names of the whole files that are there."""

        def ask() -> set[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=False)
            except FileNotFoundError:  # of a prefix without objects
                return set()
            names = {str(path).rpartition("/")[2] for path in found}
            return {name for name in names if not name.endswith(UNFINISHED)}

        return self._told("read", reached, self.url, ask)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        path = f"{self._path}/{name}"
        return bytes(self._told("read", reached, self.url, lambda: self._fs.cat_file(path)))

    def write(self, name: str, pieces: Iterable[bytes], writer: str) -> None:
        """Write a file, which appears under its name when it is whole.

        Args:
            name: of the file.
            pieces: the content; the file does not appear if one of them raises an error.
            writer: who writes it, as a part of the name until then.
        """
        path = f"{self._path}/{name}"
        unfinished = f"{path}.{writer}{UNFINISHED}"
        file = self._told("written", self._fs.open, unfinished, "wb")
        try:
            for piece in pieces:
                self._told("written", file.write, piece)
        finally:
            self._told("written", file.close)
        if isinstance(self._fs, LocalFileSystem):  # a name promises the content after a crash too
            self._told("written", put, Path(unfinished), Path(path))
        else:
            self._told("written", self._fs.mv, unfinished, path)

    def _told(self, what: str, step: Callable[..., T], *arguments: object) -> T:
        """Do a step, and tell in one line what goes wrong: each protocol has its own errors.

        Args:
            what: is done to the folder by the step, such as ``read``.
            step: is called with the arguments.
            arguments: of the step.
        """
        try:
            return step(*arguments)
        except ImportError as error:
            raise UserError(
                f"{self.url}: {error}; for s3://: pip install 'wgan-foundry[s3]'"
            ) from None
        except Exception as error:
            if found := fault(self.url, error):
                raise found from error
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.url}: cannot be {what}: {reason}") from error


def write_samples(
    model: Model,
    sampling: Sampling,
    folder: Folder,
    shard: int = 0,
    shards: int = 1,
    conditions: Mapping[str, Condition] | None = None,
) -> None:
    """Write the files of a shard that are not in the folder yet, and say how far it has come.

    Args:
        model: makes the samples.
        sampling: which ones.
        folder: where to; made if it is not there.
        shard: which shard this is, from 0: every ``shards``-th file, beginning with that number.
        shards: number of shards.
        conditions: which the rows of a table meet.

    Raises:
        UserError: the folder holds other samples, or cannot be written; or no row can meet the
            conditions, or the format does not fit what the model makes.
    """
    label = None if sampling.class_name is None else model.label(sampling.class_name)
    restrictions = model.restrict(conditions) if conditions else None

    def samples(first: int, count: int) -> Iterator[Array]:
        return model.samples(sampling.seed, count, first, label, restrictions=restrictions)

    def encoded(parts: Iterator[Array], first: int, count: int) -> Iterator[bytes]:
        return stream_samples(
            model,
            parts,
            count,
            sampling.format,
            conditions=conditions,
            first=first,
            seed=sampling.seed,
        )

    def confirmed(pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        # Of two that begin at once, the second replaces the record: the first writes no file.
        _require_same(folder, sampling)

    encoded(samples(0, 1), 0, 1)  # what does not fit is told before anything is written
    record = sampling.model_dump_json(indent=2).encode() + b"\n"
    writer = f"{shard}-{hashlib.sha256(record).hexdigest()[:8]}"
    present = folder.names()
    if RECORD not in present:
        if present:
            raise UserError(f"{folder.url}: holds other files; name an empty folder")
        folder.write(RECORD, [record], writer)
    _require_same(folder, sampling)
    starts = range(0, sampling.count, sampling.samples_per_file)[shard::shards]
    names = {f"{first:012d}.{sampling.format}": first for first in starts}
    todo = {name: first for name, first in names.items() if name not in present}
    if len(todo) < len(names):
        say(f"{len(names) - len(todo)} of {len(names)} files are there already")
    began, written = time.monotonic(), 0
    for done, (name, first) in enumerate(todo.items(), 1):
        count = min(sampling.samples_per_file, sampling.count - first)
        shown = track(samples(first, count), name, -(-count // model.run.engine.chunk))
        folder.write(name, confirmed(encoded(shown, first, count)), writer)
        written += count
        rate = written / (time.monotonic() - began)
        say(f"wrote {name}: {done} of {len(todo)} files, {rate:.0f} samples a second")


def _require_same(folder: Folder, sampling: Sampling) -> None:
    """Require that a folder's record is that of a sampling."""
    try:
        recorded = Sampling.model_validate_json(folder.read(RECORD))
    except ValueError:
        raise UserError(
            f"{folder.url}: its {RECORD} cannot be read; name an empty folder"
        ) from None
    for name, value in sampling:
        if getattr(recorded, name) != value:
            raise UserError(
                f"{folder.url}: holds samples of {name} {getattr(recorded, name)}, not {value}; "
                "name an empty folder"
            )
