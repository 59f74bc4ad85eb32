"""Checks of the files themselves: nothing is built and nothing but Prometheus runs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from deploy import lock
from deploy.checks.shared import need, pytest, render, run

VALUES = ["values", "values-kind", "values-gpu", "values-production"]
CHART_TESTS = ["chart", "chart_pods", "chart_upgrades", "autoscaling", "private_ca"]
CHART_TESTS += ["manifests", "values", "chart_https", "chart_schema"]
CHECKOV_SKIPS = {
    "CKV_K8S_43": "values-production.yaml sets an image digest; a laptop has none",
    "CKV_K8S_15": "pulling always fails for an image loaded into the node, and a digest says more",
    "CKV_K8S_35": "boto's keys may be variables; API keys and what MLflow is asked with are files",
}


def dockerfile() -> str:
    """Hadolint finds nothing in the Dockerfile."""
    run(need("hadolint"), "Dockerfile")
    return "hadolint: nothing found"


def workflow() -> str:
    """Actionlint finds nothing in the hosted workflows."""
    run(need("actionlint"))
    return "actionlint: nothing found"


def locks() -> str:
    """Everything in the locks has a wheel for Linux on x86-64 and on arm64."""
    lock.check_wheels()
    return f"wheels for {', '.join(lock.PLATFORMS)}"


def chart() -> str:
    """The chart renders, and its manifests pass every check of the tests."""
    need("helm")
    need("kubernetes-validate")
    return pytest(*(f"tests/test_{name}.py" for name in CHART_TESTS))


def security() -> str:
    """Checkov finds only the kinds that we skip for a reason."""
    checkov, helm = need("checkov"), need("helm")
    with tempfile.TemporaryDirectory() as folder:
        for values in VALUES:
            (Path(folder) / f"{values}.yaml").write_text(render(helm, values))
        output = run(
            *(checkov, "--directory", folder, "--framework", "kubernetes", "--output", "json"),
            *("--compact", "--quiet", "--skip-download", "--soft-fail"),
        )
    report = json.loads(output)
    found = {check["check_id"] for check in report["results"]["failed_checks"]}
    assert found <= set(CHECKOV_SKIPS), found - set(CHECKOV_SKIPS)
    unneeded = set(CHECKOV_SKIPS) - found
    assert not unneeded, f"skipped for nothing: {unneeded}"
    return f"checkov: {report['summary']['passed']} checks passed, {len(found)} kinds skipped"


def monitoring() -> str:
    """Rules, dashboard and alerts work with a real Prometheus, Alertmanager and service."""
    need("promtool")
    return pytest("tests/test_monitoring.py")
