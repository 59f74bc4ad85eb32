"""TLS: a certificate and its key, from files that are read again whenever they change."""

from __future__ import annotations

import ssl
from pathlib import Path

from models.errors import ConfigError, MachineError
from models.registry_errors import is_of_this_machine
from service.reread import Reread

VARIABLES = "WGAN_TLS_CERT, WGAN_TLS_KEY"


def read_certificate(cert: Path, key: Path) -> ssl.SSLContext:
    """Make a server's context of a certificate chain and its key, both in PEM.

    Raises:
        ConfigError: they cannot be read, or do not fit each other; or the key is encrypted.
        MachineError: they cannot be read for want of open files, or the like.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_password() -> str:  # otherwise OpenSSL asks for one on the terminal
        raise ConfigError(f"{VARIABLES}: {key} is encrypted; give the key without a password")

    try:
        context.load_cert_chain(cert, key, no_password)
    except OSError as error:
        reason = error.strerror or error
        # OpenSSL's own errors have other numbers.
        of_machine = not isinstance(error, ssl.SSLError) and is_of_this_machine(error)
        raise (MachineError if of_machine else ConfigError)(
            f"{VARIABLES}: {cert} and {key} are no certificate and its key ({reason})"
        ) from None
    return context


class Certificate:
    """The certificate in force.

    Args:
        cert: file of the chain, the server's own certificate first.
        key: file of its key.

    Raises:
        ConfigError, MachineError: see `read_certificate`.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._context = Reread(
            lambda: (cert, key),
            lambda: read_certificate(cert, key),
            None,
            lambda _: "the TLS certificate was read again",
            lambda _: "the TLS certificate stays as it was",
        )

    def current(self) -> ssl.SSLContext:
        """Return a context with the certificate, read again if a file has changed.

        While only one of the two files is new it stays as it was: see `Reread`.
        """
        return self._context.current()
