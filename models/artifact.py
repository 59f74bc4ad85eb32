"""The artifact: a folder of safetensors, JSON and checksums that is all a service needs.

Nothing in it is ever unpickled, and nothing is parsed but bytes whose checksum was verified.
`docs/artifact.md` describes each file and every field of `run.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from models import run_folder
from models.durable import new_folder
from models.errors import ArtifactError
from models.model import Model
from models.networks import build_networks
from models.record import Run, without_false_guarantee

Array = np.ndarray
SUMS = run_folder.SUMS
SIGNATURE = "model.sig"
"""The signature, if there is one; see `models.signing`. It has no checksum."""
RUN = "run.json"
GENERATOR = "generator.safetensors"
CRITIC = "critic.safetensors"
TRAINING_STATE = "training_state.safetensors"
QUANTILES = "score_quantiles.json"
GRID = "samples.png"
CARD = "MODEL_CARD.md"
FILES = (RUN, GENERATOR, CRITIC, TRAINING_STATE, QUANTILES, GRID, CARD)
DETECTOR = "detector.safetensors"
"""The detector of what does not belong, if the artifact has one; see `models.detector`."""
SERVED = (RUN, GENERATOR, CRITIC, QUANTILES, GRID)
"""Files that sampling and scoring need. The training state, most of an artifact, is not one."""
FETCHED = (*SERVED, DETECTOR)
"""Files that a service needs, as far as the artifact has them."""
MAX_SCORED_ITEMS = 10_000
"""Score quantiles are computed from at most this many held-out items."""


def save_artifact(
    folder: Path,
    run: Run,
    generator: nn.Module,
    critic: nn.Module,
    training_state: Mapping[str, Tensor],
    quantiles: Array,
    grid_png: bytes,
    card: str,
) -> None:
    """Write an artifact so that it appears whole or not at all; replaces an older one.

    Args:
        folder: the artifact's folder.
        run: the record.
        generator: the one to serve, a moving average of the trained one.
        critic: the critic that the constraint's `before_training` returned.
        training_state: tensors that a later run could start from, by name.
        quantiles: ``(1001,)``, scores of real held-out items at `models.model.QUANTILE_LEVELS`.
        grid_png: a picture of samples, as a PNG file.
        card: the model card, Markdown.
    """
    with _new_artifact(folder, FILES) as new:
        (new / RUN).write_text(run.model_dump_json(indent=2) + "\n")
        for name, tensors in (
            (GENERATOR, generator.state_dict()),
            (CRITIC, critic.state_dict()),
            (TRAINING_STATE, training_state),
        ):
            save_file(_plain(tensors), new / name)
            (new / name).chmod(0o644)  # safetensors makes files that only their owner can read
        (new / QUANTILES).write_text(json.dumps({"scores": quantiles.tolist()}) + "\n")
        (new / GRID).write_bytes(grid_png)
        (new / CARD).write_text(card)


def save_with_detector(
    artifact: Path,
    digest: str,
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
) -> None:
    """Write a copy of an artifact with a detector; see `save_artifact`.

    Args:
        artifact: the artifact; of a detector or a signature that it has, nothing stays.
        digest: of the artifact, when it was loaded.
        folder: the copy's folder.
        tensors: of the detector, by name.
        metadata: of the detector's file.

    Raises:
        ArtifactError: a file of the artifact is missing, or changed since.
    """
    sums = _same_sums(artifact, digest, FILES)
    with _new_artifact(folder, (*FILES, DETECTOR)) as new:
        for name in FILES:
            shutil.copyfile(artifact / name, new / name)
            _require(artifact / name, _sha256(new / name), sums[name])
        save_file(_plain(tensors), new / DETECTOR, metadata)
        (new / DETECTOR).chmod(0o644)


@contextlib.contextmanager
def _new_artifact(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Give a folder for files of these names; with their checksums it then appears whole."""
    with new_folder(folder) as new:
        yield new
        (new / SUMS).write_text("".join(f"{_sha256(new / name)}  {name}\n" for name in names))


def verify(folder: Path, needed: Collection[str] = (*FILES, DETECTOR)) -> str:
    """Check every file of an artifact against its checksum.

    Args:
        folder: the artifact's folder.
        needed: names of files that must be there, the detector if it has one; others may be
            missing.

    Returns:
        The artifact's digest: the SHA-256 of its checksum file, in hex.

    Raises:
        ArtifactError: a file is missing, changed, truncated or foreign; the message names it.
    """
    sums, digest = _sums(folder, needed)
    for name, expected in sums.items():
        _require(folder / name, _sha256(folder / name), expected)
    return digest


