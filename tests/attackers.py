"""Clients that mean harm, many at once, without a key.

`python -m tests.attackers PORT SECONDS` says when it is ready, lets them loose when a line comes,
and prints what each kind got for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.costly import FILES, of_file, progressive, repeated, with_scans

HOLDER, ASKER = "127.2.0.1", "127.3.0.1"
"""Addresses of those who only hold connections, and of the others, in networks of their own: a
service that refuses the first more connections must still bear the second."""
PATIENCE = 120.0
"""Seconds after which an attacker gives up on one attempt."""


def post(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def samples_request(count: int) -> bytes:
    body = json.dumps({"count": count, "seed": 1, "format": "json"}).encode()
    return post("/v1/samples", "application/json", body)


def scored_file(content: bytes, resize: bool = False) -> bytes:
    attack = of_file(content, (), "true" if resize else "false")
    return post(attack.path, attack.content_type, attack.content)


@functools.cache
def jpegs() -> tuple[bytes, ...]:
    """Requests: a large picture, the same to be resized, and one of the model's size."""
    large, small = (with_scans(progressive(side), 30_000) for side in (4096, 8))
    return scored_file(large), scored_file(large, resize=True), scored_file(small)


@functools.cache
def pngs() -> tuple[bytes, ...]:
    return (scored_file(FILES["16 megapixels of nothing"][0](), resize=True),)


@functools.cache
def brackets() -> tuple[bytes, ...]:
    return (post("/v1/scores", "application/json", repeated(b"[" * 190 + b"]" * 190)),)


class Attackers:
    """Attackers of one server, each kind as many times at once as `KINDS` says."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.got: dict[str, Counter[str]] = {}
        """By kind: statuses and other ends of its attempts."""
        self._random = random.Random(0)

    async def attack(self, seconds: float) -> None:
        """Let all loose for a time."""
        tasks = [
            asyncio.create_task(self._again_and_again(name))
            for name, kind in KINDS.items()
            for _ in range(kind.at_once)
        ]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):  # not cancelled: a mistake of ours
                raise end

    async def _again_and_again(self, name: str) -> None:
        got = self.got.setdefault(name, Counter())
        for number in itertools.count():
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.setblocking(False)
                try:
                    async with asyncio.timeout(PATIENCE):
                        connection.bind((KINDS[name].address, 0))
                        address = ("127.0.0.1", self.port)
                        await asyncio.get_running_loop().sock_connect(connection, address)
                        got[await KINDS[name].attempt(connection, number)] += 1
                except TimeoutError:
                    got["gave up"] += 1
                except OSError as error:
                    got[type(error).__name__] += 1
            await asyncio.sleep(KINDS[name].pause * self._random.uniform(0.5, 1.5))


async def receive(connection: socket.socket, size: int = 4096) -> bytes:
    return await asyncio.get_running_loop().sock_recv(connection, size)


async def send(connection: socket.socket, content: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, content)


def status(answer: bytes) -> str:
    return answer[9:12].decode("latin-1") or "closed"


async def hold(connection: socket.socket, number: int, begin: bytes = b"") -> str:
    """Send the beginning of a head, or nothing, and wait."""
    await send(connection, begin)
    return status(await receive(connection))


async def ask(
    connection: socket.socket, number: int, requests: Callable[[], tuple[bytes, ...]]
) -> str:
    """Send a whole request and wait for its answer; a refusal may come before its end."""
    choice = requests()
    sending = asyncio.create_task(send(connection, choice[number % len(choice)]))
    try:
        return status(await receive(connection))
    finally:
        sending.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await sending


async def write_slowly(connection: socket.socket, number: int) -> str:
    """Send a body by a byte a second."""
    head, _, _ = post("/v1/scores", "application/json", bytes(2**20)).partition(b"\0")
    await send(connection, head)
    while True:
        await send(connection, b" ")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                return status(await receive(connection))


async def read_slowly(connection: socket.socket, number: int) -> str:
    """Read a long answer by 512 bytes a second."""
    await send(connection, samples_request(100_000))
    found = status(await receive(connection, 512))
    while await receive(connection, 512):
        await asyncio.sleep(1)
    return found


async def depart(connection: socket.socket, number: int) -> str:
    """Ask for much, and leave."""
    await send(connection, samples_request(100_000))
    await asyncio.sleep(0.1)
    return "left"


class Kind(NamedTuple):
    at_once: int
    pause: float
    """Seconds between an attempt's end and the next one, on average."""
    attempt: Callable[[socket.socket, int], Awaitable[str]]
    address: str = ASKER


HALF_HEAD = b"POST /v1/scores HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000
KINDS = {
    "idle connections": Kind(800, 5, hold, HOLDER),
    "half heads": Kind(300, 5, functools.partial(hold, begin=HALF_HEAD), HOLDER),
    "slow writers": Kind(32, 1, write_slowly),
    "slow readers": Kind(64, 1, read_slowly),
    "departing": Kind(4, 1, depart),
    "progressive JPEGs": Kind(2, 1, functools.partial(ask, requests=jpegs)),
    "zero PNGs": Kind(2, 1, functools.partial(ask, requests=pngs)),
    "nested JSON": Kind(1, 1, functools.partial(ask, requests=brackets)),
}


def main() -> None:
    attackers = Attackers(int(sys.argv[1]))
    for made in (jpegs, pngs, brackets):
        made()
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(attackers.attack(float(sys.argv[2])))
    print(json.dumps(attackers.got))


if __name__ == "__main__":
    main()
