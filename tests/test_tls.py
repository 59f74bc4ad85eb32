"""TLS: certificates from files, exchanged while the service answers."""

import datetime as dt
import ipaddress
import logging
import os
import resource
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import ConfigError
from service.server import serve
from service.tls import Certificate, read_certificate
from tests.artifacts import make_artifact
from tests.servers import WGAN, free_port, running
from tests.test_machine import limited


def write_certificate(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    cert = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(private)
    return folder / "tls.crt", folder / "tls.key"


def handshake(server: ssl.SSLContext, name: str | None = None) -> bytes:
    """Shake hands in memory; the certificate that the client was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = ends[0].getpeercert(binary_form=True)
    assert found
    return found


def der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


@pytest.mark.parametrize("name", [None, "wgan.example"])
def test_a_pair_is_taken_once_both_files_are_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    cert, key = write_certificate(tmp_path / "mounted", "old")
    new_cert, new_key = write_certificate(tmp_path / "new", "new")
    old, new = der(cert), der(new_cert)
    caplog.set_level(logging.INFO, "wgan.service")
    certificate = Certificate(cert, key)
    assert handshake(certificate.current(), name) == old
    assert not caplog.records, "it was read when it was made"
    new_cert.replace(cert)
    assert handshake(certificate.current(), name) == old
    assert "the TLS certificate stays as it was" in caplog.text
    new_key.replace(key)
    assert handshake(certificate.current(), name) == new
    assert "the TLS certificate was read again" in caplog.text
    cert.unlink()
    assert handshake(certificate.current(), name) == new
    cert.write_text("half a certifi")
    assert handshake(certificate.current(), name) == new


def test_a_certificate_that_could_not_be_read_is_read_once_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = write_certificate(tmp_path / "mounted", "old")
    new_pair = write_certificate(tmp_path / "new", "new")
    old, new = der(pair[0]), der(new_pair[0])
    certificate = Certificate(*pair)
    for new_file, file in zip(new_pair, pair, strict=True):
        new_file.replace(file)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free):
        context = certificate.current()
    assert handshake(context) == old
    assert "Too many open files" in caplog.text
    assert handshake(certificate.current()) == new


def test_what_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    cert, key = write_certificate(tmp_path / "one", "one")
    _, other_key = write_certificate(tmp_path / "other", "other")
    secret_cert, secret_key = write_certificate(tmp_path / "secret", "secret", b"password")
    for bad, says in (
        ((cert, other_key), "are no certificate and its key"),
        ((key, cert), "are no certificate and its key"),
        ((cert, tmp_path / "none"), r"\(No such file or directory\)"),
        ((cert, tmp_path), "are no certificate and its key"),
        ((secret_cert, secret_key), "is encrypted; give the key without a password"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            serve("some/folder", "127.0.0.1", free_port(), None, *bad)
        assert str(caught.value).startswith("WGAN_TLS_CERT, WGAN_TLS_KEY: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="WGAN_TLS_CERT: give WGAN_TLS_KEY too"):
        serve("some/folder", "127.0.0.1", free_port(), None, cert)


def test_the_service_speaks_https_and_takes_a_new_certificate(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path / "mounted", "old")
    first = ssl.create_default_context(cafile=cert)
    artifact = make_artifact(tmp_path / "artifact")
    port = free_port()
    command = [WGAN, "serve", "--model", artifact, "--port", port]
    command += ["--tls-cert", cert, "--tls-key", key]
    address = f"https://127.0.0.1:{port}"
    with running(command, port, tmp_path / "log"):
        kept = httpx.Client(base_url=address, verify=first)
        assert kept.get("/livez").status_code == 200
        new_cert, new_key = write_certificate(tmp_path / "new", "new")
        second = ssl.create_default_context(cafile=new_cert)
        new_key.replace(key)
        new_cert.replace(cert)
        with httpx.Client(base_url=address, verify=second) as client:
            assert client.get("/docs.json").status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{address}/livez", verify=first)
        assert kept.get("/livez").status_code == 200, "a connection that is there stays"
        kept.close()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez")
    assert "the TLS certificate was read again" in (tmp_path / "log").read_text()


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    context = read_certificate(*write_certificate(tmp_path / "one", "one"))
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
