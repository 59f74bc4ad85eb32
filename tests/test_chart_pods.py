"""What the chart lets people add to its pods and objects: each addition, in each workload."""

import functools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import proxy_bypass_environment

import pytest
import yaml

from deploy import tools
from tests import manifests
from tests.chart import CHART, EVERYTHING, helm, needs_helm, render
from tests.manifests import Document, Documents, named, of_kind
from tests.test_chart import dropped

pytestmark = needs_helm
VALIDATE = tools.find("kubernetes-validate")
WORKLOADS = {
    "serve": ["wgan"],
    "mlflow": ["wgan-mlflow"],
    "train": ["wgan-retrain", "wgan-sweep", "wgan-tune", "wgan-sample"],
}
EVERY_WORKLOAD = {name for names in WORKLOADS.values() for name in names}
# Without a TrainJob, which cannot take all of it: see below.
NO_TRAIN_JOB = '--set-json={"trainJob": {"enabled": false}}'


def rendered(values: dict[str, Any], *more: str) -> Documents:
    return render("values-gpu", True, *EVERYTHING, *more, f"--set-json={json.dumps(values)}")


def pods(documents: Documents) -> dict[str, Document]:
    """Pod templates by their workload's name, without the hash of a Job's."""
    found = {}
    for workload, template in manifests.templates(documents):
        name = workload["metadata"]["name"]
        found[name.rsplit("-", 1)[0] if workload["kind"] == "Job" else name] = template
    assert found.keys() == EVERY_WORKLOAD
    return found


def ours(pod: Document) -> Document:
    """The chart's own container of a pod."""
    container: Document = pod["spec"]["containers"][0]
    return container


