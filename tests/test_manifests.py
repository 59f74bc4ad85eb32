"""Each check of manifests finds the fault that it is for."""

from typing import Any

import pytest

from tests import manifests
from tests.chart import OUTSIDE_EVERYTHING, everything, needs_helm
from tests.manifests import Documents, named

pytestmark = needs_helm


def edit(documents: Documents, kind: str, name: str, path: str, value: Any) -> None:
    """Set a field, or delete it if the value is ...; numbers in the path are indices, ~ is /."""
    node: Any = named(documents, kind, name)
    *way, last = [int(p) if p.isdigit() else p.replace("~", "/") for p in path.split("/")]
    for part in way:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value


POD = "spec/template/spec"
CONTAINER = f"{POD}/containers/0"
JOB = "spec/jobTemplate/spec"
BROKEN = [
    ("check_cron", "CronJob", "wgan-retrain", "spec/schedule", "17 25 * * *"),
    ("check_cron", "CronJob", "wgan-retrain", "spec/schedule", "17 3 0 * *"),
    ("check_cron", "CronJob", "wgan-retrain", "spec/schedule", "17 3 * * 5-1"),
    ("check_cron", "CronJob", "wgan-retrain", "spec/timeZone", "Europe/Berln"),
    (
        "check_requests_are_within_limits",
        "Deployment",
        "wgan",
        f"{CONTAINER}/resources/requests/memory",
        "9Gi",
    ),
    (
        "check_requests_are_within_limits",
        "Deployment",
        "wgan",
        f"{CONTAINER}/resources/requests/cpu",
        "2001m",
    ),
    (
        "check_selectors_choose_their_own_pods",
        "Deployment",
        "wgan",
        "spec/selector/matchLabels/app.kubernetes.io~component",
        "x",
    ),
    ("check_services_lead_to_ports", "Service", "wgan", "spec/ports/0/targetPort", "https"),
    (
        "check_routes_lead_to_services",
        "Ingress",
        "wgan",
        "spec/rules/0/http/paths/0/backend/service/port/name",
        "https",
    ),
    ("check_routes_lead_to_services", "Ingress", "wgan", "spec/rules/0/http/paths/0/path", "/"),
    ("check_routes_lead_to_services", "Ingress", "wgan", "spec/rules/0/host", "other.example.com"),
    ("check_routes_lead_to_services", "HTTPRoute", "wgan", "spec/rules/0/backendRefs/0/port", 80),
    ("check_routes_lead_to_services", "HTTPRoute", "wgan", "spec/rules/0/backendRefs/0/name", "x"),
    ("check_ports", "Deployment", "wgan", f"{CONTAINER}/ports/0/name", "a-name-that-is-long"),
    ("check_probes", "Deployment", "wgan", f"{CONTAINER}/livenessProbe/httpGet/port", "metrics"),
    ("check_probes", "Deployment", "wgan", f"{CONTAINER}/livenessProbe/successThreshold", 2),
    ("check_probes", "Deployment", "wgan", f"{CONTAINER}/readinessProbe", ...),
    ("check_mounts", "Deployment", "wgan", f"{POD}/volumes/0/name", "other"),
    ("check_mounts", "Deployment", "wgan", f"{CONTAINER}/volumeMounts/0/readOnly", True),
    (
        "check_environment",
        "CronJob",
        "wgan-retrain",
        f"{JOB}/template/spec/containers/0/env/0/name",
        "JOBS",
    ),
    ("check_disruption_budgets", "PodDisruptionBudget", "wgan", "spec/minAvailable", 1),
    ("check_disruption_budgets", "PodDisruptionBudget", "wgan", "spec/maxUnavailable", 0),
    ("check_autoscalers", "HorizontalPodAutoscaler", "wgan", "spec/maxReplicas", 1),
    ("check_autoscalers", "HorizontalPodAutoscaler", "wgan", "spec/scaleTargetRef/name", "gan"),
    ("check_autoscalers", "Deployment", "wgan", "spec/replicas", 2),
    ("check_pod_security", "Deployment", "wgan", f"{POD}/securityContext/runAsNonRoot", False),
    (
        "check_pod_security",
        "CronJob",
        "wgan-retrain",
        f"{JOB}/template/spec/containers/0/securityContext/capabilities",
        {},
    ),
    (
        "check_pod_security",
        "Deployment",
        "wgan-mlflow",
        f"{POD}/automountServiceAccountToken",
        True,
    ),
    ("check_jobs", "CronJob", "wgan-retrain", f"{JOB}/template/spec/restartPolicy", "OnFailure"),
    (
        "check_jobs",
        "CronJob",
        "wgan-retrain",
        f"{JOB}/podFailurePolicy/rules/0/onExitCodes/containerName",
        "train",
    ),
    ("check_jobs", "CronJob", "wgan-retrain", f"{JOB}/template/spec/subdomain", "wgan-mlflow"),
    (
        "check_disks_reach_their_pods",
        "PersistentVolumeClaim",
        "wgan-runs",
        "spec/accessModes",
        ["ReadWriteOnce"],
    ),
    (
        "check_disks_reach_their_pods",
        "Deployment",
        "wgan-mlflow",
        "spec/strategy",
        {"type": "RollingUpdate"},
    ),
    (
        "check_network_policies",
        "NetworkPolicy",
        "wgan-serve",
        "spec/ingress/0/ports/0/port",
        "grpc",
    ),
    (
        "check_network_policies",
        "NetworkPolicy",
        "wgan-train",
        "spec/podSelector/matchLabels/app.kubernetes.io~component",
        "x",
    ),
    ("check_network_policies", "NetworkPolicy", "wgan-mlflow", "spec/ingress/0/from", []),
    ("check_network_policies", "NetworkPolicy", "wgan-mlflow", "spec/ingress/0/from/1", ...),
    ("check_names_are_unique_and_short", "CronJob", "wgan-retrain", "metadata/name", "x" * 53),
    ("check_references", "Deployment", "wgan", f"{POD}/serviceAccountName", "default"),
    ("check_references", "Ingress", "wgan", "spec/tls/0/secretName", "other"),
    (
        "check_references",
        "CronJob",
        "wgan-retrain",
        f"{JOB}/template/spec/containers/0/env/8/valueFrom/secretKeyRef/key",
        "KEY",
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case[0]}: {case[3]} {case[4]}")
def test_a_check_finds_what_is_broken(case: tuple[str, str, str, str, Any]) -> None:
    check, kind, name, path, value = case
    documents = everything()
    edit(documents, kind, name, path, value)
    arguments = [OUTSIDE_EVERYTHING] if check == "check_references" else []
    with pytest.raises((AssertionError, KeyError)):
        getattr(manifests, check)(documents, *arguments)


def test_every_check_is_shown_to_find_something() -> None:
    shown = {case[0] for case in BROKEN}
    assert {check.__name__ for check in manifests.CHECKS} <= shown
