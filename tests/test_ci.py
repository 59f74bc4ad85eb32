"""The hosted workflow is valid and does what .ci/run does."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import lock, sbom, tools
from models import __version__
from tests import long
from tests.conftest import is_fast

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github/workflows/ci.yaml"
RELEASE = ROOT / ".github/workflows/release.yaml"
ACTIONLINT = tools.find("actionlint")


def verbs(job: str) -> list[str]:
    """The verbs of the Makefile that a job calls, in order."""
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs[job]["steps"])
    return re.findall(r"^make (\S+)$", commands, re.MULTILINE)


def lint(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(ACTIONLINT), "-no-color", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint: run `make tools`")
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    for workflow in (WORKFLOW, RELEASE):
        done = lint(workflow)
        assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WORKFLOW.read_text().replace("github.ref }}", "github.reference }}"))
    assert 'property "reference" is not defined' in lint(wrong).stdout


def test_the_workflow_calls_the_verbs_of_ci_run() -> None:
    lines = re.findall(r"^make (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    ours = [verb for line in lines for verb in line.split() if not verb.startswith("--")]
    assert verbs("test") == ours
    assert {"install", "lint", "test", "test-long"} <= set(ours)


def test_no_test_is_left_out_of_both_commands() -> None:
    """Nor is any run twice; and each that is listed as long is there."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r'-m "(.*)" \$\(PARALLEL\)$', makefile, re.MULTILINE) == [
        "not slow and not long",
        "long and not slow",
    ]
    for name in long.listed():
        path, *names = name.removesuffix("::runTest").split("::")
        text = (ROOT / path).read_text()
        assert all(re.search(rf"^\s*(def |class )?{n}\b", text, re.M) for n in names), name


def test_a_test_is_long_by_the_mean_over_its_cases(tmp_path: Path) -> None:
    cases = {"one[a]": 0.9, "one[b]": 1.1, "two[a]": 0.9, "two[b]": 1, "three": 9}
    lines = [
        f'<testcase classname="tests.test_x" name="{n}" time="{s}"/>' for n, s in cases.items()
    ]
    lines.append('<testcase classname="tests.test_y.TestY" name="runTest" time="2"/>')
    results = tmp_path / "junit.xml"
    results.write_text(f"<testsuites>{''.join(lines)}</testsuites>")
    assert long.found(results) == [
        "tests/test_x.py::one",
        "tests/test_x.py::three",
        "tests/test_y.py::TestY::runTest",
    ]


def test_every_verb_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for job in ("test", "arm64", "nightly"):
        assert verbs(job)
        for verb in verbs(job):
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE)


def test_slow_tests_and_the_deployment_are_checked_at_night() -> None:
    assert {"test-slow", "verify-deploy"} <= set(verbs("nightly"))
    # YAML 1.1 reads the key `on` as true.
    assert yaml.safe_load(WORKFLOW.read_text())[True]["schedule"]


def release() -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The images of a release, and the steps that make one."""
    job = yaml.safe_load(RELEASE.read_text())["jobs"]["image"]
    return job["strategy"]["matrix"]["include"], job["steps"]


def test_a_release_is_scanned_on_both_machines_and_signed_before_it_has_a_name() -> None:
    _, steps = release()
    told = ["\n".join((s.get("uses", ""), s.get("run", ""))) for s in steps]
    (build,) = [i for i, text in enumerate(told) if "build-push-action@" in text]
    scans = [i for i, text in enumerate(told) if "trivy-action@" in text]
    (last,) = [i for i, text in enumerate(told) if "imagetools create" in text]
    assert [build, *scans, last] == sorted([build, *scans, last])
    assert last == len(steps) - 1
    options = steps[build]["with"]
    assert "tags" not in options
    assert "push-by-digest=true" in options["outputs"]
    assert options["sbom"] is True
    assert options["provenance"] == "mode=max"
    machines = options["platforms"].split(",")
    assert [steps[i]["env"]["TRIVY_PLATFORM"] for i in scans] == machines
    kinds = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
    assert [kinds[m] for m in machines] == [p.partition("-")[0] for p in lock.PLATFORMS]
    for i in scans:
        assert steps[i]["with"]["exit-code"] == "1"
        assert "@${{ steps.build.outputs.digest }}" in steps[i]["with"]["image-ref"]
    by_name = told[last].index("imagetools create")
    for command in ("cosign sign --yes", "cosign attest --yes --type cyclonedx"):
        assert told[last].index(command) < by_name


def test_a_release_makes_the_images_that_there_are() -> None:
    images, steps = release()
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert {image["name"] for image in images} == set(sbom.IMAGES)
    for image in images:
        assert re.search(rf"^FROM .* AS {image['target']}$", dockerfile, re.MULTILINE)
        locks = {"torch", image["target"]} | ({"cuda"} if image["compute"] == "cuda" else set())
        assert set(sbom.IMAGES[image["name"]]) == locks
    (arguments,) = [s["with"]["build-args"] for s in steps if "build-args" in s.get("with", {})]
    for argument in re.findall(r"^(\w+)=", arguments, re.MULTILINE):
        assert re.search(rf"^ARG {argument}\b", dockerfile, re.MULTILINE), argument


def test_actions_of_a_release_are_named_by_their_commits() -> None:
    used = re.findall(r"uses: (\S+)(.*)", RELEASE.read_text())
    assert len(used) == sum("uses" in step for step in release()[1])
    for action, comment in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize(
    ("base", "tag", "code"),
    [
        ("python:3.11-slim-bookworm@sha256:" + "0" * 64, f"v{__version__}", 0),
        ("python:3.11-slim-bookworm", f"v{__version__}", 1),
        ("", f"v{__version__}", 1),
        ("python:3.11-slim-bookworm@sha256:" + "0" * 64, "v0.0.0", 1),
    ],
)
def test_a_release_has_a_base_by_digest_and_the_version_of_its_tag(
    base: str, tag: str, code: int, tmp_path: Path
) -> None:
    (script,) = [step["run"] for step in release()[1] if step.get("id") == "names"]
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON_IMAGE": base, "GITHUB_REF_NAME": tag,
             "GITHUB_REPOSITORY": "Example/WGAN", "GITHUB_OUTPUT": str(tmp_path / "out")},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code == 0:
        written = dict(line.split("=", 1) for line in (tmp_path / "out").read_text().splitlines())
        assert written["version"] == __version__
        assert written["image"] == "ghcr.io/example/wgan"
    else:
        assert "::error::" in done.stdout


def test_make_test_fetches_the_tools_that_it_needs() -> None:
    """On a new machine the tests of deploy/ run, and are not skipped."""
    done = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fetch, _, tests = done.stdout.partition(" -m pytest ")
    assert "deploy/tools.py helm prometheus venv" in fetch
    assert tests


def test_the_fast_third_of_a_matrix_meets_every_value_of_its_fastest_parameter() -> None:
    for columns in {*range(1, 18)} - {9}:
        cases = [case for case in range(9 * columns) if is_fast(case)]
        assert len(cases) == 3 * columns
        assert {case % columns for case in cases} == {*range(columns)}
