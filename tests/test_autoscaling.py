"""The autoscaler of the service, and what it asks Prometheus, as promtool answers it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import tools
from tests.chart import KEDA, ROOT, needs_helm, render
from tests.manifests import named, of_kind

pytestmark = needs_helm
PROMTOOL = tools.find("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: run `make tools`")


def test_the_autoscaler_goes_by_cpu_and_by_requests() -> None:
    def metrics(*more: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = named(
            render("values", False, *more), "HorizontalPodAutoscaler", "wgan"
        )["spec"]["metrics"]
        return found

    assert [m["type"] for m in metrics()] == ["Resource"]
    cpu, requests = metrics("--set", "serve.autoscaling.requestsInFlight=8")
    assert cpu["resource"]["target"]["averageUtilization"] == 70
    assert requests["pods"] == {
        "metric": {"name": "wgan_requests_in_flight"},
        "target": {"type": "AverageValue", "averageValue": "8"},
    }
    (alone,) = metrics(
        "--set", "serve.autoscaling.requestsInFlight=8,serve.autoscaling.cpuPercent=0"
    )
    assert alone == requests


def test_keda_asks_prometheus_itself() -> None:
    documents = render("values", False, *KEDA)
    assert not of_kind(documents, "HorizontalPodAutoscaler")
    spec = named(documents, "ScaledObject", "wgan")["spec"]
    assert spec["scaleTargetRef"]["name"] == "wgan"
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 6)
    cpu, requests = spec["triggers"]
    assert cpu == {"type": "cpu", "metricType": "Utilization", "metadata": {"value": "70"}}
    assert requests["metadata"]["serverAddress"] == "http://prometheus:9090"
    assert requests["metadata"]["threshold"] == "8"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    plain = named(render("values", False), "HorizontalPodAutoscaler", "wgan")
    assert behavior == plain["spec"]["behavior"]
    assert "replicas" not in named(documents, "Deployment", "wgan")["spec"]


# ---- what is asked -------------------------------------------------------------------------------

SERIES = {
    'job="wgan-foundry", namespace="gan", service="wgan", pod="a"': 5,
    'job="wgan-foundry", namespace="gan", service="wgan", pod="b"': 7,
    'job="wgan-foundry", namespace="gan", service="other", pod="c"': 100,
    'job="wgan-foundry", namespace="other", service="wgan", pod="d"': 1000,
}


def answered(query: str, answer: list[dict[str, Any]], folder: Path) -> None:
    """Check Prometheus's answer to a query over the series."""
    series = [
        {"series": f"wgan_requests_in_flight{{{labels}}}", "values": str(value)}
        for labels, value in SERIES.items()
    ]
    case = {"interval": "1m", "input_series": series}
    case["promql_expr_test"] = [{"expr": query, "eval_time": "0m", "exp_samples": answer}]
    (folder / "case.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    command = [str(PROMTOOL), "test", "rules", str(folder / "case.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_keda_asks_for_this_release_alone(tmp_path: Path) -> None:
    spec = named(render("values", False, *KEDA), "ScaledObject", "wgan")["spec"]
    answered(spec["triggers"][1]["metadata"]["query"], [{"labels": "{}", "value": 12}], tmp_path)


@needs_promtool
def test_the_rule_for_prometheus_adapter_tells_pods_apart(tmp_path: Path) -> None:
    """As the adapter fills it in for the pods of a Deployment."""
    docs = (ROOT / "docs/operations.md").read_text()
    found = re.search(r"<!-- a rule of prometheus-adapter -->\n```text\n(.*?)```", docs, re.DOTALL)
    assert found
    (rule,) = yaml.safe_load(found[1])
    name, _, labels = rule["seriesQuery"].partition("{")
    answer = [{"labels": f"{name}{{{labels}}}", "value": value} for labels, value in SERIES.items()]
    answered(f"{name}{{{labels}", answer, tmp_path)
    query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="gan", pod=~"a|b"')
    pods = [{"labels": '{pod="a"}', "value": 5}, {"labels": '{pod="b"}', "value": 7}]
    answered(query, pods, tmp_path)
