"""The locks, what pyproject.toml asks for, and what the code imports agree."""

import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import lock, tools
from deploy.sbom import LINUX

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {path.stem: path.read_text() for path in lock.LOCKS.glob("*.txt")}
CYCLONEDX = tools.find("cyclonedx-py")


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock with its hashes."""
    lines = LOCKS[name].replace("\\\n", " ").splitlines()
    words = [re.split(r"\s+--hash=", line) for line in lines if line[0] != "#"]
    return [(Requirement(requirement), hashes) for requirement, *hashes in words]


def pins(name: str, **environment: str) -> dict[str, str]:
    """The versions that a lock installs, on this machine unless told otherwise."""
    found = [r for r, _ in entries(name) if not r.marker or r.marker.evaluate(environment)]
    assert all(str(r.specifier).startswith("==") for r in found)
    versions = {canonicalize_name(r.name): str(r.specifier)[2:] for r in found}
    assert len(versions) == len(found), "one version of each"
    return versions


def required(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for on Linux, with some extras."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *itertools.chain(*(optional[e] for e in extras))]
    found = [Requirement(text) for text in texts]
    return [r for r in found if not r.marker or r.marker.evaluate(LINUX)]


def test_there_is_a_lock_for_each_purpose() -> None:
    assert LOCKS.keys() == {"torch", "cuda", *lock.EXTRAS}


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_each_requirement_is_pinned_and_has_hashes(name: str) -> None:
    on_arm = pins(name, **LINUX, platform_machine="aarch64")
    assert on_arm == pins(name, **LINUX, platform_machine="x86_64") != {}
    for requirement, hashes in entries(name):
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes)
        assert not requirement.url
    assert "://" not in LOCKS[name], "which registry serves the files is the machine's affair"


@pytest.mark.parametrize("name", sorted(lock.EXTRAS))
def test_the_locks_satisfy_the_project(name: str) -> None:
    versions = pins("torch", **LINUX) | pins(name, **LINUX)
    for requirement in required(lock.EXTRAS[name]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"


def test_the_images_have_the_versions_that_the_tests_run_with() -> None:
    for name in ("service", "train"):
        assert pins(name).items() <= pins("dev").items()
        assert not pins(name).keys() & (pins("torch").keys() | pins("cuda").keys())
    for name, version in (pins("torch") | pins("dev")).items():
        installed = importlib.metadata.version(name)
        assert installed.split("+")[0] == version, name


def test_torch_has_the_hashes_of_both_builds() -> None:
    """For the CPU and for CUDA, for each Python on each machine, and none twice."""
    ((requirement, hashes),) = entries("torch")
    assert str(requirement) == lock.TORCH
    assert len(set(hashes)) == len(hashes) >= 2 * 2 * 4
    # The CPU build for Python 3.11 on x86-64 is in PyTorch's own index alone.
    assert "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b" in hashes


@pytest.mark.skipif(CYCLONEDX is None, reason="no cyclonedx-py: run `make tools`")
def test_the_bill_of_materials_is_what_the_image_installs(tmp_path: Path) -> None:
    assert CYCLONEDX is not None
    command = [CYCLONEDX.with_name("python"), ROOT / "deploy/sbom.py", tmp_path, "train-cuda"]
    subprocess.run(command, check=True, capture_output=True)
    bill = json.loads((tmp_path / "train-cuda.cdx.json").read_text())
    assert bill["metadata"]["component"]["name"] == "wgan-foundry"
    locks = ("torch", "cuda", "train")
    hashes = {
        canonicalize_name(r.name): set(found)
        for name in locks
        for r, found in entries(name)
        if not r.marker or r.marker.evaluate(LINUX)
    }
    versions = {name: version for lock in locks for name, version in pins(lock, **LINUX).items()}
    assert "colorama" not in versions, "which Windows alone needs"
    listed = {canonicalize_name(c["name"]): c for c in bill["components"]}
    assert {name: c["version"] for name, c in listed.items()} == versions
    for name, component in listed.items():
        assert component["purl"].startswith(f"pkg:pypi/{name}@{versions[name]}")
        found = {h["content"] for e in component["externalReferences"] for h in e["hashes"]}
        assert {f"sha256:{digest}" for digest in found} == hashes[name]


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    """pip checks the hashes of our locks, written as they are."""
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    wheel.write_bytes(b"not what was locked")
    (tmp_path / "lock.txt").write_text(f"tiny==1 \\\n    --hash=sha256:{'0' * 64}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--require-hashes",
         "--no-index", "--find-links", tmp_path, "--requirement", tmp_path / "lock.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
