"""The end of the service while an answer is streamed."""

import contextlib
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.servers import Server, families, wait_for, worker

COUNT = 20_000


def test_a_stream_has_the_time_that_it_is_given(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        short, long = (pool.submit(answer_of, tmp_path / s, s) for s in ("1", "600"))
        for pending, is_whole in ((short, False), (long, True)):
            answer, log = pending.result()
            assert answer.endswith(b"0\r\n\r\n") == is_whole, log


def answer_of(folder: Path, seconds: str) -> tuple[bytes, str]:
    """What a client has of an answer of many megabytes, and the log of the server, which ends well.

    The client pauses longer than a second after SIGTERM.
    """
    folder.mkdir()
    with Server("image", folder, WGAN_FINISH_SECONDS=seconds).running(True) as server:
        body = json.dumps({"count": COUNT, "format": "json"}).encode()
        head = "POST /v1/samples HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = []
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode() + body)
            answer.append(connection.recv(4096))
            assert answer[0].startswith(b"HTTP/1.1 200"), answer
            server.process.send_signal(signal.SIGTERM)
            time.sleep(3)
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(2**20):
                    answer.append(part)
        log = server.log.read_text()[-1500:]
        assert server.process.wait(timeout=120) == 0, log
    return b"".join(answer), log


LACKING = """
import os
import sys
if "bentoml" in " ".join(sys.orig_argv) and "worker" in " ".join(sys.orig_argv):
    import torch
    compute = torch.nn.functional.conv_transpose2d

    def lacking(*arguments, **options):
        if os.path.exists(FLAG):
            raise RuntimeError("could not create a primitive")
        return compute(*arguments, **options)

    torch.nn.functional.conv_transpose2d = lacking
"""


def test_a_worker_that_can_compute_nothing_new_is_replaced(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(LACKING.replace("FLAG", repr(str(flag))))
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    with Server("image", tmp_path, PYTHONPATH=path).running(True) as server:
        assert server.samples(count=1).status_code == 200
        before = worker(server)
        flag.touch()
        assert server.samples(count=1).status_code == 500
        flag.unlink()
        for _ in range(300):
            if not before.exists():
                break
            time.sleep(0.1)
        wait_for(f"http://127.0.0.1:{server.port}/readyz", server.process, server.log)
        assert worker(server) != before
        assert server.samples(count=1).status_code == 200
        assert families(server)["wgan_worker_starts"][0][1] == 2
        assert server.log.read_text().count("it ends, to be replaced") == 1
