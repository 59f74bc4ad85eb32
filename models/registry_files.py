"""Files of registered versions, in the storage behind the registry."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import AbsentError
from models.registry import files_uri, tracking_uri
from models.registry_errors import failure

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository


def download(model: str, folder: Path, files: Collection[str] | None = None) -> Path:
    """Copy a version's artifact into ``folder`` and return its path.

    Args:
        model: ``name@alias`` or ``name@number``.
        folder: made if it is not there.
        files: names of the files to copy, as far as there are such; None: all.

    Raises:
        AbsentError: no such version, or its files are gone.
        ForbiddenError: they may not be read.
        RegistryError: the registry or the storage does not answer.
        MachineError: this machine cannot store them.
    """
    from mlflow.artifacts import download_artifacts

    uri = files_uri(model)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        storage = _storage(uri)
        present = _names(storage)
        if files is not None:
            for file in sorted(present & {*files}):
                storage.download_artifacts(file, str(folder))  # type: ignore[no-untyped-call]
            return folder
        return Path(
            download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri())
        )
    except Exception as error:  # each kind of storage behind the registry raises its own
        raise failure(f"{model}: cannot fetch {uri}: {error}", error) from None


def require_files(model: str) -> None:
    """Require that a version's artifact is stored.

    Args:
        model: ``name@alias`` or ``name@number``.

    Raises:
        AbsentError: no such version, or its files are gone.
        RegistryError: the registry or the storage does not answer, or refuses.
    """
    uri = files_uri(model)
    try:
        _names(_storage(uri))
    except Exception as error:  # each kind of storage behind the registry raises its own
        raise failure(f"{model}: cannot list {uri}: {error}", error) from None


def upload(model: str, file: Path) -> None:
    """Put a file beside the others of a version's artifact, in place of one of that name.

    Raises:
        RegistryError: no such version, or its storage does not take the file.
    """
    uri = files_uri(model)
    try:
        _storage(uri).log_artifact(str(file))  # type: ignore[no-untyped-call]
    except Exception as error:  # each kind of storage behind the registry raises its own
        raise failure(f"{model}: cannot store {file.name}: {error}", error) from None


def _names(storage: ArtifactRepository) -> set[str]:
    """The names of the files of an artifact, of which there are always some."""
    names = {info.path for info in storage.list_artifacts()}
    if not names:
        raise AbsentError("nothing is stored there any more")
    return names


def _storage(uri: str) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=tracking_uri())
