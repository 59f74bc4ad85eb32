"""The end of the service while an answer is streamed."""

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.servers import Server

COUNT = 20_000


@pytest.mark.parametrize(("seconds", "is_whole"), [("1", False), ("600", True)])
def test_a_stream_has_the_time_that_it_is_given(
    tmp_path: Path, seconds: str, is_whole: bool
) -> None:
    """A client that pauses longer than a second after SIGTERM, in an answer of many megabytes."""
    with Server("image", tmp_path, WGAN_FINISH_SECONDS=seconds).running() as server:
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
        assert b"".join(answer).endswith(b"0\r\n\r\n") == is_whole, log
        assert server.process.wait(timeout=120) == 0
