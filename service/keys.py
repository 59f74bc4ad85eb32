"""API keys and their scopes, from a mounted file that is read again whenever it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.errors import ConfigError, MachineError
from models.os_errors import require_end
from models.registry_errors import is_of_this_machine
from service.reread import Reread

SCOPES = ("samples", "scores", "metrics")
VARIABLE = "WGAN_API_KEYS_FILE"
LINE = re.compile(r"([\w.-]{1,64}):([0-9a-fA-F]{64}):([a-z,]*)", re.ASCII)
NO_KEY = hashlib.sha256(b"").digest()
"""What a script writes whose variable for the key is empty."""
log = logging.getLogger("wgan.service")


class Key(NamedTuple):
    """One line of the file."""

    name: str
    digest: bytes
    """SHA-256 of the key; the key itself is nowhere in the file."""
    scopes: frozenset[str]


class Unauthorized(Exception):
    """No key, or an unknown one: 401."""


class Forbidden(Exception):
    """A key without the scope: 403."""


def read_keys(path: Path) -> list[Key]:
    """Read a file of ``name:sha256hex:scopes`` lines; scopes are separated by commas.

    Empty lines and those that begin with # are skipped.

    Raises:
        ConfigError: names the line with a mistake, but shows nothing of its content; or there is no
            key at all.
        MachineError: it cannot be read for want of open files, or the like.
    """
    try:
        # Editors on Windows begin with a mark.
        lines = require_end(path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        kind = MachineError if is_of_this_machine(error) else ConfigError
        raise kind(f"{VARIABLE}: {path} cannot be read ({error})") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        scopes = frozenset(match[3].split(",")) - {""} if match else frozenset()
        if not match or scopes - set(SCOPES):
            raise ConfigError(
                f"{VARIABLE}: {path}, line {number}: write name:sha256hex:scopes, with scopes "
                f"from {', '.join(SCOPES)}"
            )
        key = Key(match[1], bytes.fromhex(match[2]), scopes)
        if key.digest == NO_KEY:
            raise ConfigError(
                f"{VARIABLE}: {path}, line {number}: this is the SHA-256 of an empty key"
            )
        keys.append(key)
    if not keys:
        raise ConfigError(
            f"{VARIABLE}: {path} holds no key; to let nobody in, write a line whose key is nobody's"
        )
    return keys


class Keys:
    """The keys in force; without a file, nobody needs one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        none: list[Key] = []
        self._keys = Reread(
            lambda: [self.path] if self.path else [],
            lambda: read_keys(self.path) if self.path else [],
            none,
            lambda keys: f"API keys are needed: {len(keys)} are in {self.path}",
            lambda keys: f"the keys stay as they were ({len(keys)})",
        )

    def authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> Key | None:
        """Find the key in a request's headers; None if no file of keys is configured.

        Every key is compared, each in constant time.

        Args:
            headers: as ASGI has them, their names in lower case.

        Raises:
            Unauthorized: no such key; or several, of which a proxy may have checked another.
        """
        if self.path is None:
            return None
        sent = [value for name, value in headers if name == b"authorization"]
        if len(sent) > 1:
            raise Unauthorized("send one key, in one header Authorization")
        scheme, _, sent_key = (sent[0] if sent else b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("send a key: Authorization: Bearer KEY")
        digest = hashlib.sha256(sent_key.strip()).digest()
        matches = [key for key in self.current() if hmac.compare_digest(key.digest, digest)]
        if not matches:
            raise Unauthorized("the key is not known")
        # The same key on several lines has the scopes of all of them.
        return matches[0]._replace(scopes=frozenset().union(*(key.scopes for key in matches)))

    def announce(self) -> None:
        """Say in the log whether a key is needed, and how many there are."""
        if self.path is None:
            log.warning("no API keys: anybody may ask (%s is not set)", VARIABLE)
        else:
            self.current()  # it says so itself

    def is_needed(self, path: str) -> bool:
        """Return True if a request to a path needs a key."""
        if path == "/metrics":
            return self.metrics_need_one()
        return self.path is not None and path.startswith("/v1/")

    def metrics_need_one(self) -> bool:
        """Return True if some key has the scope ``metrics``, so that /metrics is not open."""
        return self.path is not None and any("metrics" in key.scopes for key in self.current())

    def current(self) -> list[Key]:
        """Return the keys in the file, read again if it has changed.

        A file that is half written, emptied or has a mistake must lock nobody out: the keys stay as
        they were. At the start there are none yet, so no key is known then.
        """
        return self._keys.current()


def allow(key: Key | None, scope: str) -> None:
    """Check that a key has a scope; without keys, everything is allowed.

    Raises:
        Forbidden: the key lacks the scope.
    """
    if key is not None and scope not in key.scopes:
        raise Forbidden(f"the key of {key.name} lacks the scope {scope}")
