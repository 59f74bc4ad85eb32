"""One request and its answer, as the log and the metrics tell of them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from starlette.types import Scope

GONE = 499
"""Status of an answer whose client left before its end: none was sent. It is nginx's number."""
NAME = "exchange"
"""Where a scope has its exchange."""


@dataclass
class Exchange:
    """What is known of a request so far; the layers around an endpoint fill it in."""

    client: str = ""
    """The client's address."""
    model: str | None = None
    """Name of the model that the path asks; None if it asks none, or none that is served."""
    key: str | None = None
    """Name of the API key that was sent."""
    received: float | None = None
    """`time.perf_counter` at which its whole body had come."""
    status: int | None = None
    """As the client saw it: of a stream that was cut off, why it was."""
    version: str | None = None
    """Of the model that answered."""
    reason: str | None = None
    """Why it was refused, where the status alone does not say."""
    is_too_slow: bool = False
    """True if its answer was cut off because the client read too slowly."""

    is_preflight: bool = False
    """True if a browser asks whether a page may ask: its user's request comes after this one."""

    @property
    def caller(self) -> str:
        """Who shares places and rates as one: a key, or else a network that one client may own."""
        return f"key {self.key}" if self.key else network(self.client)


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that a scope belongs to."""
    found = scope.setdefault(NAME, Exchange())
    assert isinstance(found, Exchange)
    return found


def network(address: str) -> str:
    """Return the first 64 bits of an IPv6 address, which one client owns; an IPv4 address whole."""
    if ":" not in address:
        return address
    whole = ipaddress.IPv6Address(address.partition("%")[0])
    if whole.ipv4_mapped:  # as a socket for both kinds shows IPv4 addresses
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(whole), 64), strict=False))


def client_address(scope: Scope, proxies: int) -> str:
    """Return the address that a request came from; empty if it is not known.

    Args:
        scope: of the request.
        proxies: how many proxies each request comes through. Each adds to ``X-Forwarded-For`` the
            address that it was asked from. What lies further left was sent by the client, who may
            write anything.
    """
    peer = str((scope.get("client") or ("",))[0])
    if not proxies:
        return peer
    sent = [
        value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"
    ]
    hops = ",".join(sent).split(",")
    named = _address(hops[-proxies]) if len(hops) >= proxies else None
    return named or peer  # the peer: a request that came past the proxies, such as a probe


def _address(text: str) -> str | None:
    """Read an IP address, which some proxies write with a port; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
