"""HTTP/1.1 over TLS: connections are bounded and watched from before their handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr

from service.protocol import BoundedProtocol
from service.tls import Certificate


class TlsProtocol(BoundedProtocol):
    """The same over TLS, watched from the moment at which a client connects.

    An event loop that is given a certificate shakes hands before it tells any protocol of the
    connection: nothing could count it, or close it in time. So uvicorn listens without one, and
    what it accepts is handed to the loop again, as a connection whose handshake is still to come.
    """

    certificate: ClassVar[Certificate]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch a connection and its handshake; or go on, when that is over."""
        if transport.get_extra_info("sslcontext"):
            HttpToolsProtocol.connection_made(self, transport)  # it is watched already
            return
        self.client = get_remote_addr(transport)
        accepted = transport.get_extra_info("socket").dup()
        transport.abort()  # closes its own descriptor: the connection goes on
        self.handshake = self.loop.create_task(self._shake_hands(accepted))
        # It may be cancelled before it begins.
        self.handshake.add_done_callback(lambda _: self._forget(accepted))
        self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection; not for the end of the transport that it was accepted with."""
        if self.transport is not None:
            super().connection_lost(exc)

    def unread(self) -> int | None:
        """See `BoundedProtocol`; nothing is to be read before the handshake is over."""
        return None if self.transport is None else super().unread()

    def give_up(self, reason: str) -> None:
        """Close the connection."""
        if self.transport is None:
            self.handshake.cancel()
        else:
            super().give_up(reason)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        context = self.certificate.current()
        try:
            await self.loop.connect_accepted_socket(lambda: self, accepted, ssl=context)
        except ssl.SSLError:  # not TLS, or no version or cipher that both speak
            self.watch.count("no_tls")
        except OSError:
            pass  # the client left

    def _forget(self, accepted: socket.socket) -> None:
        """Close a connection whose handshake came to nothing."""
        if self.transport is None:
            self.watch.remove(self)
            accepted.close()
