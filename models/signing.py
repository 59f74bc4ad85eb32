"""Signatures of artifacts by OpenSSF's model-signing: who has made this, not only is it whole.

Checksums lie beside the files, so whoever may replace the files may replace them too. A signature
can be made by the holder of a private key alone. It covers `FETCHED` and the checksums, and thereby
every file; it lies beside them as `SIGNATURE`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models import registry, registry_files
from models.artifact import CARD, FETCHED, SIGNATURE, SUMS, TRAINING_STATE, verify
from models.durable import put
from models.errors import ArtifactError, ConfigError, MachineError, UserError, needs
from models.os_errors import require_end
from models.registry_errors import is_of_this_machine

if TYPE_CHECKING:
    from model_signing import hashing, signing, verifying

SIGNING_KEY = "WGAN_SIGNING_KEY"
TRUSTED_KEYS = "WGAN_TRUSTED_KEYS"
UNSIGNED = (TRAINING_STATE, CARD, SIGNATURE)
"""Files that a service does not fetch; the first two have their checksums."""
CURVES = "on the curve P-256, P-384 or P-521, in PEM"


def configured_key() -> Path | None:
    """Return the private key that ``WGAN_SIGNING_KEY`` names, if it can sign; None if it is unset.

    Raises:
        ConfigError: see `sign`.
    """
    name = os.environ.get(SIGNING_KEY)
    if not name:
        return None
    _signer(Path(name))
    return Path(name)


def sign(folder: Path, key: Path) -> Path:
    """Sign an artifact, in place of an earlier signature.

    Args:
        folder: the artifact's folder.
        key: a private key in PEM, not encrypted.

    Returns:
        The file of the signature.

    Raises:
        ArtifactError: the artifact is not sound.
        ConfigError: the key cannot sign.
        UserError: model-signing is not installed.
    """
    signer = _signer(key)
    verify(folder, FETCHED)
    # A file that is half written would not belong to an artifact, so it lies outside.
    beside = folder.resolve().parent  # on the same disk if the folder is a link
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=beside) as outside:
        new = Path(outside) / SIGNATURE
        signer.sign(folder, new)
        put(new, folder / SIGNATURE)
    return folder / SIGNATURE


def sign_version(name: str, version: str, folder: Path, key: Path) -> None:
    """Sign an artifact, and put the signature beside the files of its registered version.

    Args:
        name: name of the registered model.
        version: number of the version.
        folder: the artifact; what the registry has must be the same.
        key: see `sign`.

    Raises:
        ArtifactError: the artifact is not sound, or not the one that was registered.
        RegistryError: no such version, or the registry does not answer.
        UserError: see `sign`.
    """
    known = registry.version(name, version).get(registry.DIGEST_TAG)
    digest = verify(folder, FETCHED)
    if known not in (None, digest):
        raise ArtifactError(
            f"{name}@{version}: is not signed: its digest is {digest}, but the registry knows it "
            f"as {known}"
        )
    signature = sign(folder, key)
    registry_files.upload(f"{name}@{version}", signature)
    told = hashlib.sha256(signature.read_bytes()).hexdigest()
    registry.tag(name, version, {registry.SIGNATURE_TAG: told})


@needs("signing")
def read_keys(path: Path) -> dict[str, verifying.Config]:
    """Read public keys: a file, or every file of a folder but hidden ones.

    Returns:
        What verifies by each key, by the name of its file.

    Raises:
        ConfigError: there is no key, or a file is none.
        MachineError: a file cannot be read for want of open files, or the like.
        UserError: model-signing is not installed.
    """
    from model_signing import verifying

    keys = {}
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise _unreadable(path, error) from None
    for file in files:
        if file.name.startswith("."):  # such as ..data, which Kubernetes makes
            continue
        try:
            keys[file.name] = verifying.Config().use_elliptic_key_verifier(
                public_key=require_end(file)
            )
        except OSError as error:
            raise _unreadable(file, error) from None
        except Exception:  # the library has no error of its own
            raise ConfigError(f"{TRUSTED_KEYS}: {file} is no public key {CURVES}") from None
    if not keys:
        raise ConfigError(f"{TRUSTED_KEYS}: {path} holds no key")
    return keys


class Signed(NamedTuple):
    """What a signature says."""

    key: str
    """The name of the key's file."""
    digest: str
    """The artifact's, as `models.artifact.verify` returns it: a file that changes changes it."""


def _unreadable(path: Path, error: OSError) -> UserError:
    kind = MachineError if is_of_this_machine(error) else ConfigError
    return kind(f"{TRUSTED_KEYS}: {path} cannot be read ({error.strerror})")


def check_signature(folder: Path, keys: dict[str, verifying.Config]) -> Signed:
    """Check that one of some keys has signed an artifact as it is now.

    Args:
        folder: the artifact's folder; what a service needs of it is enough.
        keys: see `read_keys`.

    Returns:
        The name of that key, and the digest that it has signed.

    Raises:
        ArtifactError: there is no signature, it is of no such key, or files have changed since.
        OSError: a file cannot be read.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise ArtifactError(f"{folder}: is not signed; `wgan sign` signs it")
    from model_signing import hashing, manifest

    class Hashing(hashing.Config):
        """Keeps what was found: once verified it is what was signed, whatever comes later."""

        def hash(self, *given: Any, **options: Any) -> manifest.Manifest:
            self.found = super().hash(*given, **options)
            return self.found

    changed = ""
    for name, verifier in keys.items():
        try:
            found = Hashing()  # type: ignore[no-untyped-call]
            _cover(found)
            verifier.set_hashing_config(found).verify(folder, signature)
            sums = {file.identifier: file.digest for file in found.found.resource_descriptors()}
            return Signed(name, sums[SUMS].digest_hex)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # each kind of malformed signature has another
            if str(error).startswith("Signature mismatch"):
                changed = str(error)
    # Outside of the blocks above, so that this error has no other as its context.
    if changed:
        raise ArtifactError(f"{folder}: its files are not those that were signed: {changed}")
    raise ArtifactError(f"{signature}: is of none of the trusted keys: {', '.join(keys)}")


@needs("signing")
def _signer(key: Path) -> signing.Config:
    from model_signing import hashing, signing

    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=require_end(key))
    except OSError as error:
        raise ConfigError(f"{key}: cannot be read ({error.strerror})") from None
    except Exception:  # the library has no error of its own
        raise ConfigError(f"{key}: is no private key {CURVES}, without a password") from None
    return signer.set_hashing_config(_cover(hashing.Config()))


def _cover(config: hashing.Config) -> hashing.Config:
    """Have it hash what is signed, behind links too. Verifying changes it: make one each time."""
    return config.set_allow_symlinks(True).set_ignored_paths(paths=UNSIGNED)
