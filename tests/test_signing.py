"""Signed artifacts: checked by the standards alone, forged in many ways, and really served."""

import base64
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

import wgan_cli
from models import registry, registry_files, signing
from models.artifact import CRITIC, DETECTOR, FILES, SERVED, SIGNATURE, SUMS, load_artifact, verify
from models.errors import AbsentError, ArtifactError, ConfigError, MachineError
from models.signing import check_signature, read_keys, sign, sign_version
from service.cache import VersionCache
from service.holder import Slot
from service.room import Room
from service.served import Served
from service.settings import Settings
from service.trust import TrustedKeys
from tests.artifacts import make_artifact
from tests.code_blocks import to_run
from tests.registries import Registry, until
from tests.servers import WGAN
from tests.servers import sign as write_checksums
from tests.test_artifact import resum
from tests.test_detector import with_detector
from tests.test_life import Service, load, serves
from tests.test_machine import limited
from tests.test_retrain import mixture, values
from training.retraining.config import RetrainConfig
from training.retraining.cycle import retrain
from training.tracking import track_and_register


def write_pair(folder: Path, name: str) -> Path:
    """A key pair of OpenSSL's: name.key signs and name.pem verifies."""
    folder.mkdir(exist_ok=True)
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(["openssl", "genpkey", *curve, "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        write_pair(folder, name)
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    folder = make_artifact(tmp_path / "artifact")
    sign(folder, keys / "ours.key")
    return folder


def signer(folder: Path, *trusted: Path) -> str:
    """The key among some that has signed an artifact."""
    found = {name: key for path in trusted for name, key in read_keys(path).items()}
    key, digest = check_signature(folder, found)
    assert digest == verify(folder, SERVED)
    return key


def test_the_signature_is_of_the_key_and_of_the_files(signed: Path, keys: Path) -> None:
    """By the standards alone: DSSE's encoding, ECDSA, and SHA-256 of each file."""
    envelope = json.loads((signed / SIGNATURE).read_text())["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    public = load_pem_public_key((keys / "ours.pem").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    public.verify(signature, encoded, ec.ECDSA(hashes.SHA256()))
    resources = json.loads(payload)["predicate"]["resources"]
    assert {r["name"]: r["digest"] for r in resources} == {
        name: hashlib.sha256((signed / name).read_bytes()).hexdigest() for name in (*SERVED, SUMS)
    }


def test_an_artifact_is_as_it_was_but_for_its_signature(tmp_path: Path, keys: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    digest = verify(folder)
    sign(folder, keys / "other.key")
    sign(folder, keys / "ours.key")  # in place of the first
    assert signer(folder, keys / "ours.pem") == "ours.pem"
    assert load_artifact(folder).digest == digest
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != SIGNATURE} == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_a_service_fetches_is_enough_and_other_verifiers_agree(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    for name in set(FILES) - set(SERVED):
        shutil.move(signed / name, tmp_path)
    assert signer(signed, keys / "ours.pem") == "ours.pem"
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed]
    command += ["--signature", signed / SIGNATURE, "--public_key", keys / "ours.pem"]
    subprocess.run(command, check=True)
    (signed / "generator.safetensors").write_bytes(b"")
    assert subprocess.run(command, check=False).returncode != 0


def test_a_signature_covers_the_detector(signed: Path, keys: Path) -> None:
    with_detector(load_artifact(signed)).save(signed, signed)
    with pytest.raises(ArtifactError, match="is not signed"):
        signer(signed, keys / "ours.pem")
    sign(signed, keys / "ours.key")
    assert signer(signed, keys / "ours.pem") == "ours.pem"
    content = (signed / DETECTOR).read_bytes()
    for changed in (content[:-1] + b"\1", None):
        (signed / DETECTOR).write_bytes(changed) if changed else (signed / DETECTOR).unlink()
        resum(signed)
        verify(signed)  # finds nothing
        with pytest.raises(ArtifactError, match="not those that were signed"):
            signer(signed, keys / "ours.pem")


@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_a_byte_that_is_changed_is_found_though_the_checksums_agree(
    signed: Path, keys: Path, name: str
) -> None:
    content = bytearray((signed / name).read_bytes())
    content[-2] ^= 1
    (signed / name).write_bytes(content)
    if name != SUMS:
        write_checksums(signed)
        verify(signed)  # finds nothing
    with pytest.raises(ArtifactError, match=r"not those that were signed.*SHA256SUMS") as error:
        signer(signed, keys / "ours.pem")
    assert name in str(error.value) or name not in SERVED


def unsigned(folder: Path, other: Path) -> None:
    (folder / SIGNATURE).unlink()


def of_another(folder: Path, other: Path) -> None:
    """The signature of another artifact by the same key."""
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)


def says(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path, Path], None]:
    def write(folder: Path, other: Path) -> None:
        bundle = json.loads((folder / SIGNATURE).read_text())
        changed = change(bundle)
        (folder / SIGNATURE).write_text(
            json.dumps(changed if isinstance(changed, list) else bundle)
        )

    return write


def with_another_payload(bundle: dict[str, dict[str, object]]) -> None:
    payload = base64.b64decode(str(bundle["dsseEnvelope"]["payload"]))
    changed = base64.b64encode(payload.replace(b"v1.0", b"v1.1")).decode()
    bundle["dsseEnvelope"]["payload"] = changed


FORGED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "unsigned": (unsigned, "is not signed"),
    "of another": (of_another, "not those that were signed"),
    "empty": (lambda folder, _: (folder / SIGNATURE).write_bytes(b""), "none of"),
    "no text": (lambda folder, _: (folder / SIGNATURE).write_bytes(b"\xff"), "none of"),
    "no bundle": (says(lambda bundle: [1]), "none of"),
    "no envelope": (says(lambda bundle: bundle.pop("dsseEnvelope")), "none of"),
    "no signatures": (
        says(lambda bundle: bundle["dsseEnvelope"].update(signatures=[])), "none of",
    ),
    "another payload": (says(with_another_payload), "none of"),
}  # fmt: skip


