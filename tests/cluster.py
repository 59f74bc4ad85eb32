"""A Kubernetes API that holds objects, for what helm looks up; and what it never changes.

A real API server is not to be had from package registries. Helm's own client speaks to this one.
"""

import contextlib
import copy
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

from tests.manifests import Document, Documents, amount

# What the cluster refuses to change, from Kubernetes' pkg/apis/{apps,batch,core}/validation 1.31:
# ValidateDeploymentUpdate, ValidateJobSpecUpdate, ValidatePersistentVolumeClaimUpdate,
# ValidateServiceUpdate. Of a TrainJob we count on nothing but `suspend`.
JOB = ["completions", "completionMode", "selector", "template", "podFailurePolicy", "successPolicy"]
FIXED = {
    "Deployment": ["selector"],
    "Job": [*JOB, "backoffLimitPerIndex", "managedBy"],
    "PersistentVolumeClaim": ["accessModes", "storageClassName", "volumeMode", "selector"],
    "Service": ["clusterIP"],
}


def refused(old: Documents, new: Documents) -> list[str]:
    """What a cluster with the old objects would refuse of the new ones: kind, name and field."""
    before = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in old if "spec" in d}
    found = []
    for document in new:
        kind, name = document["kind"], document["metadata"]["name"]
        was, now = before.get((kind, name)), document.get("spec")
        if was is None or now is None:
            continue
        fields = FIXED.get(kind, [])
        if kind == "TrainJob":
            fields = sorted((was.keys() | now.keys()) - {"suspend"})
        found += [f"{kind} {name}: {f}" for f in fields if was.get(f) != now.get(f)]
        if kind == "PersistentVolumeClaim" and _storage(now) < _storage(was):
            found.append(f"{kind} {name}: it shrinks")
    return found


def _storage(spec: Document) -> float:
    return amount(spec["resources"]["requests"]["storage"])


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    """Helm asks for all groups at once; a connection that finds no room is tried a second later."""


@contextlib.contextmanager
def cluster(documents: Documents, replicas: int | None = None) -> Iterator[list[str]]:
    """Run the API with objects in it.

    Args:
        documents: the objects.
        replicas: what an autoscaler set each Deployment to; None: what the objects say.

    Yields:
        Options with which helm looks there.
    """
    objects = {}
    for document in copy.deepcopy(documents):
        kind = document["kind"]
        if kind == "Deployment":
            document["spec"].setdefault("replicas", 1)
            if replicas is not None:
                document["spec"]["replicas"] = replicas
        if kind == "PersistentVolumeClaim":  # the cluster fills in its default
            document["spec"].setdefault("storageClassName", "standard")
        objects[_path(document)] = document

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = _answer(self.path.partition("?")[0], objects)
            absent = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
            body = json.dumps(answer or {**absent, "status": "Failure"}).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        yield [
            *("--is-upgrade", "--dry-run=server", "--disable-openapi-validation"),
            f"--kube-apiserver={address}",
        ]
    finally:
        server.shutdown()
        server.server_close()


KINDS = {
    "v1": ["ConfigMap", "PersistentVolumeClaim", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "batch/v1": ["CronJob", "Job"],
    "gateway.networking.k8s.io/v1": ["HTTPRoute"],
    "keda.sh/v1alpha1": ["ScaledObject"],
    "monitoring.coreos.com/v1": ["PrometheusRule", "ServiceMonitor"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "trainer.kubeflow.org/v1alpha1": ["TrainJob"],
}


def _root(version: str) -> str:
    return f"/{'apis' if '/' in version else 'api'}/{version}"


def _plural(kind: str) -> str:
    return re.sub("y$", "ie", kind.lower()) + "s"


def _path(document: Document) -> str:
    root, kind = _root(document["apiVersion"]), _plural(document["kind"])
    return f"{root}/namespaces/gan/{kind}/{document['metadata']['name']}"


def _answer(path: str, objects: dict[str, Document]) -> Document | None:
    """The answer to a GET; None if there is no such thing."""
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for group, version in (name.split("/") for name in KINDS if "/" in name):
            entry = {"groupVersion": f"{group}/{version}", "version": version}
            groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for version, kinds in KINDS.items():
        if path == _root(version):
            common = {"singularName": "", "namespaced": True, "verbs": ["get"]}
            resources = [{"name": _plural(kind), "kind": kind, **common} for kind in kinds]
            return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return objects.get(path)
