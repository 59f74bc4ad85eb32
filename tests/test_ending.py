"""The end of the service while an answer is streamed."""

import contextlib
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.servers import Server

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
    with Server("image", folder, WGAN_FINISH_SECONDS=seconds).running() as server:
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