CONTAINER = {"name": "first", "image": "busybox", "command": ["true"]}
SECURE = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
SECRET = {"valueFrom": {"secretKeyRef": {"name": "more", "key": "token"}}}
ADDED: list[tuple[str, dict[str, Any], Callable[[Document], bool]]] = [
    ("labels", {"team": "ml"}, lambda pod: pod["metadata"]["labels"]["team"] == "ml"),
    ("annotations", {"a/b": "c"}, lambda pod: pod["metadata"]["annotations"] == {"a/b": "c"}),
    ("env", {"A": "b"}, lambda pod: {"name": "A", "value": "b"} in ours(pod)["env"]),
    ("env", {"T": SECRET}, lambda pod: {"name": "T", **SECRET} in ours(pod)["env"]),
    (
        "envFrom",
        [{"secretRef": {"name": "more"}}],
        lambda pod: ours(pod)["envFrom"] == [{"secretRef": {"name": "more"}}],
    ),
    (
        "volumes",
        [{"name": "more", "configMap": {"name": "more"}}],
        lambda pod: {"name": "more", "configMap": {"name": "more"}} in pod["spec"]["volumes"],
    ),
    (
        "volumeMounts",
        [{"name": "more", "mountPath": "/more"}],
        lambda pod: {"name": "more", "mountPath": "/more"} in ours(pod)["volumeMounts"],
    ),
    (
        "initContainers",
        [CONTAINER],
        lambda pod: SECURE.items() <= pod["spec"]["initContainers"][0]["securityContext"].items(),
    ),
    (
        "initContainers",
        [{**CONTAINER, "securityContext": {"runAsUser": 7}}],
        lambda pod: pod["spec"]["initContainers"][0]["securityContext"] == {"runAsUser": 7},
    ),
    (
        "sidecars",
        [CONTAINER],
        lambda pod: (
            pod["spec"]["initContainers"][0]["restartPolicy"] == "Always"
            and len(pod["spec"]["containers"]) == 1
        ),
    ),
    ("nodeSelector", {"a": "b"}, lambda pod: pod["spec"]["nodeSelector"]["a"] == "b"),
    (
        "tolerations",
        [{"key": "a", "operator": "Exists"}],
        lambda pod: {"key": "a", "operator": "Exists"} in pod["spec"]["tolerations"],
    ),
    (
        "affinity",
        {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        lambda pod: "podAntiAffinity" in pod["spec"]["affinity"],
    ),
    ("priorityClassName", "high", lambda pod: pod["spec"]["priorityClassName"] == "high"),
    ("runtimeClassName", "nvidia", lambda pod: pod["spec"]["runtimeClassName"] == "nvidia"),
    ("serviceAccountName", "mine", lambda pod: pod["spec"]["serviceAccountName"] == "mine"),
    (
        "automountServiceAccountToken",
        True,
        lambda pod: pod["spec"]["automountServiceAccountToken"] is True,
    ),
    (
        "securityContext",
        {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        lambda pod: (
            pod["spec"]["securityContext"]
            == {
                "runAsNonRoot": True,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            }
        ),
    ),
    (
        "securityContext",
        {"runAsUser": 1000650000},
        lambda pod: pod["spec"]["securityContext"]["runAsUser"] == 1000650000,
    ),
    (
        "containerSecurityContext",
        {"readOnlyRootFilesystem": False},
        lambda pod: ours(pod)["securityContext"]["readOnlyRootFilesystem"] is False,
    ),
    (
        "sharedMemory",
        "2Gi",
        lambda pod: (
            {"name": "shared-memory", "mountPath": "/dev/shm"} in ours(pod)["volumeMounts"]
            and {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
            in pod["spec"]["volumes"]
        ),
    ),
]


def test_everything_that_can_be_added_is_shown() -> None:
    known = yaml.safe_load((CHART / "values.yaml").read_text())["pods"]["all"]
    assert {key for key, _, _ in ADDED} == known.keys()


def shows(holds: Callable[[Document], bool], pod: Document) -> bool:
    try:
        return holds(pod)
    except (KeyError, IndexError):
        return False


@pytest.mark.parametrize("case", ADDED, ids=lambda case: f"{case[0]}: {case[1]}")
@pytest.mark.parametrize("where", ["all", *WORKLOADS])
def test_an_addition_reaches_the_pods_that_it_is_for(
    where: str, case: tuple[str, Any, Callable[[Document], bool]]
) -> None:
    key, value, holds = case
    found = pods(rendered({"pods": {where: {key: value}}}, NO_TRAIN_JOB))
    reached = {name for name, pod in found.items() if shows(holds, pod)}
    assert reached == set(WORKLOADS.get(where, EVERY_WORKLOAD))


def test_a_component_adds_to_lists_and_wins_otherwise() -> None:
    taint = {"operator": "Exists"}
    found = pods(
        rendered(
            {
                "pods": {
                    "all": {
                        "tolerations": [{"key": "a", **taint}],
                        "env": {"A": "all", "B": "all"},
                    },
                    "serve": {"tolerations": [{"key": "b", **taint}], "env": {"A": "serve"}},
                },
                "serve": {"tolerations": [{"key": "c", **taint}], "env": {"C": "own", "B": "own"}},
            },
            NO_TRAIN_JOB,
        )
    )
    serve = found["wgan"]
    assert [t["key"] for t in serve["spec"]["tolerations"]] == ["c", "a", "b"]
    values = {v["name"]: v.get("value") for v in ours(serve)["env"]}
    assert (values["A"], values["B"], values["C"]) == ("serve", "own", "own")
    assert [t["key"] for t in found["wgan-mlflow"]["spec"]["tolerations"]] == ["a"]


@pytest.mark.parametrize("component", WORKLOADS)
@pytest.mark.parametrize("key", ["labels", "annotations", "env", "nodeSelector"])
def test_null_takes_away_what_all_pods_have(component: str, key: str) -> None:
    taken, kept = {key: {"A": "x", "B": "y"}}, {key: {"B": "y"}}
    values = {"pods": {"all": taken, component: {key: {"A": None}}}}
    found = pods(rendered(values, NO_TRAIN_JOB))
    with_both = pods(rendered({"pods": {"all": taken}}, NO_TRAIN_JOB))
    with_one = pods(rendered({"pods": {"all": kept}}, NO_TRAIN_JOB))
    for name, pod in found.items():
        assert pod == (with_one if name in WORKLOADS[component] else with_both)[name]
    done = helm("template", "wgan", CHART, f"--set-json=pods.all.{key}.A=null")
    assert f"'/pods/all/{key}/A'" in done.stderr, "there is nothing to take away from"


@pytest.mark.parametrize("component", WORKLOADS)
def test_the_chart_s_own_variables_are_not_set_twice(component: str) -> None:
    """Whoever sets one in `env` is told the value that sets it."""
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    found = pods(rendered({}))
    own = {v["name"] for name in WORKLOADS[component] for v in ours(found[name])["env"]}
    own -= {"WGAN_DEVICE"}  # in values-gpu.yaml's serve.env
    assert own
    base = ["template", "wgan", CHART, f"--values={CHART}/values-gpu.yaml", *EVERYTHING]
    for name in sorted(own):
        done = helm(*base, NO_TRAIN_JOB, f"--set-string=pods.{component}.env.{name}=1")
        says = re.search(rf"{name}: set (\S+)( or \S+)?, not this variable in env", done.stderr)
        assert says, (name, done.stderr)
        for path in filter(None, (says[1], (says[2] or "").removeprefix(" or "))):
            functools.reduce(lambda node, key: node[key], path.split("."), known)
    section = {"serve": "serve", "train": "retrain"}.get(component)
    if section:
        done = helm(*base, f"--set-string={section}.env.MLFLOW_TRACKING_URI=1")
        assert "MLFLOW_TRACKING_URI: set mlflow.enabled" in done.stderr


def test_labels_that_select_pods_are_not_to_be_changed() -> None:
    values = {"pods": {"all": {"labels": {"app.kubernetes.io/component": "x"}}}}
    done = helm("template", "wgan", CHART, f"--set-json={json.dumps(values)}")
    assert done.returncode != 0
    assert "app.kubernetes.io/component" in done.stderr


# ---- the TrainJob, whose pods are the operator's -------------------------------------------------

PATCHED = {"labels", "nodeSelector", "tolerations", "affinity", "serviceAccountName", "env"}
PATCHED |= {"volumes", "volumeMounts", "securityContext", "containerSecurityContext"}
PATCHED |= {"sharedMemory", "annotations"}


@pytest.mark.parametrize("case", ADDED, ids=lambda case: f"{case[0]}: {case[1]}")
def test_a_train_job_takes_an_addition_or_names_it(
    case: tuple[str, Any, Callable[[Document], bool]],
) -> None:
    key, value, _ = case
    added = "--set-json=" + json.dumps({"pods": {"train": {key: value}}})
    options = ["--set=trainJob.enabled=true", "--show-only=templates/trainjob.yaml"]
    if key not in PATCHED:
        done = helm("template", "wgan", CHART, *options, added)
        assert f"{key}: a TrainJob cannot add it" in done.stderr
        return
    (job,) = render("values", False, *options, added)
    (before,) = render("values", False, *options)
    assert job["spec"] != before["spec"]


@pytest.mark.skipif(not tools.PYTHON.exists(), reason="no typed models: run `make tools`")
def test_the_operator_knows_what_is_added_to_a_train_job() -> None:
    added = {key: value for key, value, _ in ADDED if key in PATCHED}
    (job,) = of_kind(rendered({"pods": {"train": added}}), "TrainJob")
    assert dropped([job]) == [[]]


# ---- what is added once, for all -----------------------------------------------------------------


def test_every_object_has_the_labels_and_annotations() -> None:
    added = {"labels": {"team": "ml"}, "annotations": {"a/b": "c"}}
    documents = rendered({"objects": added, "ingress": {"annotations": {"d/e": "f"}}})
    for document in documents:
        metadata = document["metadata"]
        assert metadata["labels"]["team"] == "ml", document["kind"]
        assert metadata["annotations"]["a/b"] == "c", document["kind"]
    assert named(documents, "Ingress", "wgan")["metadata"]["annotations"]["d/e"] == "f"
    claim = named(documents, "PersistentVolumeClaim", "wgan-runs")["metadata"]["annotations"]
    assert claim["helm.sh/resource-policy"] == "keep"
    # A selector must not change with them.
    selector = named(documents, "Deployment", "wgan")["spec"]["selector"]["matchLabels"]
    assert "team" not in selector


def test_the_account_is_ours_with_annotations_or_theirs() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/wgan"}
    documents = rendered({"serviceAccount": {"annotations": role, "name": "robot"}})
    account = named(documents, "ServiceAccount", "robot")
    assert account["metadata"]["annotations"] == role
    theirs = rendered({"serviceAccount": {"create": False, "name": "theirs"}})
    assert not of_kind(theirs, "ServiceAccount")
    for found, name in ((documents, "robot"), (theirs, "theirs")):
        assert {p["spec"]["serviceAccountName"] for p in pods(found).values()} == {name}


def test_the_service_can_be_a_load_balancer() -> None:
    documents = rendered({"service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}}})
    service = named(documents, "Service", "wgan")
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"] == {"a/b": "c"}
    assert named(documents, "Service", "wgan-mlflow")["spec"]["type"] == "ClusterIP"


@pytest.mark.parametrize(("section", "name"), [("serve", "wgan"), ("mlflow", "wgan-mlflow")])
def test_probes_can_be_set(section: str, name: str) -> None:
    slow = {"initialDelaySeconds": 9, "periodSeconds": 8, "timeoutSeconds": 7}
    documents = rendered({section: {"probes": {"startup": slow}}})
    probe = ours(pods(documents)[name])["startupProbe"]
    assert slow.items() <= probe.items()
    assert {"failureThreshold", "httpGet"} <= probe.keys()


def test_dns_may_listen_elsewhere() -> None:
    documents = rendered({"networkPolicy": {"dnsPorts": [53, 5353]}})
    for name in ("wgan-serve", "wgan-train"):
        ports = named(documents, "NetworkPolicy", name)["spec"]["egress"][0]["ports"]
        assert [(p["port"], p["protocol"]) for p in ports] == [
            *((53, "UDP"), (53, "TCP")),
            *((5353, "UDP"), (5353, "TCP")),
        ]


def test_prometheus_shows_a_key() -> None:
    documents = rendered(
        {"monitoring": {"serviceMonitor": {"authorization": {"secret": "scraper", "key": "k"}}}}
    )
    (endpoint,) = named(documents, "ServiceMonitor", "wgan")["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "scraper", "key": "k"}}


def test_mlflow_is_asked_with_a_token_from_a_file() -> None:
    for name, pod in pods(rendered({"mlflow": {"tokenSecret": "token"}})).items():
        values = {v["name"]: v.get("value") for v in ours(pod)["env"]}
        mounts = [m["mountPath"] for m in ours(pod)["volumeMounts"] if m["name"] == "mlflow-login"]
        if name == "wgan-mlflow":
            assert not mounts
            continue
        assert values["MLFLOW_TRACKING_TOKEN_FILE"] == f"{mounts[0]}/token"
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "mlflow-login"]
        items = [{"key": "MLFLOW_TRACKING_TOKEN", "path": "token"}]
        assert volume["secret"] == {"secretName": "token", "defaultMode": 0o440, "items": items}
    both = helm("template", "wgan", CHART, "--set", "mlflow.secret=a,mlflow.tokenSecret=b")
    assert both.returncode != 0


def test_what_is_set_to_nothing_wins_too() -> None:
    """An empty text and false are values, which Helm's own `merge` takes for none."""
    values = {
        "pods": {"all": {"env": {"LOGLEVEL": "debug"}, "nodeSelector": {"pool": "a"}}},
        "serve": {"env": {"LOGLEVEL": "", "NO_PROXY": ""}, "nodeSelector": {"pool": ""}},
        "proxy": {"http": "http://proxy:3128", "https": "", "except": []},
    }
    pod = pods(rendered(values))["wgan"]
    found = {v["name"]: v.get("value") for v in ours(pod)["env"]}
    assert (found["LOGLEVEL"], found["NO_PROXY"], found["HTTP_PROXY"]) == (
        "",
        "",
        "http://proxy:3128",
    )
    assert pod["spec"]["nodeSelector"]["pool"] == ""


def test_pods_of_ipv6_addresses_alone_are_listened_for() -> None:
    found = pods(rendered({"bindAddress": "::"}))
    assert ours(found["wgan"])["args"][:3] == ["serve", "--host", "::"]
    assert "--host=::" in ours(found["wgan-mlflow"])["args"]


def test_proxies_are_for_the_outside_alone() -> None:
    """As Python's own rules read the variables: those of requests and of urllib are these."""
    proxy = {"https": "http://proxy:3128", "http": "http://proxy:3128", "except": [".example.com"]}
    for pod in pods(rendered({"proxy": proxy})).values():
        values = {v["name"]: v["value"] for v in ours(pod)["env"] if "value" in v}
        no_proxy = {"no": values["NO_PROXY"]}
        assert values["HTTPS_PROXY"] == values["HTTP_PROXY"] == "http://proxy:3128"
        inside = ["wgan-mlflow", "wgan-mlflow.gan", "wgan-mlflow.gan.svc", "push.monitoring.svc"]
        inside += ["localhost", "127.0.0.1", "s3.example.com"]
        for host in inside:
            assert proxy_bypass_environment(host, no_proxy), host
        assert not proxy_bypass_environment("s3.amazonaws.com", no_proxy)


def test_jobs_can_stay_out_of_a_mesh() -> None:
    """The example in values.yaml."""
    found = pods(rendered({"pods": {"train": {"labels": {"sidecar.istio.io/inject": "false"}}}}))
    outside = {n for n, p in found.items() if "sidecar.istio.io/inject" in p["metadata"]["labels"]}
    assert outside == set(WORKLOADS["train"])


@functools.cache
def full() -> str:
    """Values with all of it at once, as JSON."""
    everything: dict[str, Any] = {}
    for key, value, _ in ADDED:
        if key != "securityContext":
            everything[key] = value
    return json.dumps(
        {
            "pods": {"all": everything},
            "objects": {"labels": {"team": "ml"}, "annotations": {"a/b": "c"}},
            "serviceAccount": {"annotations": {"a/b": "c"}},
            "service": {"type": "LoadBalancer", "annotations": {"a/b": "c"}},
            "caBundle": {"configMap": "ca"},
            "proxy": {"https": "http://proxy:3128"},
            "mlflow": {"tokenSecret": "token"},
        }
    )


@pytest.mark.parametrize("check", [c for c in manifests.CHECKS if "security" not in c.__name__])
def test_all_of_it_together(check: Callable[[Documents], None]) -> None:
    check(rendered(json.loads(full()), NO_TRAIN_JOB))


@pytest.mark.skipif(VALIDATE is None, reason="no kubernetes-validate: run `make tools`")
def test_kubernetes_knows_all_of_it(tmp_path: Path) -> None:
    documents = rendered(json.loads(full()), NO_TRAIN_JOB)
    outside = ("monitoring.coreos.com", "gateway.networking.k8s.io")
    known = [d for d in documents if not d["apiVersion"].startswith(outside)]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(known))
    done = subprocess.run(
        [str(VALIDATE), "--strict", "-k", "1.37.0", str(tmp_path / "all.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") == len(known), done.stdout
