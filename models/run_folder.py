"""The folder of a run, and the artifact in it."""

from __future__ import annotations

import os
from pathlib import Path

ARTIFACT = "artifact"
CHECKPOINTS = "checkpoints"
SUMS = "SHA256SUMS"
"""The file that every artifact has, with the checksums of the others."""


def artifact_of(folder: Path) -> Path:
    """The artifact that a folder means: itself, or the one of the run whose folder it is."""
    inside = folder / ARTIFACT
    is_run = os.path.isfile(inside / SUMS) and not os.path.isfile(folder / SUMS)
    return inside if is_run else folder


def instead_of(path: Path) -> str:
    """End a message about a path that is no artifact, with what may have been meant."""
    if os.path.isfile(path):
        return f"; it is a file: name its folder, {path.parent}"
    if os.path.isdir(path / CHECKPOINTS):
        return "; its run has not ended: go on with `wgan train --resume`"
    if not os.path.isdir(path):
        return ""
    within = sorted(p for p in path.iterdir() if os.path.isfile(artifact_of(p) / SUMS))
    if within:
        return f"; did you mean '{within[0]}'?"
    # A model is named by its data, which often lie here in a folder of that name.
    return f"; of the registry, say {path}@champion" if len(path.parts) == 1 else ""