def load_artifact(
    folder: Path,
    device: torch.device | str = "cpu",
    needed: Collection[str] = (*FILES, DETECTOR),
) -> Model:
    """Verify an artifact and load it, ready to sample and score.

    Args:
        folder: the artifact's folder.
        device: where the networks go.
        needed: names of files that must be there: `SERVED` are enough, or all.

    Raises:
        ArtifactError: a file is missing, changed, foreign, or does not fit the others.
    """
    sums, digest = _sums(folder, needed)

    def content(name: str) -> bytes:
        return _verified(folder / name, sums.pop(name))

    try:
        run = Run.model_validate_json(content(RUN))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{folder / RUN}: {where}: {first['msg']}; was it made by another version of wgan?"
        ) from None
    generator, critic = build_networks(
        run.config, run.data.shape, len(run.data.classes), run.data.parts
    )
    for network, name in ((generator, GENERATOR), (critic, CRITIC)):
        _fill(network, folder / name, content(name))
        network.to(device).eval().requires_grad_(False)
    quantiles, grid = np.array(json.loads(content(QUANTILES))["scores"]), content(GRID)
    for name, expected in sums.items():  # of files that are not loaded
        _require(folder / name, _sha256(folder / name), expected)
    broken = run.config.constraint.broken_claim(critic)
    if broken:
        raise ArtifactError(
            f"{folder / CRITIC}: not a critic under {run.constraint.kind}, as {RUN} says: {broken}"
        )
    run = without_false_guarantee(run)
    return Model(run, generator, critic, quantiles, digest, grid)


def read_detector(folder: Path, digest: str) -> bytes | None:
    """Read the file of an artifact's detector; None if the artifact has none.

    Args:
        folder: the artifact's folder.
        digest: of the artifact, when it was loaded.

    Raises:
        ArtifactError: it is missing, or changed since.
    """
    sums = _same_sums(folder, digest, (DETECTOR,))
    return _verified(folder / DETECTOR, sums[DETECTOR]) if DETECTOR in sums else None


def _same_sums(folder: Path, digest: str, needed: Collection[str]) -> dict[str, str]:
    """Read the checksums of an artifact that was loaded before; see `_sums`."""
    sums, found = _sums(folder, needed)
    if found != digest:
        raise ArtifactError(f"{folder}: another artifact was put there meanwhile; try again")
    return sums


def _sums(folder: Path, needed: Collection[str]) -> tuple[dict[str, str], str]:
    """Read an artifact's checksums; see `verify`.

    Returns:
        The SHA-256 of each file that is there, in hex, and the artifact's digest.
    """
    sums = folder / SUMS
    if not os.path.isfile(sums):  # False too for what no path can be
        raise ArtifactError(
            f"{folder}: not an artifact (it has no {SUMS}){run_folder.instead_of(folder)}"
        )
    content = sums.read_bytes()
    try:
        lines = [line.split("  ", 1) for line in content.decode("ascii").splitlines()]
        expected = {name: digest for digest, name in lines}
    except ValueError:
        raise ArtifactError(f"{sums}: not a list of SHA-256 sums") from None
    names = (*FILES, DETECTOR) if DETECTOR in expected else FILES
    for name in names:
        if name not in expected:
            raise ArtifactError(f"{sums}: has no sum for {name}")
        if name in needed and not (folder / name).is_file():
            raise ArtifactError(f"{folder / name}: missing; copy the artifact again")
    there = {path.name for path in folder.iterdir()}
    foreign = sorted(there - {*names, SUMS, SIGNATURE}) or sorted({*expected} - {*names})
    if foreign:
        raise ArtifactError(f"{folder / foreign[0]}: does not belong to an artifact; remove it")
    found = {name: expected[name] for name in names if (folder / name).is_file()}
    return found, hashlib.sha256(content).hexdigest()


def _verified(path: Path, expected: str) -> bytes:
    """Read a file once: what is verified is what is loaded, though it may change meanwhile."""
    content = path.read_bytes()
    _require(path, hashlib.sha256(content).hexdigest(), expected)
    return content


def _require(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: changed or truncated (its SHA-256 is not the one in {SUMS}); "
            "copy the artifact again"
        )


def _fill(network: nn.Module, path: Path, content: bytes) -> None:
    """Give a network the weights of a file."""
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # the latter: a type that it does not know
        raise ArtifactError(f"{path}: cannot be read ({error})") from None
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: does not fit the networks in {RUN} ({reason})") from None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