@pytest.mark.parametrize("way", FORGED)
def test_what_was_not_signed_so_is_refused(
    way: str, signed: Path, keys: Path, tmp_path: Path
) -> None:
    other = make_artifact(tmp_path / "other", seed=1)
    sign(other, keys / "ours.key")
    forge, message = FORGED[way]
    forge(signed, other)
    with pytest.raises(ArtifactError, match=message) as error:
        signer(signed, keys / "ours.pem")
    # With an error of the machine as its context it would not refuse the version.
    assert error.value.__cause__ is error.value.__context__ is None


@pytest.mark.parametrize("claims", ["ours", "nothing"])
def test_another_key_cannot_pass_for_ours(signed: Path, keys: Path, claims: str) -> None:
    """The bundle tells which key it is of; who has signed it may write there what they like."""
    ours = json.loads((signed / SIGNATURE).read_text())["verificationMaterial"]["publicKey"]
    sign(signed, keys / "other.key")
    bundle = json.loads((signed / SIGNATURE).read_text())
    bundle["verificationMaterial"]["publicKey"] = ours if claims == "ours" else {}
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError, match="none of the trusted keys"):
        signer(signed, keys / "ours.pem")


def test_an_artifact_behind_links_is_signed_and_checked(signed: Path, keys: Path) -> None:
    """A link to the version in use, and a file that a store of large files links to."""
    link = signed.with_name("current")
    link.symlink_to(signed)
    assert signer(link, keys / "ours.pem") == "ours.pem"
    weights = signed / "generator.safetensors"
    weights.rename(signed.with_name("stored"))
    weights.symlink_to("../stored")
    assert signer(link, keys / "ours.pem") == "ours.pem"
    sign(link, keys / "other.key")
    assert signer(signed, keys / "other.pem") == "other.pem"
    weights.write_bytes(b"another")
    with pytest.raises(ArtifactError, match="its files are not those that were signed"):
        signer(link, keys / "other.pem")


