"""Access to an artifact by what a user calls it: its folder, or a registry name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models import registry
from models.artifact import load_artifact
from models.model import Model
from models.progress import phase


@contextlib.contextmanager
def artifact_folder(model: str) -> Iterator[Path]:
    """Give the folder of an artifact; one from the registry goes when the block ends.

    Args:
        model: an artifact folder, or a registry name such as ``digits@champion``.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    if not registry.is_reference(model):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        with phase(f"downloading {model}"):
            fetched = registry.download(model, Path(folder))
        yield fetched


def load_model(model: str) -> Model:
    """Load a model; see `artifact_folder`.

    Raises:
        RegistryError: no such version, or the registry does not answer.
        ArtifactError: the artifact is missing or broken.
    """
    with artifact_folder(model) as folder:
        return load_artifact(folder)
