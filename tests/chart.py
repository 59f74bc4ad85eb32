"""Render the Helm chart for tests, each rendering once."""

import functools
import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy import tools
from tests.manifests import Documents

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy/chart"
VALUES = ["values", "values-kind", "values-gpu", "values-production"]
OPERATORS = ["monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule"]
HELM = tools.find("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="no helm: run `make tools`")


def helm(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(HELM), *map(str, arguments)],
        env={**os.environ, "GOGC": "off"},  # it ends before collecting garbage pays
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def text(values: str, gates: bool, *more: str) -> str:
    """Render the chart; with gates, the cluster has the operators' kinds."""
    arguments = ["template", "wgan", CHART, "--namespace", "gan", "--kube-version", "1.37.0"]
    arguments += ["--values", CHART / f"{values}.yaml", *more]
    if gates:
        arguments += [f"--api-versions={kind}" for kind in OPERATORS]
    done = helm(*arguments)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    return done.stdout


@functools.cache
def pickled(values: str, gates: bool, *more: str) -> bytes:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return pickle.dumps([d for d in yaml.load_all(text(values, gates, *more), loader) if d])


def render(values: str, gates: bool, *more: str) -> Documents:
    """The documents of one rendering, the caller's own."""
    documents: Documents = pickle.loads(pickled(values, gates, *more))
    return documents


EVERYTHING = [
    "--set-json="
    + json.dumps(
        {
            "trainJob": {"enabled": True},
            "tune": {"enabled": True, "storage": {"secret": "tuning"}},
            "sample": {"enabled": True, "out": "s3://bucket/samples"},
            "s3": {"secret": "s3"},
            "serve": {
                "apiKeys": {"secret": "keys"},
                "modelClaim": "models",
                "autoscaling": {"enabled": True},
                "tls": {"secret": "own-tls"},
            },
            "signing": {"trustedKeys": "trusted", "key": "signing"},
            "ingress": {"enabled": True, "host": "gan.example.com", "tlsSecret": "tls"},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
        }
    )
]
"""Options that, with values-gpu.yaml, put every template into a rendering."""


def everything() -> Documents:
    """One rendering with every template in it."""
    return render("values-gpu", True, *EVERYTHING)


KEDA = [
    "--set-json",
    'serve.autoscaling={"requestsInFlight": 8, "kedaPrometheus": "http://prometheus:9090"}',
]


OUTSIDE_EVERYTHING = {
    ("Secret", "keys"),
    ("Secret", "signing"),
    ("Secret", "trusted"),
    ("Secret", "tls"),
    ("Secret", "tuning"),
    ("Secret", "tuning/url"),
    ("Secret", "own-tls"),
    ("Secret", "s3/AWS_ACCESS_KEY_ID"),
    ("Secret", "s3/AWS_SECRET_ACCESS_KEY"),
    ("PersistentVolumeClaim", "models"),
}
