"""Upgrades of the chart between values that people change: no cluster refuses one."""

import copy
import json
from typing import Any

import pytest
import yaml

from tests.chart import CHART, EVERYTHING, everything, needs_helm, render
from tests.cluster import cluster, refused
from tests.manifests import Documents, named, of_kind

pytestmark = needs_helm

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Changes that do not follow from a value's type: lists, maps, texts, and what goes together.
CHANGES: list[dict[str, Any]] = [
    {"images.service": {"tag": "other"}},
    {"images.train": {"tag": "other"}},
    {"images.pullSecrets": ["other"]},
    {"serve.model": "faces@champion"},
    {"serve.env": {"WGAN_WORKERS": "2"}},
    {"serve.resources": {"limits": {"memory": "16Gi"}}},
    {"serve.nodeSelector": {"disk": "ssd"}},
    {"serve.tolerations": []},
    {"retrain.schedule": "0 0 * * *"},
    {"retrain.config": {"preset": "images", "folder": "/runs"}},
    {"retrain.resources": {"limits": {"memory": "64Gi"}}},
    {"retrain.env": {"A": "b"}},
    {"retrain.nodeSelector": {"disk": "ssd"}},
    {"trainJob.runtime": "other"},
    {"sweep.preset": "images"},
    {"sweep.constraints": ["weight_clipping"]},
    {"sweep.set": ["training.seed=2"]},
    {"tune.data": "s3://bucket/photos/"},
    {"tune.preset": "images"},
    {"tune.constraints": ["gradient_penalty", "none"]},
    {"tune.search": ["critic.depth=2,3"]},
    {"tune.set": ["name=photos"]},
    {"tune.budget": "30m"},
    {"tune.storage": {"secret": "other"}},
    {"sample.model": "faces@3"},
    {"sample.format": "csv"},
    {"sample.out": "s3://other/samples"},
    {"sample.where": ["a=1"]},
    {"sample.resources": {"limits": {"cpu": "4"}}},
    {"runs.existingClaim": "mine"},
    {"runs.size": "200Gi"},
    {"s3.endpoint": "https://s3.example.com"},
    {"s3.region": "eu-central-1"},
    {"s3.secret": "other"},
    {"mlflow.enabled": False, "mlflow.externalUri": "https://mlflow.example.com"},
    {"mlflow.secret": "mlflow"},
    {"mlflow.existingClaim": "mine"},
    {"mlflow.size": "20Gi"},
    {"mlflow.allowedHosts": ["mlflow.example.com"]},
    {"ingress.paths": ["/"]},
    {"networkPolicy.clients": []},
    {"serve.autoscaling": {"requestsInFlight": 8}},
    {"serve.autoscaling": {"requestsInFlight": 8, "kedaPrometheus": "http://prometheus:9090"}},
    {"pods.all": {"labels": {"team": "ml"}, "env": {"A": "b"}, "sharedMemory": "1Gi"}},
    {"pods.train": {"sharedMemory": "1Gi", "serviceAccountName": "mine"}},
    {"objects": {"labels": {"team": "ml"}, "annotations": {"a/b": "c"}}},
    {"serviceAccount": {"create": False, "name": "mine"}},
    {"service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}}},
    {"caBundle": {"configMap": "ca"}},
    {"proxy": {"https": "http://proxy:3128"}},
]
BASE = copy.deepcopy(VALUES)
for section, content in yaml.safe_load((CHART / "values-gpu.yaml").read_text()).items():
    BASE[section] |= content


def other(value: bool | int) -> bool | int:
    """The other of true and false, or a number that is one larger."""
    return not value if isinstance(value, bool) else value + 1


CHANGES += [
    {f"{section}.{key}": other(value)}
    for section, content in BASE.items()
    if isinstance(content, dict)
    for key, value in content.items()
    if isinstance(value, bool | int)
    and (section, key) not in [("mlflow", "enabled"), ("serviceAccount", "create")]
]


def upgrade(old: Documents, change: dict[str, Any], replicas: int | None = None) -> Documents:
    """What helm makes of changed values in a cluster that has the old objects."""
    options = [f"--set-json={path}={json.dumps(value)}" for path, value in change.items()]
    with cluster(old, replicas) as there:
        return render("values-gpu", True, *EVERYTHING, *options, *there)


@pytest.fixture(scope="module")
def installed() -> Documents:
    return everything()


@pytest.mark.sampled
@pytest.mark.parametrize("change", CHANGES, ids=",".join)
def test_no_immutable_field_changes(installed: Documents, change: dict[str, Any]) -> None:
    new = upgrade(installed, change)
    assert refused(installed, new) == []
    if not {"runs.size", "mlflow.size"} & change.keys():  # claims cannot shrink
        assert refused(new, upgrade(new, {})) == [], "and back"


def test_a_faulty_upgrade_is_noticed(installed: Documents) -> None:
    for kind, field in (("Job", "template"), ("TrainJob", "trainer"), ("Deployment", "selector")):
        broken = copy.deepcopy(installed)
        of_kind(broken, kind)[0]["spec"][field]["other"] = "other"
        assert len(refused(installed, broken)) == 1
    broken = copy.deepcopy(installed)
    named(broken, "PersistentVolumeClaim", "wgan-runs")["spec"]["resources"]["requests"] = {
        "storage": "1Gi"
    }
    assert refused(installed, broken) == ["PersistentVolumeClaim wgan-runs: it shrinks"]


def names(documents: Documents) -> dict[str, str]:
    """The names of what runs once, by what it does."""
    jobs = of_kind(documents, "Job", "TrainJob")
    return {d["metadata"]["name"].rsplit("-", 1)[0]: d["metadata"]["name"] for d in jobs}


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({"retrain.suspend": True}, []),
        ({"retrain.schedule": "0 0 * * *", "retrain.backoffLimit": 5}, []),
        ({"serve.replicas": 7, "monitoring.rules.enabled": False}, []),
        ({"sweep.parallelism": 1, "sample.parallelism": 1}, []),
        ({"sweep.activeDeadlineSeconds": 60, "sample.activeDeadlineSeconds": 60}, []),
        ({"tune.activeDeadlineSeconds": 60}, []),
        ({"sweep.set": ["training.seed=2"]}, ["wgan-sweep"]),
        ({"tune.workers": 3}, ["wgan-tune"]),
        ({"tune.budget": "3h"}, ["wgan-tune"]),
        ({"sample.seed": 2}, ["wgan-sample"]),
        ({"retrain.config": {"preset": "images", "folder": "/runs"}}, ["wgan-train"]),
        ({"retrain.resources.limits.memory": "64Gi"}, ["wgan-sweep", "wgan-train", "wgan-tune"]),
        ({"s3.region": "other"}, ["wgan-sample", "wgan-sweep", "wgan-train", "wgan-tune"]),
        ({"images.train.tag": "other"}, ["wgan-sample", "wgan-sweep", "wgan-train", "wgan-tune"]),
    ],
    ids=str,
)
def test_what_runs_is_replaced_only_by_what_it_does(
    installed: Documents, change: dict[str, Any], replaced: list[str]
) -> None:
    old, new = names(installed), names(upgrade(installed, change))
    assert old.keys() == new.keys() == {"wgan-sweep", "wgan-tune", "wgan-sample", "wgan-train"}
    assert sorted(kind for kind in old if old[kind] != new[kind]) == replaced


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"runs.size": "1Gi"}, "runs.size cannot shrink from 100Gi to 1Gi"),
        ({"mlflow.size": "512Mi"}, "mlflow.size cannot shrink from 10Gi to 512Mi"),
        ({"runs.accessModes": ["ReadWriteOnce"]}, "runs.accessModes cannot change"),
        ({"runs.storageClass": "fast"}, "runs.storageClass cannot change from shared to fast"),
        ({"mlflow.storageClass": "fast"}, "mlflow.storageClass cannot change from standard"),
    ],
    ids=str,
)
def test_a_claim_that_cannot_be_changed_is_said_before_anything_changes(
    installed: Documents, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(AssertionError, match=says) as error:
        upgrade(installed, change)
    assert "existingClaim" in str(error.value)


def replicas(documents: Documents) -> int | None:
    return named(documents, "Deployment", "wgan")["spec"].get("replicas")


def test_autoscaling_goes_off_and_on_without_losing_pods(installed: Documents) -> None:
    """A field that helm takes away becomes the cluster's default: one."""
    assert replicas(installed) is None, "the first installation leaves it to the autoscaler"
    assert replicas(upgrade(installed, {}, replicas=5)) == 5
    off = upgrade(installed, {"serve.autoscaling.enabled": False, "serve.replicas": 4}, replicas=5)
    assert replicas(off) == 4
    assert replicas(upgrade(off, {})) == 4, "until the autoscaler says otherwise"
