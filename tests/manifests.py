"""What a Kubernetes schema lets pass and a cluster does not, checked over rendered manifests.

Each `check_*` takes every document of one rendering and asserts.
"""

import itertools
import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]
Documents = list[Document]

SUFFIXES = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
CRON = [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7)]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def of_kind(documents: Documents, *kinds: str) -> Documents:
    return [d for d in documents if d["kind"] in kinds]


def named(documents: Documents, kind: str, name: str) -> Document:
    found = [d for d in of_kind(documents, kind) if d["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def templates(documents: Documents) -> Iterator[tuple[Document, Document]]:
    """Each workload with its pod template."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            yield document, document["spec"]["template"]
        elif document["kind"] == "CronJob":
            yield document, document["spec"]["jobTemplate"]["spec"]["template"]


def containers(documents: Documents) -> Iterator[tuple[Document, Document, Document]]:
    """Each container with its workload and its pod's specification."""
    for workload, template in templates(documents):
        for container in template["spec"]["containers"]:
            yield workload, template["spec"], container


def amount(quantity: str | int) -> float:
    """A quantity such as 500m or 2Gi as a number."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity))
    assert match, quantity
    return float(match[1]) * SUFFIXES[match[2]]


def labels_match(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def selected(documents: Documents, selector: dict[str, str]) -> Documents:
    """Pod templates that a selector chooses."""
    assert selector
    return [t for _, t in templates(documents) if labels_match(selector, t["metadata"]["labels"])]


def port_names(template: Document) -> dict[str, int]:
    return {
        p["name"]: p["containerPort"]
        for c in template["spec"]["containers"]
        for p in c.get("ports", [])
    }


def check_names_are_unique_and_short(documents: Documents) -> None:
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)
    for kind, name in names:
        # A CronJob's name has 11 characters added for its Jobs, theirs 6 for their pods.
        longest = {"CronJob": 52, "Job": 57}.get(kind, 63)
        assert len(name) <= longest, f"{kind} {name}"
    assert len({d["metadata"]["namespace"] for d in documents}) == 1


def check_cron(documents: Documents) -> None:
    for job in of_kind(documents, "CronJob"):
        spec = job["spec"]
        assert spec["timeZone"] in zoneinfo.available_timezones(), spec["timeZone"]
        assert spec["concurrencyPolicy"] == "Forbid"
        assert spec["startingDeadlineSeconds"] >= 10, "the controller looks every 10 seconds"
        fields = spec["schedule"].split()
        assert len(fields) == len(CRON), spec["schedule"]
        for field, (name, low, high) in zip(fields, CRON, strict=True):
            for part in field.split(","):
                match = re.fullmatch(r"(\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
                assert match, f"{name}: {part}"
                first, last, step = match[2], match[3], match[4]
                numbers = [int(n) for n in (first, last) if n]
                assert all(low <= n <= high for n in numbers), f"{name}: {part}"
                assert numbers == sorted(numbers), f"{name}: {part}"
                assert step is None or int(step) >= 1, f"{name}: {part}"


def check_requests_are_within_limits(documents: Documents) -> None:
    for workload, _, container in containers(documents):
        where = f"{workload['metadata']['name']}/{container['name']}"
        resources = container["resources"]
        requests, limits = resources["requests"], resources["limits"]
        for resource in ("cpu", "memory", "ephemeral-storage"):
            assert amount(requests[resource]) <= amount(limits[resource]), f"{where}: {resource}"
        for name in (requests.keys() | limits.keys()) - {"cpu", "memory", "ephemeral-storage"}:
            # A device cannot be overcommitted: a limit alone is the request.
            assert "/" in name, where
            assert requests.get(name, limits[name]) == limits[name], where


def check_selectors_choose_their_own_pods(documents: Documents) -> None:
    for workload in of_kind(documents, "Deployment"):
        spec = workload["spec"]
        selector = spec["selector"]["matchLabels"]
        assert labels_match(selector, spec["template"]["metadata"]["labels"])
        assert len(selected(documents, selector)) == 1, workload["metadata"]["name"]
        for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"] == selector


def check_services_lead_to_ports(documents: Documents) -> None:
    for service in of_kind(documents, "Service"):
        chosen = selected(documents, service["spec"]["selector"])
        assert chosen, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert any(port["targetPort"] in port_names(t) for t in chosen), port
            assert len(port["name"]) <= 15


def check_routes_lead_to_services(documents: Documents) -> None:
    """Ingress and HTTPRoute name ports of Services, and let the API in, not the metrics."""
    for route in of_kind(documents, "Ingress", "HTTPRoute"):
        spec, paths = route["spec"], []
        for rule in spec["rules"]:
            if route["kind"] == "Ingress":
                backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
                ports = [(b["name"], b["port"]["name"], "name") for b in backends]
                paths += [(p["pathType"], p["path"]) for p in rule["http"]["paths"]]
            else:
                ports = [(b["name"], b["port"], "port") for b in rule["backendRefs"]]
                paths += [(m["path"]["type"], m["path"]["value"]) for m in rule["matches"]]
            assert ports
            for name, port, key in ports:
                service = named(documents, "Service", name)
                assert port in [p[key] for p in service["spec"]["ports"]], name
        assert paths
        assert set(paths) <= {("Prefix", "/v1"), ("PathPrefix", "/v1")}
        if route["kind"] == "HTTPRoute":
            assert all(parent["name"] for parent in spec["parentRefs"])
        hosts = {rule.get("host") for rule in spec["rules"]}
        assert {host for tls in spec.get("tls", []) for host in tls["hosts"]} <= hosts


def check_ports(documents: Documents) -> None:
    for _, spec, _ in containers(documents):
        ports = [p for c in spec["containers"] for p in c.get("ports", [])]
        for key in ("name", "containerPort"):
            assert len({p[key] for p in ports}) == len(ports)
        for port in ports:
            assert re.fullmatch(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", port["name"])


def check_probes(documents: Documents) -> None:
    """On ports that are there, and with what a kubelet accepts."""
    for workload, _, container in containers(documents):
        names = {p["name"] for p in container.get("ports", [])}
        for kind in PROBES:
            if probe := container.get(kind):
                assert probe["httpGet"]["port"] in names
                assert probe.get("timeoutSeconds", 1) <= probe["periodSeconds"]
                if kind != "readinessProbe":
                    assert probe.get("successThreshold", 1) == 1
        if workload["kind"] == "Deployment":
            assert set(PROBES) <= container.keys(), workload["metadata"]["name"]
            # A pod that is busy is first taken out of the Service, and only then started anew.
            slow, quick = container["livenessProbe"], container["readinessProbe"]
            patience = slow["periodSeconds"] * slow["failureThreshold"]
            assert patience > quick["periodSeconds"] * quick.get("failureThreshold", 3)


def check_mounts(documents: Documents) -> None:
    for workload, spec, container in containers(documents):
        where = f"{workload['metadata']['name']}/{container['name']}"
        volumes = [v["name"] for v in spec["volumes"]]
        mounts = container["volumeMounts"]
        assert len(set(volumes)) == len(volumes), where
        assert {m["name"] for m in mounts} == set(volumes), where
        assert len({m["mountPath"] for m in mounts}) == len(mounts), where
        writable = {m["mountPath"] for m in mounts if not m.get("readOnly")}
        assert "/tmp" in writable, "the root file system is read-only"
        directory = container.get("workingDir", "/tmp")
        assert directory in writable, where


def check_references(documents: Documents, outside: set[tuple[str, str]]) -> None:
    """ConfigMaps, claims, accounts and secrets are made here or said to be there already.

    Args:
        documents: of one rendering.
        outside: kind and name of what the values name as existing; a secret's key after a slash.
    """
    here = {(d["kind"], d["metadata"]["name"]) for d in documents} | outside
    for workload, spec, container in containers(documents):
        wanted = {("ServiceAccount", spec["serviceAccountName"])}
        wanted |= {("Secret", s["name"]) for s in spec.get("imagePullSecrets", [])}
        for volume in spec["volumes"]:
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                wanted.add(("PersistentVolumeClaim", claim))
            if "secret" in volume:
                name = volume["secret"]["secretName"]
                wanted.add(("Secret", name))
                keys = [item["key"] for item in volume["secret"].get("items", [])]
                wanted |= {("Secret", f"{name}/{key}") for key in keys}
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                wanted.add(("Secret", f"{reference['name']}/{reference['key']}"))
        assert wanted <= here, f"{workload['metadata']['name']}: {wanted - here}"
    for ingress in of_kind(documents, "Ingress"):
        for tls in ingress["spec"].get("tls", []):
            assert ("Secret", tls["secretName"]) in here, tls


def check_environment(documents: Documents) -> None:
    for workload, _, container in containers(documents):
        variables = container.get("env", [])
        names = [v["name"] for v in variables]
        assert len(set(names)) == len(names), workload["metadata"]["name"]
        for i, variable in enumerate(variables):
            used = re.findall(r"\$\((\w+)\)", variable.get("value", ""))
            assert set(used) <= set(names[:i]), f"{variable['name']}: defined too late"
            assert isinstance(variable.get("value", ""), str)


def check_disruption_budgets(documents: Documents) -> None:
    for budget in of_kind(documents, "PodDisruptionBudget"):
        spec = budget["spec"]
        assert ("minAvailable" in spec) != ("maxUnavailable" in spec)
        assert len(selected(documents, spec["selector"]["matchLabels"])) == 1
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        # A budget that never lets a pod go keeps a node from ever being drained.
        assert spec.get("maxUnavailable") != 0


def check_autoscalers(documents: Documents) -> None:
    scaled = set()
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
        target = named(documents, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert target["apiVersion"] == spec["scaleTargetRef"]["apiVersion"]
        for container in target["spec"]["template"]["spec"]["containers"]:
            # Utilisation is in per cent of the request.
            assert amount(container["resources"]["requests"]["cpu"]) > 0
        scaled.add(target["metadata"]["name"])
    scaled |= {s["spec"]["scaleTargetRef"]["name"] for s in of_kind(documents, "ScaledObject")}
    for deployment in of_kind(documents, "Deployment"):
        # With both, every upgrade would throw away what the autoscaler found.
        is_scaled = deployment["metadata"]["name"] in scaled
        assert is_scaled != ("replicas" in deployment["spec"]), deployment["metadata"]["name"]


def check_pod_security(documents: Documents) -> None:
    """The `restricted` standard, and more."""
    for workload, spec, container in containers(documents):
        where = workload["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, where
        assert pod["runAsUser"] > 10_000, where
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys(), where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        kinds = {key for v in spec["volumes"] for key in v} - {"name"}
        assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}, where
        for volume in spec["volumes"]:
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], where
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def check_jobs(documents: Documents) -> None:
    for workload, template in templates(documents):
        if workload["kind"] == "Deployment":
            continue
        job = workload["spec"].get("jobTemplate", workload)["spec"]
        spec = template["spec"]
        assert spec["restartPolicy"] == "Never", "a pod failure policy needs it"
        assert job["activeDeadlineSeconds"] > 0
        rules = job["podFailurePolicy"]["rules"]
        names = {c["name"] for c in spec["containers"]}
        for rule in rules:
            if on := rule.get("onExitCodes"):
                assert on["containerName"] in names
                assert 0 not in on["values"]
                assert on["values"] == sorted(set(on["values"]))
            assert rule["action"] != "FailIndex" or "backoffLimitPerIndex" in job
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        assert {"action": "Ignore", "onPodConditions": [disrupted]} in rules
        if job.get("completionMode") == "Indexed":
            assert 1 <= job["parallelism"] <= job["completions"]
        if "subdomain" in spec:
            service = named(documents, "Service", spec["subdomain"])
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["publishNotReadyAddresses"] is True
            assert job["parallelism"] == job["completions"], "they wait for each other"


def check_disks_reach_their_pods(documents: Documents) -> None:
    """Pods on several nodes share a volume only if it is ReadWriteMany."""
    claims = {d["metadata"]["name"]: d for d in of_kind(documents, "PersistentVolumeClaim")}
    for workload, template in templates(documents):
        job = workload["spec"].get("jobTemplate", workload)["spec"]
        for volume in template["spec"]["volumes"]:
            claim = claims.get(volume.get("persistentVolumeClaim", {}).get("claimName"))
            if claim and job.get("parallelism", 1) > 1:
                assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
            if claim and workload["kind"] == "Deployment":
                assert workload["spec"]["strategy"] == {"type": "Recreate"}


def check_network_policies(documents: Documents) -> None:
    """Each pod has one, both ways; what they name is there; both ends of a way allow it."""
    policies = of_kind(documents, "NetworkPolicy")
    for workload, template in templates(documents):
        labels = template["metadata"]["labels"]
        own = [p for p in policies if labels_match(p["spec"]["podSelector"]["matchLabels"], labels)]
        assert len(own) == 1, workload["metadata"]["name"]
        spec = own[0]["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        for rule in spec["ingress"]:
            assert rule["from"], "an empty list of peers means everybody"
            for port in rule.get("ports", []):
                assert port["port"] in port_names(template), port
        for rule in spec["egress"]:
            assert rule["to"], "an empty list of peers means everybody"
            for peer, port in itertools.product(rule["to"], rule.get("ports", [])):
                selector = peer.get("podSelector", {}).get("matchLabels", {})
                if isinstance(port["port"], str):
                    targets = selected(documents, selector)
                    assert targets, port
                    assert all(port["port"] in port_names(t) for t in targets), port
                    assert any(_admits(p, labels, targets[0]) for p in policies), port


def _admits(policy: Document, labels: dict[str, str], target: Document) -> bool:
    spec = policy["spec"]
    if not labels_match(spec["podSelector"]["matchLabels"], target["metadata"]["labels"]):
        return False
    peers = [peer for rule in spec["ingress"] for peer in rule["from"]]
    return any(
        labels_match(peer.get("podSelector", {}).get("matchLabels", {}), labels) for peer in peers
    )


CHECKS = [
    value
    for name, value in list(globals().items())
    if name.startswith("check_") and name != "check_references"
]
