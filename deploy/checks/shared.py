"""What the checks of deploy/ share: running programs, rendering the chart, skipping."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from deploy import tools

ROOT = tools.ROOT
CHART = ROOT / "deploy/chart"
OPERATORS = ["monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule"]


class Skipped(Exception):
    """A check cannot run here; the message says why."""


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def need(program: str) -> Path:
    """Return the path of a program; raise Skipped if there is none."""
    found = tools.find(program)
    if found is None:
        raise Skipped(f"no {program}, and it could not be fetched")
    return found


def run(*command: object, **options: Any) -> str:
    """Run a command and return what it printed; its output is in the error if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=options.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    line = shlex.join(map(str, command))
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pytest(*files: str) -> str:
    """Run tests, slow ones too, and return pytest's last line; a skipped test is a failure here."""
    output = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    summary = output.strip().splitlines()[-1]
    assert "skipped" not in summary, output[-3000:]
    return summary.strip("= ")


def render(helm: Path, values: str, *more: str) -> str:
    """Return the chart's manifests, as for a cluster with the Prometheus operator."""
    kinds = [f"--api-versions={kind}" for kind in OPERATORS]
    file = CHART / f"{values}.yaml"
    return run(helm, "template", "wgan", CHART, "--namespace", "gan", "-f", file, *kinds, *more)


def pod_spec(kind: str, name: str) -> dict[str, Any]:
    """Return the pod specification of a workload on a cluster of one node."""
    more = ["--set", "s3.secret=s3"]
    for document in yaml.safe_load_all(render(need("helm"), "values-kind", *more)):
        if document and (document["kind"], document["metadata"]["name"]) == (kind, name):
            spec = document["spec"]
            spec = spec["jobTemplate"]["spec"] if kind == "CronJob" else spec
            return spec["template"]["spec"]
    raise AssertionError(f"the chart has no {kind} {name}")