def test_an_unsound_artifact_is_not_signed(tmp_path: Path, keys: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / "samples.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"samples.png: changed"):
        sign(folder, keys / "ours.key")
    assert not (folder / SIGNATURE).exists()


def test_keys_are_replaced_by_trusting_two_for_a_while(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(keys / "other.pem", trusted)
    with pytest.raises(ArtifactError, match=r"none of the trusted keys: other.pem"):
        signer(signed, trusted)
    shutil.copy(keys / "ours.pem", trusted)
    (trusted / "..data").mkdir()  # as Kubernetes mounts a Secret
    assert signer(signed, trusted) == "ours.pem"
    sign(signed, keys / "other.key")
    assert signer(signed, trusted) == "other.pem"


def test_other_curves_and_makers_of_keys(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    for curve in (ec.SECP384R1(), ec.SECP521R1()):
        key = ec.generate_private_key(curve)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (tmp_path / "key").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(public)
        sign(folder, tmp_path / "key")
        assert signer(folder, tmp_path / "key.pem") == "key.pem"


def test_files_that_are_no_keys(signed: Path, keys: Path, tmp_path: Path) -> None:
    of_rsa = rsa.generate_private_key(65537, 2048)
    rsa_key = tmp_path / "rsa.key"
    rsa_key.write_bytes(of_rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "empty").mkdir()
    for path, message in (
        (keys / "ours.key", "ours.key is no public key on the curve"),
        (rsa_key, "no public key"),
        (tmp_path / "nowhere", "nowhere cannot be read"),
        (tmp_path / "empty", "empty holds no key"),
        (keys, "ours.key is no public key|other.key is no public key"),
    ):
        with pytest.raises(ConfigError, match=f"^WGAN_TRUSTED_KEYS: .*({message})"):
            read_keys(path)
    for path, message in (
        (keys / "ours.pem", "no private key on the curve"),
        (rsa_key, "no private key"),
        (tmp_path / "nowhere", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            sign(signed, path)


def test_the_key_that_is_configured_can_sign(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.SIGNING_KEY, raising=False)
    assert signing.configured_key() is None
    monkeypatch.setenv(signing.SIGNING_KEY, "")
    assert signing.configured_key() is None
    monkeypatch.setenv(signing.SIGNING_KEY, str(keys / "ours.key"))
    assert signing.configured_key() == keys / "ours.key"
    monkeypatch.setenv(signing.SIGNING_KEY, str(keys / "ours.pem"))
    with pytest.raises(ConfigError, match="is no private key"):
        signing.configured_key()


def test_a_version_is_signed_if_the_registry_knows_it_by_its_digest(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or knows no digest; what is stored beside it, and told, is the signature."""
    folder = make_artifact(tmp_path / "artifact")
    digest, stored, told = verify(folder), list[tuple[str, bytes]](), list[tuple[object, ...]]()
    monkeypatch.setattr(
        registry_files, "upload", lambda name, file: stored.append((name, file.read_bytes()))
    )
    monkeypatch.setattr(registry, "tag", lambda *given: told.append(given))
    monkeypatch.setattr(registry, "version", lambda *_: {registry.DIGEST_TAG: "0" * 64})
    with pytest.raises(ArtifactError, match=f"^tiny@7: is not signed: its digest is {digest}, but"):
        sign_version("tiny", "7", folder, keys / "ours.key")
    assert not (folder / SIGNATURE).exists()
    assert (stored, told) == ([], [])
    for number, known in enumerate(({registry.DIGEST_TAG: digest}, {}), 7):
        monkeypatch.setattr(registry, "version", lambda *_, known=known: known)
        sign_version("tiny", str(number), folder, keys / "ours.key")
        assert signer(folder, keys / "ours.pem") == "ours.pem"
        signature = (folder / SIGNATURE).read_bytes()
        assert stored.pop() == (f"tiny@{number}", signature)
        hashed = hashlib.sha256(signature).hexdigest()
        assert told.pop() == ("tiny", str(number), {registry.SIGNATURE_TAG: hashed})
        assert (stored, told) == ([], [])


def test_too_few_open_files_are_no_fault_of_keys_or_signatures(signed: Path, keys: Path) -> None:
    trusted = read_keys(keys / "ours.pem")
    check_signature(signed, trusted)  # so that the library is loaded
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free):
        with pytest.raises(MachineError, match=f"^WGAN_TRUSTED_KEYS: {keys} cannot be read"):
            read_keys(keys)
        with pytest.raises(OSError, match="Too many open files"):
            check_signature(signed, trusted)


def test_the_commands_sign_and_verify(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (signed / SIGNATURE).unlink()
    assert wgan_cli.main(["sign", str(signed)]) == 2
    assert "--key FILE, or WGAN_SIGNING_KEY" in capsys.readouterr().err
    assert wgan_cli.main(["verify", str(signed), "--key", str(keys / "ours.pem")]) == 2
    assert "is not signed; `wgan sign` signs it" in capsys.readouterr().err
    assert wgan_cli.main(["verify", str(signed)]) == 0
    assert "its signature was not checked" in capsys.readouterr().out
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(keys / "ours.key"))
    assert wgan_cli.main(["sign", str(signed)]) == 0
    monkeypatch.setenv("WGAN_TRUSTED_KEYS", str(keys / "ours.pem"))
    assert wgan_cli.main(["verify", str(signed)]) == 0
    assert "signed by ours.pem" in capsys.readouterr().out
    (signed / "MODEL_CARD.md").write_text("better")
    assert wgan_cli.main(["verify", str(signed)]) == 2
    assert "MODEL_CARD.md: changed" in capsys.readouterr().err


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    (block,) = to_run("docs/operating.md", "sh")
    make_artifact(tmp_path / "artifact")
    script = f'set -e; wgan() {{ "{WGAN}" "$@"; }}\n' + block.replace("digits@3", "artifact")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "signed by 2026.pem" in done.stdout


def registered(folder: Path, number: int) -> Path:
    """Register a new artifact as a version of tiny; return where the registry keeps it."""
    made = make_artifact(folder / f"artifact{number}", seed=number)
    assert track_and_register(load_artifact(made), made) == f"tiny@{number}"
    source = registry.client().get_model_version("tiny", str(number)).source
    return Path(source.removeprefix("file://"))


def test_promotion_signs_what_was_registered_and_nothing_else(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    stored = registered(tmp_path, 1)
    assert wgan_cli.main(["promote", "tiny@1"]) == 0
    assert not (stored / SIGNATURE).exists()  # no key is configured
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(keys / "ours.key"))
    assert wgan_cli.main(["promote", "tiny@1"]) == 0
    assert signer(stored, keys / "ours.pem") == "ours.pem"
    assert wgan_cli.main(["verify", "tiny@champion", "--key", str(keys / "ours.pem")]) == 0
    assert wgan_cli.main(["sign", "tiny@1", "--key", str(keys / "other.key")]) == 0
    assert signer(stored, keys / "other.pem") == "other.pem"
    told = registry.version("tiny", "1")[registry.SIGNATURE_TAG]
    assert told == hashlib.sha256((stored / SIGNATURE).read_bytes()).hexdigest()

    replaced = registered(tmp_path, 2)
    shutil.copytree(make_artifact(tmp_path / "evil", seed=9), replaced, dirs_exist_ok=True)
    capsys.readouterr()
    for command in (["sign", "tiny@2"], ["promote", "tiny@2"]):
        assert wgan_cli.main(command) == 2
        assert "tiny@2: is not signed: its digest is" in capsys.readouterr().err
    assert not (replaced / SIGNATURE).exists()
    assert registry.champion("tiny") == "1"


def test_a_signature_goes_through_a_server_that_stores_the_files(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Registry(tmp_path)
    with home.running():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", home.uri)
        registered(tmp_path, 1)
        assert wgan_cli.main(["sign", "tiny@1", "--key", str(keys / "ours.key")]) == 0
        assert wgan_cli.main(["verify", "tiny@1", "--key", str(keys / "ours.pem")]) == 0
    assert list((tmp_path / "stored").rglob(SIGNATURE))


OURS, UNSIGNED, OTHERS, REPLACED = "1", "2", "3", "4"
"""Versions: of our key, of none, of another, and of ours but replaced together with its digest."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Registry]:
    home = Registry(tmp_path_factory.mktemp("signed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", home.database)
        stored = {str(number): registered(home.folder, number) for number in range(1, 5)}
        for number, key in ((OURS, "ours"), (OTHERS, "other"), (REPLACED, "ours")):
            folder = home.folder / f"artifact{number}"
            sign_version("tiny", number, folder, keys / f"{key}.key")
        evil = make_artifact(home.folder / "evil", seed=9)
        shutil.copytree(evil, stored[REPLACED], dirs_exist_ok=True)
        registry.tag("tiny", REPLACED, {registry.DIGEST_TAG: verify(evil)})
        registry.promote("tiny", OURS, "a test")
        with home.running():
            yield home


def test_a_service_takes_only_what_a_trusted_key_has_signed(
    home: Registry, keys: Path, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(keys / "ours.pem", trusted)
    options = {"WGAN_TRUSTED_KEYS": str(trusted), "WGAN_CACHE": str(tmp_path / "cache")}
    with Service(home, **options).running() as service:
        serves(service, "tiny@1")
        for number, says in (
            (REPLACED, "not those that were signed"),
            (OTHERS, "is of none of the trusted keys: ours.pem"),
            (UNSIGNED, "is not signed"),
        ):
            refused = {"model": "tiny", "role": "champion", "version": f"tiny@{number}"}
            with load(service) as answers:
                registry.promote("tiny", number, "a test")
                until(
                    lambda: service.labels("wgan_model_refused_info") == [refused],  # noqa: B023
                    "refused",
                    service.log,
                )
            assert {(status, version) for _, status, _, version in answers} == {(200, "tiny@1")}
            lines = service.log.read_text().splitlines()
            (line,) = [line for line in lines if f"tiny@{number} is refused" in line]
            assert says in line
        assert service.series("wgan_model_reloads_total")["tiny", "refused", "champion"] == 3
        # What was refused is taken without another promotion once it is signed,
        sign_version("tiny", UNSIGNED, home.folder / f"artifact{UNSIGNED}", keys / "ours.key")
        serves(service, "tiny@2")
        assert not service.labels("wgan_model_refused_info")
        # or once its key is trusted.
        registry.promote("tiny", OTHERS, "a test")
        until(lambda: service.labels("wgan_model_refused_info"), "refused", service.log)
        shutil.copy(keys / "other.pem", trusted)
        serves(service, "tiny@3")
        # A mistake in a key, such as a file that is half written, changes nothing.
        (trusted / "new.pem").write_text("-----BEGIN")
        until(lambda: "stay as they were (2)" in service.log.read_text(), "told", service.log)
        registry.promote("tiny", OURS, "a test")
        serves(service, "tiny@1")
        (trusted / "new.pem").unlink()
    (trusted / "ours.pem").unlink()
    with Service(home, **options).started() as service:  # the cache's last good one is of that key
        until(lambda: service.labels("wgan_model_refused_info"), "refused", service.log)
        assert service.client.get("/readyz").status_code == 503
        assert service.series("wgan_model_reloads_total")["tiny", "cached", "champion"] == 0
        registry.promote("tiny", OTHERS, "a test")
        service.is_ready()
        assert service.version() == "tiny@3"


def test_keys_that_could_not_be_read_are_read_once_they_can(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    """Without a change of their files: too few open files pass, and so may a mode."""
    key = Path(shutil.copy(keys / "ours.pem", tmp_path))
    read_keys(key)  # so that the library is loaded
    trusted = TrustedKeys(key)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free):
        before = trusted.read()
    assert trusted.read() != before, "what was refused meanwhile is tried again"
    trusted.check(signed)


class Exchanging(Room):
    """A room in which another model is being loaded, while somebody exchanges a folder."""

    def __init__(self, evil: Path) -> None:
        super().__init__(0)
        self.evil = evil

    def load(self, folder: Path, *given: Any) -> Served:
        shutil.copytree(self.evil, folder, dirs_exist_ok=True)
        return super().load(folder, *given)


def test_what_is_exchanged_once_its_signature_was_checked_is_refused(
    signed: Path, keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evil = make_artifact(tmp_path / "evil", seed=9)
    settings = Settings.read(WGAN_TRUSTED_KEYS=str(keys / "ours.pem"))
    outcomes: list[str] = []
    slot = Slot(
        "tiny", "champion", str(signed), settings, Exchanging(evil),
        lambda name, role, outcome: outcomes.append(outcome),
    )  # fmt: skip
    slot.refresh()
    assert slot.served is None
    assert outcomes == ["refused"]
    assert "was exchanged" in caplog.text


def test_a_folder_is_tried_again_when_the_trusted_keys_change(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    trusted = Path(shutil.copy(keys / "other.pem", tmp_path / "trusted.pem"))
    outcomes: list[str] = []
    settings = Settings.read(WGAN_TRUSTED_KEYS=str(trusted))
    slot = Slot(
        "tiny", "champion", str(signed), settings, Room(0),
        lambda name, role, outcome: outcomes.append(outcome),
    )  # fmt: skip
    for _ in range(2):
        slot.refresh()
        assert slot.is_due
    assert outcomes == ["refused"]
    shutil.copy(keys / "ours.pem", trusted)
    slot.refresh()
    assert outcomes == ["refused", "swapped"]
    assert not slot.is_due


def test_a_mistake_in_the_keys_costs_no_cached_version(
    signed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a copy go before another is there: the registry may be away."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'empty.db'}")
    trusted = tmp_path / "trusted.pem"
    trusted.write_text("-----BEGIN")
    cache = VersionCache("tiny@champion", tmp_path / "cache", "", TrustedKeys(trusted))
    kept = shutil.copytree(signed, cache.folder / "1")
    with pytest.raises(MachineError, match="has given no keys yet"):
        cache.fetch("1", None)
    shutil.copy(keys / "other.pem", trusted)
    with pytest.raises(AbsentError):
        cache.fetch("1", None)
    shutil.copy(keys / "ours.pem", trusted)
    assert cache.fetch("1", None) == kept
    verify(kept)


def test_a_folder_that_is_not_signed_is_not_served(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_artifact(signed.parent / "challenger")
    monkeypatch.setenv("WGAN_TRUSTED_KEYS", str(keys / "ours.pem"))
    assert wgan_cli.main(["serve", "--model", str(folder), "--port", "0"]) == 2
    assert "is not signed" in capsys.readouterr().err
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it was started"))
    monkeypatch.setenv("WGAN_CHALLENGER", str(folder))
    assert wgan_cli.main(["serve", "--model", str(signed), "--port", "0"]) == 2
    assert "challenger: is not signed" in capsys.readouterr().err
    # A folder that is not signed is not read: that it is broken too is not found.
    (folder / CRITIC).write_bytes(b"")
    write_checksums(folder)
    assert wgan_cli.main(["serve", "--model", str(folder), "--port", "0"]) == 2
    assert "challenger: is not signed" in capsys.readouterr().err
    monkeypatch.delenv("WGAN_CHALLENGER")
    # What is not there is told as without signatures.
    assert wgan_cli.main(["serve", "--model", f"{folder}s", "--port", "0"]) == 2
    assert "challengers: no such folder" in capsys.readouterr().err
    monkeypatch.setenv("WGAN_TRUSTED_KEYS", str(keys / "ours.key"))
    assert wgan_cli.main(["serve", "--model", "tiny@1", "--port", "0"]) == 2
    assert "ours.key is no public key" in capsys.readouterr().err


def test_a_signature_is_checked_once_before_the_server_starts(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing large folders takes its time; each worker checks what it loads anyway."""
    checked: list[Path] = []

    def counting(folder: Path, trusted: dict[str, Any]) -> signing.Signed:
        checked.append(folder)
        return check_signature(folder, trusted)

    monkeypatch.setattr(signing, "check_signature", counting)
    monkeypatch.setattr("os.execve", lambda *_: None)
    monkeypatch.setenv("WGAN_TRUSTED_KEYS", str(keys / "ours.pem"))
    assert wgan_cli.main(["serve", "--model", str(signed), "--port", "0"]) == 0
    assert checked == [signed]


def test_retraining_signs_what_it_promotes(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    np.save(tmp_path / "data.npy", mixture(0))
    settings = RetrainConfig.model_validate(values(tmp_path))
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(keys / "ours.pem"))
    with pytest.raises(ConfigError, match=r"ours.pem: is no private key"):
        retrain(settings)
    assert not list((tmp_path / "runs").glob("corners-*")), "it is told before the training"
    monkeypatch.setenv("WGAN_SIGNING_KEY", str(keys / "ours.key"))
    assert retrain(settings).kind == "promoted"
    fetched = registry_files.download("corners@champion", tmp_path / "fetched")
    assert signer(fetched, keys / "ours.pem") == "ours.pem"
    assert registry.version("corners", "1")[registry.SIGNATURE_TAG]
