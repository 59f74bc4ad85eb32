"""An artifact that was changed in any way is refused, and the error names the file."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from models import artifact, networks
from models.artifact import (
    CARD,
    CRITIC,
    DETECTOR,
    FILES,
    GENERATOR,
    GRID,
    QUANTILES,
    SERVED,
    SUMS,
    TRAINING_STATE,
    load_artifact,
    read_detector,
    save_with_detector,
    verify,
)
from models.errors import ArtifactError
from tests.artifacts import SHAPES, make_artifact
from tests.test_constraints import KINDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "artifact")


def resum(folder: Path) -> None:
    """Make the checksums right again, as an attacker or a careless script might."""
    names = [name for name in (*FILES, DETECTOR) if (folder / name).exists()]
    lines = (f"{artifact._sha256(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text("".join(lines))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("constraint", KINDS)
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str, constraint: str) -> None:
    folder = make_artifact(
        tmp_path / "artifact", kind, constraint={"kind": constraint}, critic={"dropout": 0.1}
    )
    model = load_artifact(folder)
    torch.manual_seed(0)
    _, critic = networks.build_networks(model.run.config, model.shape)
    x = torch.randn(5, *model.shape)
    torch.testing.assert_close(model.critic(x), critic.eval()(x), rtol=0, atol=0)
    assert model.run.constraint.kind == constraint
    assert load_artifact(folder).digest == model.digest


def test_what_is_served_is_enough_to_load(folder: Path, tmp_path: Path) -> None:
    whole = load_artifact(folder)
    for name in (TRAINING_STATE, CARD):
        (folder / name).rename(tmp_path / name)
    part = load_artifact(folder, needed=SERVED)
    assert part.digest == whole.digest
    assert part.sample(0, 3).tobytes() == whole.sample(0, 3).tobytes()
    for name in (TRAINING_STATE, CARD):  # it need not be there, but sound it must be
        (folder / name).write_bytes((tmp_path / name).read_bytes()[:-1])
        with pytest.raises(ArtifactError, match=re.escape(name)):
            load_artifact(folder, needed=SERVED)
        (folder / name).unlink()


@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(name)):
        load_artifact(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "empty"])
def test_a_changed_file_is_named(folder: Path, name: str, damage: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "append":
        content += b"\n"
    else:
        content = content[: len(content) // 2 if damage == "truncate" else 0]
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=re.escape(name)):
        load_artifact(folder)


def test_a_foreign_file_is_named(folder: Path) -> None:
    (folder / "weights.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError, match=r"weights\.pkl"):
        load_artifact(folder)


def test_a_sum_for_a_path_outside_is_refused(folder: Path) -> None:
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  ../../etc/passwd\n")
    with pytest.raises(ArtifactError, match="does not belong"):
        load_artifact(folder)


def test_sums_that_are_no_sums(folder: Path) -> None:
    (folder / SUMS).write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="not a list"):
        load_artifact(folder)


@pytest.mark.parametrize("name", [*FILES])
def test_a_sum_that_is_missing_is_named(folder: Path, name: str) -> None:
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if name not in line))
    with pytest.raises(ArtifactError, match=f"has no sum for {re.escape(name)}"):
        load_artifact(folder)


def test_a_foreign_name_may_have_spaces(folder: Path) -> None:
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  weights  old.pkl\n")
    with pytest.raises(ArtifactError, match=r"weights  old\.pkl: does not belong"):
        load_artifact(folder)


def test_what_is_verified_has_the_digest_of_its_sums(folder: Path) -> None:
    digest = hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    assert verify(folder) == load_artifact(folder).digest == digest
    (folder / CARD).unlink()
    with pytest.raises(ArtifactError, match=f"{CARD}: missing"):
        verify(folder)
    assert verify(folder, SERVED) == digest
    (folder / TRAINING_STATE).write_bytes(b"")
    with pytest.raises(ArtifactError, match=f"{TRAINING_STATE}: changed"):
        verify(folder, SERVED)


def test_networks_are_loaded_to_be_used_and_not_trained(folder: Path) -> None:
    model = load_artifact(folder)
    for network in (model.generator, model.critic):
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


def test_everybody_may_read_the_files(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_detector_is_added_to_a_copy(folder: Path, tmp_path: Path) -> None:
    digest, copy = load_artifact(folder).digest, tmp_path / "copy"
    assert read_detector(folder, digest) is None
    tensors = {"center": torch.arange(3.0).expand(2, 3).T}
    for _ in range(2):  # what was there is replaced
        save_with_detector(folder, digest, copy, tensors, {"of": "a test"})
    for name in FILES:
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert {path.name for path in copy.iterdir()} == {*FILES, DETECTOR, SUMS}
    assert {path.stat().st_mode & 0o777 for path in copy.iterdir()} == {0o644}
    made = load_artifact(copy).digest
    content = read_detector(copy, made)
    assert content is not None
    assert torch.equal(safetensors.torch.load(content)["center"], tensors["center"])
    other = {"other": torch.ones(1)}
    save_with_detector(copy, made, tmp_path / "again", other, {"of": "it"})  # the former one goes
    found = read_detector(tmp_path / "again", load_artifact(tmp_path / "again").digest)
    assert found is not None
    assert safetensors.torch.load(found).keys() == other.keys()
    for digest_of_other in (digest, "0" * 64):
        with pytest.raises(ArtifactError, match="another artifact was put there meanwhile"):
            read_detector(copy, digest_of_other)
    (copy / DETECTOR).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{DETECTOR}: changed"):
        read_detector(copy, made)
    (copy / DETECTOR).unlink()
    with pytest.raises(ArtifactError, match=f"{DETECTOR}: missing"):
        load_artifact(copy)
    assert load_artifact(copy, needed=SERVED).digest == made
    (folder / CARD).write_text("another")
    with pytest.raises(ArtifactError, match=f"{CARD}: changed"):
        save_with_detector(folder, digest, tmp_path / "third", other, {})
    assert not (tmp_path / "third").exists()


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        load_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        load_artifact(tmp_path / "absent")


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    weights = load_file(folder / "critic.safetensors")
    save_file({f"other.{k}": v for k, v in weights.items()}, folder / "critic.safetensors")
    resum(folder)
    with pytest.raises(
        ArtifactError,
        match=r"critic\.safetensors: does not fit the networks in run\.json "
        r"\(Error\(s\) in loading state_dict for \w+:\)$",
    ):
        load_artifact(folder)


@pytest.mark.parametrize("constraint", ["weight_clipping", "norm_clipping", "bjorck"])
def test_a_wrong_label_is_refused(tmp_path: Path, constraint: str) -> None:
    """The weights of an unconstrained critic, in an artifact that says otherwise."""
    free = make_artifact(tmp_path / "free", "vector", seed=1, constraint={"kind": "none"})
    weights = load_file(free / "critic.safetensors")
    folder = make_artifact(tmp_path / "artifact", "vector", constraint={"kind": constraint})
    save_file({k: 10 * v for k, v in weights.items()}, folder / "critic.safetensors")
    resum(folder)
    with pytest.raises(
        ArtifactError, match=rf"critic\.safetensors: not a critic under {constraint}"
    ):
        load_artifact(folder)


def test_a_pickle_in_place_of_weights_is_never_loaded(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "generator.safetensors")
    resum(folder)
    with pytest.raises(ArtifactError, match=r"generator\.safetensors"):
        load_artifact(folder)


def test_weights_of_a_type_that_networks_do_not_have_are_refused(folder: Path) -> None:
    header = b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0"
    (folder / GENERATOR).write_bytes(content)
    resum(folder)
    with pytest.raises(ArtifactError, match=r"generator\.safetensors: cannot be read \('F4'\)"):
        load_artifact(folder)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another artifact, each of whose files is another one."""
    other = make_artifact(tmp_path / "other", "rgb", seed=1)
    quantiles = (other / QUANTILES).read_text()
    (other / QUANTILES).write_text(quantiles.replace("1.0", "2.0"))
    (other / GRID).write_bytes(b"another picture")
    return other


