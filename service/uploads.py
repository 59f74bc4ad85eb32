"""Files of rows in requests, read by a process of its own: CSV, Parquet and Arrow.

A small file can unpack to a thousand times its size, and a broken one can make a reader crash. So
the process that reads it may take so much memory and time and no more, and nothing else runs in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from models.errors import DataError, ShapeError
from models.registry_errors import is_of_this_machine
from service.rows import LONGEST_MESSAGE, MAX_ROWS

if TYPE_CHECKING:  # the supervisor imports this module, and reads nothing
    import pyarrow as pa

    from models.tables import TableSchema

MAX_BYTES = 256 * 2**20
"""Bytes that reading may take, beyond those that the process begins with."""
MAX_SECONDS = 5
"""Seconds of a processor that reading may take."""
PATIENCE = 50
"""Seconds of the clock: the machine may be busy, but a request has 60."""
BROKEN, UNSUITABLE, TOO_MUCH = 65, 66, 67
"""Exit statuses: `DataError` and `ShapeError`, whose message is in the output, and no memory."""
READING = "the rows are being read"
"""The line on stderr before the process reads: whatever crashes it from then on is in a file."""
CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV")
SPARING = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve gigabytes that they may never use
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
log = logging.getLogger("wgan.service")


def read_tables(uploads: Sequence[tuple[str, bytes]], schema: TableSchema) -> list[pa.Table]:
    """Read files of rows.

    Args:
        uploads: name, for error messages, and content of each.
        schema: of the model that the rows are for.

    Returns:
        A table of each, as `models.tables.records.read_rows` reads it.

    Raises:
        DataError: a file is broken, or of another kind, or twice crashes the process that reads it.
        ShapeError: there are more than `MAX_ROWS` rows, or reading takes too much memory or time.
        HTTPException: 503, the machine is too busy to read them in `PATIENCE` seconds, or twice
            ended the process that reads them, such as for want of memory, or lacks what starts it.
        RuntimeError: that process fails, or does not get as far as reading.
    """
    import pyarrow as pa
    import pyarrow.ipc

    files = [(name, len(content)) for name, content in uploads]
    head = json.dumps([schema.model_dump_json(), files]).encode() + b"\n"
    content = b"".join([head, *(content for _, content in uploads)])
    until = time.monotonic() + PATIENCE
    done = _read(content, until)
    if done.returncode < 0 and done.returncode != -signal.SIGXCPU:  # it may pass
        done = _read(content, until)
    if done.returncode == -signal.SIGKILL:  # the kernel's, for want of memory
        raise _busy("the process that reads the rows was ended twice: the machine lacks memory")
    if done.returncode in (-signal.SIGXCPU, TOO_MUCH):
        raise ShapeError(
            f"reading the rows takes over {MAX_BYTES // 2**20} MiB of memory or {MAX_SECONDS} "
            f"seconds of a processor; send fewer, at most {MAX_ROWS}, or shorter ones"
        )
    if done.returncode in (BROKEN, UNSUITABLE):
        message = done.stdout.decode()[:LONGEST_MESSAGE]
        raise (DataError if done.returncode == BROKEN else ShapeError)(message)
    why = done.stderr.decode(errors="replace")
    crash = next((n for n in CRASHES if getattr(signal, n, None) == -done.returncode), None)
    if crash and READING in why:
        log.error("rows crashed the process that reads them, twice (%s): %s", crash, why)
        raise DataError("no table as CSV, Parquet or Arrow, or a broken one: its reader crashes")
    if done.returncode:
        raise RuntimeError(f"the reader of rows failed ({done.returncode}): {why}")
    source = pa.BufferReader(done.stdout)
    return [pyarrow.ipc.open_stream(source).read_all() for _ in uploads]


def _read(content: bytes, until: float) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=content,
            capture_output=True,
            timeout=until - time.monotonic(),
            env={**os.environ, **SPARING},
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"reading the rows was not done within {PATIENCE} seconds: the machine is busy"
        raise _busy(late) from None
    except OSError as error:
        if error.errno != errno.EAGAIN and not is_of_this_machine(error):  # EAGAIN: no process
            raise
        raise _busy(f"rows cannot be read now: {error.strerror}") from None
    if done.returncode == -signal.SIGABRT and b"std::bad_alloc" in done.stderr:
        done.returncode = TOO_MUCH  # Arrow tells only some lack of memory by an error
    return done


def _busy(message: str) -> HTTPException:
    return HTTPException(503, message, {"Retry-After": "5"})


def main() -> int:
    """Read what `read_tables` sends, and answer with a table of each file as an Arrow stream."""
    sys.meta_path.insert(0, _NoPandas)
    import pyarrow as pa
    import pyarrow.ipc

    from models.tables import TableSchema
    from models.tables.column import whole
    from models.tables.records import read_rows

    known, files = json.loads(sys.stdin.buffer.readline())
    schema, rows = TableSchema.model_validate_json(known), 0
    _bound()
    print(READING, file=sys.stderr, flush=True)
    out = pa.BufferOutputStream()
    try:
        for name, size in files:
            table = read_rows(sys.stdin.buffer.read(size), name, schema)
            rows += len(table)
            if rows > MAX_ROWS:
                raise ShapeError(f"{name}: at most {MAX_ROWS} rows are taken at once")
            plain = [whole(column) for column in table.columns]  # a dictionary may unpack to more
            table = pa.Table.from_arrays(plain, names=table.column_names)
            _require_readable(table, name)
            with pyarrow.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
    except DataError as error:
        return _answer(BROKEN, str(error))
    except ShapeError as error:
        return _answer(UNSUITABLE, str(error))
    except MemoryError:
        return TOO_MUCH
    sys.stdout.buffer.write(out.getvalue())
    return 0


def _require_readable(table: pa.Table, name: str) -> None:
    """Require a table that can be sent: Arrow writes deeper types than it reads.

    Raises:
        DataError: it cannot.
    """
    import pyarrow.ipc

    try:
        pyarrow.ipc.read_schema(table.schema.serialize())
    except OSError:
        raise DataError(f"{name}: a column's lists are nested too deep") from None


class _NoPandas:
    """Hides pandas: PyArrow asks it for the types of texts, and its import is half of the time."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Find nothing, and let no other finder find pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


def _bound() -> None:
    """Bound this process' memory and time, where the system can: not on Windows.

    Where memory lacks all the same, the kernel ends this process rather than the worker, which is
    larger.
    """
    with contextlib.suppress(OSError):  # another system has no such file
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        import resource
    except ModuleNotFoundError:
        return
    seconds = int(time.process_time()) + 1 + MAX_SECONDS  # the limit counts from the beginning
    # At the second limit comes SIGKILL, which the machine sends too; SIGXCPU says what it is for.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_CORE, 0, 0)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, held + MAX_BYTES, held + MAX_BYTES)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit of this process; the service's own may be lower, and cannot be raised."""
    import resource

    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def _answer(status: int, message: str) -> int:
    sys.stdout.buffer.write(message.encode(errors="replace"))
    return status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # Arrow's threads, of which CSV has one all the same, cannot crash its end
