"""A file object whose content is taken while it is still being written."""

from __future__ import annotations

import io


class Pipe(io.RawIOBase):
    """File object that collects what is written until it is taken."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, part: object, /) -> int:
        """Keep a part; returns its size in bytes."""
        content = bytes(part)  # type: ignore[call-overload] # whatever has a buffer
        self.parts.append(content)
        return len(content)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        content = b"".join(self.parts)
        self.parts.clear()
        return content