@pytest.mark.parametrize("name", [GENERATOR, CRITIC, QUANTILES, GRID])
def test_what_is_exchanged_while_it_is_loaded_is_not_loaded(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def exchanging(*given: Any) -> Any:
        """Exchange a file when everything could have been checked and nothing is loaded."""
        shutil.copy(other / name, folder / name)
        return networks.build_networks(*given)

    monkeypatch.setattr(artifact, "build_networks", exchanging)
    with pytest.raises(ArtifactError, match=re.escape(f"{name}: changed or truncated")):
        load_artifact(folder)


@pytest.mark.parametrize("name", [GENERATOR, CRITIC, QUANTILES, GRID])
def test_what_is_exchanged_once_it_is_read_is_not_missed(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file that is read a second time would give something else than was checked."""
    before = load_artifact(folder)
    read = Path.read_bytes

    def exchanging(path: Path) -> bytes:
        content = read(path)
        if path == folder / name:
            shutil.copy(other / name, path)
        return content

    monkeypatch.setattr(Path, "read_bytes", exchanging)
    model = load_artifact(folder)
    assert read(folder / name) == read(other / name)
    for network, same in ((model.generator, before.generator), (model.critic, before.critic)):
        torch.testing.assert_close(network.state_dict(), same.state_dict(), rtol=0, atol=0)
    assert (model.quantiles == before.quantiles).all()
    assert model.picture == before.picture


def test_another_schema_is_refused(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    run["schema_version"] = 99
    (folder / "run.json").write_text(json.dumps(run))
    resum(folder)
    with pytest.raises(ArtifactError, match="schema_version"):
        load_artifact(folder)


def test_saving_replaces_whole(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", "image")
    before = load_artifact(folder).digest
    make_artifact(folder, "vector")
    assert load_artifact(folder).digest != before
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_the_sums_are_in_the_common_format(folder: Path) -> None:
    import subprocess

    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True)
