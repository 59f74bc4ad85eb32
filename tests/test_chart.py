"""The Helm chart: every values file rendered, and what schemas let pass checked over the result."""

import copy
import fnmatch
import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from deploy import tools
from models import command_line
from models.bulk import FORMATS
from models.command_line import assignments
from models.constraints import AnyConstraint
from service.limits import ANSWER_TIMEOUT, TIMEOUT
from service.settings import MIN_DRIFT_WINDOW, Settings
from tests import manifests
from tests.chart import (
    CHART,
    KEDA,
    OUTSIDE_EVERYTHING,
    ROOT,
    VALUES,
    everything,
    helm,
    needs_helm,
    render,
)
from tests.command_line import parsed
from tests.manifests import Document, Documents, named, of_kind
from training.lab.tuning.space import parse_settings
from training.presets import build_config

RENDERINGS = [(values, gates) for values in VALUES for gates in (False, True)]
VALIDATE = tools.find("kubernetes-validate")
pytestmark = needs_helm


def documented_secrets() -> set[tuple[str, str]]:
    """The secrets that values-production.yaml says to make, with their keys."""
    source = (CHART / "values-production.yaml").read_text().replace("\\\n#", "")
    found = set()
    for kind, name, rest in re.findall(r"create secret ([\w-]+) (\S+) ?(.*)", source):
        assert kind in ("generic", "docker-registry", "tls")
        found.add(("Secret", name))
        found |= {("Secret", f"{name}/{key}") for key in re.findall(r"--from-\w+=(\w+)=", rest)}
    return found


@pytest.mark.parametrize("values", VALUES)
def test_lint(values: str) -> None:
    done = helm("lint", "--strict", CHART, "--values", CHART / f"{values}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("serve.replica=2", "replica"),
        ("serve.autoscaling.cpuPercent=101", "cpuPercent"),
        ("serve.autoscaling.cpuPercent=0", "requestsInFlight"),
        ("serve.autoscaling.kedaPrometheus=http://prometheus:9090", "requestsInFlight"),
        ("serve.driftWindow=49", "driftWindow"),
        (r"serve.models[0]=a@1\,b@1", "models"),
        ("serve.modelsMemory=128Mi", "modelsMemory"),
        ("retrain.schedule=daily", "schedule"),
        ("mlflow.enabled=false", "externalUri"),
        ("mlflow.externalUri=http://elsewhere", "externalUri"),
        ("mlflow.externalUri=https://user:password@elsewhere", "externalUri"),
        ("runs.size=10", "size"),
        ("images.service.digest=latest", "digest"),
        ("images.service.tag=", "tag"),
        ("fullname=Wgan", "fullname"),
        ("ingress.tlsSecret=tls", "host"),
        ("ingress.host=Gan.example.com", "host"),
        ("ingress.paths[0]=v1", "paths"),
        ("httpRoute.enabled=true", "parentRefs"),
        ("httpRoute.hostnames[0]=https://gan.example.com", "hostnames"),
        ("sweep.constraints[0]=a;b", "constraints"),
        ("sweep.set[0]=training.steps=1'2", "set"),
        ("tune.enabled=true", "tune.storage.secret"),
        ("tune.set[0]=training.steps=1'2", "set"),
        ("tune.search[0]=critic.depth", "search"),
        ("tune.data=my photos", "data"),
        ("tune.budget=soon", "budget"),
        ("sample.enabled=true", "sample.out"),
        ("sample.out=/runs", "out"),
        ("sample.format=png", "format"),
    ],
)
def test_a_mistake_in_the_values_is_refused(setting: str, says: str) -> None:
    done = helm("template", "wgan", CHART, "--set", setting)
    assert done.returncode != 0
    assert says in done.stderr


def test_every_value_is_described_and_allowed() -> None:
    """What values.yaml sets, the schema knows, and the other way round."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if path in (".pods.serve", ".pods.train", ".pods.mlflow", ".retrain.config"):
            return  # the keys of .pods.all, or what one wants to set
        if "properties" not in node:
            return
        assert node["additionalProperties"] is False, path
        assert set(values) == set(node["properties"]) - {"global"}, path
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, node["properties"][key], f"{path}.{key}")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


@pytest.mark.parametrize("check", manifests.CHECKS)
@pytest.mark.parametrize(("values", "gates"), RENDERINGS)
def test_rendered(values: str, gates: bool, check: Callable[[Documents], None]) -> None:
    check(render(values, gates))


@pytest.mark.parametrize("check", manifests.CHECKS)
def test_everything_at_once(check: Callable[[Documents], None]) -> None:
    check(everything())


@pytest.mark.parametrize("values", VALUES)
def test_references(values: str) -> None:
    outside = documented_secrets() if values == "values-production" else set()
    manifests.check_references(render(values, True), outside)


def test_references_of_everything() -> None:
    manifests.check_references(everything(), OUTSIDE_EVERYTHING)


def test_names_stay_short_enough() -> None:
    for check in (manifests.check_names_are_unique_and_short, manifests.check_jobs):
        check(render("values-gpu", True, "--set", f"fullname={'a' * 40}"))


@pytest.mark.skipif(VALIDATE is None, reason="no kubernetes-validate: run `make tools`")
def test_kubernetes_knows_it(tmp_path: Path) -> None:
    known = dict[Path, Documents]()
    written = set[str]()  # most documents are in several renderings; each is read once
    for values, gates in RENDERINGS:
        rendered = {json.dumps(d): d for d in render(values, gates)}
        new = [
            d
            for text, d in rendered.items()
            if text not in written and ("." not in d["apiVersion"] or "k8s.io" in d["apiVersion"])
        ]
        written |= rendered.keys()
        if new:
            known[tmp_path / f"{values} {gates}.yaml"] = new
    for file, documents in known.items():
        file.write_text(yaml.safe_dump_all(documents))
    done = subprocess.run(
        [str(VALIDATE), "--strict", "-k", "1.37.0", *map(str, known)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # An unknown kind is a warning to it; to us it is a failure.
    assert "WARN" not in (done.stdout + done.stderr).upper(), done.stdout + done.stderr
    passed = [line for line in done.stdout.splitlines() if "passed" in line]
    for file, documents in known.items():
        assert sum(str(file) in line for line in passed) == len(documents), done.stdout


OPERATOR_KINDS = '''
import json, sys, yaml

def lost(given, kept, path=""):
    """What a typed model dropped, for it takes unknown fields without a word."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}.{key}"
            else:
                yield from lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        if len(given) != len(kept):
            yield path
        for i, (one, other) in enumerate(zip(given, kept)):
            yield from lost(one, other, f"{path}[{i}]")
    elif given != kept and str(given) != str(kept):
        yield f"{path}: {given!r} became {kept!r}"

def read(document):
    kind = document["kind"]
    if kind == "TrainJob":
        from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
        return TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    if kind == "ScaledObject":
        from cloudcoil.models.keda.v1alpha1 import ScaledObject as model
    else:
        from cloudcoil.models.prometheus_operator import v1
        model = getattr(v1, kind)
    return model.model_validate(document).model_dump(by_alias=True, exclude_none=True, mode="json")

found = [list(lost(document, read(document))) for document in yaml.safe_load_all(sys.stdin)]
print(json.dumps(found))
'''


def dropped(documents: Documents) -> list[list[str]]:
    """What the operator's own types drop of each document."""
    done = subprocess.run(
        [str(tools.PYTHON), "-c", OPERATOR_KINDS],
        input=yaml.safe_dump_all(documents),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not tools.PYTHON.exists(), reason="no typed models: run `make tools`")
def test_operators_know_their_kinds() -> None:
    kinds = {"ServiceMonitor", "PrometheusRule", "TrainJob", "ScaledObject"}
    documents = of_kind(everything() + render("values", True, *KEDA), *kinds)
    assert {d["kind"] for d in documents} == kinds
    broken = copy.deepcopy(documents)
    for document in broken:
        document["spec"]["spelt_wrong"] = 1
    expected = [[]] * len(documents) + [[".spec.spelt_wrong"]] * len(broken)
    assert dropped(documents + broken) == expected


@pytest.mark.parametrize("values", VALUES)
def test_gates(values: str) -> None:
    assert not of_kind(render(values, False), "ServiceMonitor", "PrometheusRule")
    assert len(of_kind(render(values, True), "ServiceMonitor", "PrometheusRule")) == 2


def test_parts_can_be_left_out() -> None:
    documents = render("values-production", False, "--set", "retrain.enabled=false")
    assert {d["kind"] for d in documents} == {
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
        *("Ingress", "NetworkPolicy", "ServiceAccount", "ConfigMap"),  # the dashboard's
    }
    assert not of_kind(
        render("values", True, "--set", "networkPolicy.enabled=false"), "NetworkPolicy"
    )


# ---- what the chart starts, the code understands -------------------------------------------------


def container(documents: Documents, kind: str, name: str) -> tuple[Document, Document]:
    """A workload's pod specification and its one container."""
    (spec,) = [
        t["spec"]
        for w, t in manifests.templates(documents)
        if (w["kind"], w["metadata"]["name"]) == (kind, name)
    ]
    return spec, spec["containers"][0]


def test_the_service_is_started_as_it_wants() -> None:
    spec, service = container(everything(), "Deployment", "wgan")
    options = parsed(service["args"])
    assert options.command == "serve"
    assert (options.host, options.port) == ("0.0.0.0", service["ports"][0]["containerPort"])
    wait = service["lifecycle"]["preStop"]["sleep"]["seconds"]
    values = {v["name"]: v.get("value") for v in service["env"]}
    unready = int(values["WGAN_DRAIN_SECONDS"])
    assert unready, "a request over a kept connection is lost without it"
    finish = int(values["WGAN_FINISH_SECONDS"])
    assert finish >= TIMEOUT + ANSWER_TIMEOUT, "no stream is cut"
    assert spec["terminationGracePeriodSeconds"] > wait + unready + finish
    assert int(values["WGAN_DRIFT_WINDOW"]) >= MIN_DRIFT_WINDOW
    probes = {service[kind]["httpGet"]["path"] for kind in manifests.PROBES}
    assert probes == {"/livez", "/readyz"}  # tests/test_service.py asks the real ones
    variables = {v["name"] for v in service["env"]}
    assert not [name for name in variables if name.startswith("AWS_")], "it asks MLflow alone"
    for name in (v for v in variables if v.startswith("WGAN_")):
        assert known_variable(name), f"the service does not read {name}"
    mounts = {m["mountPath"] for m in service["volumeMounts"]}
    keys = next(v["value"] for v in service["env"] if v["name"] == "WGAN_API_KEYS_FILE")
    assert os.path.dirname(keys) in mounts


def test_several_models_are_served_as_the_settings_name_them() -> None:
    chosen = ("--set", "serve.models={digits@champion,wine=/model/wine}")
    _, service = container(render("values", False, *chosen), "Deployment", "wgan")
    values = {v["name"]: v["value"] for v in service["env"] if "value" in v}
    read = {name: values[name] for name in ("WGAN_MODELS", "WGAN_MODELS_MEMORY")}
    settings = Settings.read(**read, WGAN_MODEL=values.get("WGAN_MODEL", ""))
    assert settings.champions == {"digits": "digits@champion", "wine": "/model/wine"}
    assert settings.models_memory > 0
    _, service = container(render("values", False), "Deployment", "wgan")
    assert "WGAN_MODELS" not in {v["name"] for v in service["env"]}


def known_variable(name: str) -> bool:
    sources = [*(ROOT / "service").glob("*.py"), *(ROOT / "models").glob("*.py")]
    return any(name in source.read_text() for source in sources)


@pytest.mark.parametrize("values", VALUES)
def test_retraining_is_started_as_it_wants(values: str) -> None:
    documents = render(values, False)
    cron = named(documents, "CronJob", "wgan-retrain")
    spec, retrain = container(documents, "CronJob", "wgan-retrain")
    arguments = retrain["args"]
    if "command" in retrain:
        assert retrain["command"] == ["python", "-m", "training.torchrun"]
        assert arguments[:2] == ["-m", "wgan_cli"]
        arguments = arguments[2:]
    options = parsed(arguments)
    assert options.command == "retrain"
    # The file it reads is mounted, and it is a configuration.
    mount = next(m for m in retrain["volumeMounts"] if m["mountPath"] == str(options.config.parent))
    volume = next(v for v in spec["volumes"] if v["name"] == mount["name"])
    data = named(documents, "ConfigMap", volume["configMap"]["name"])["data"]
    from training.retraining.config import RetrainConfig

    settings = RetrainConfig.model_validate_json(data[options.config.name])
    settings.build()
    assert settings.folder.is_relative_to("/runs"), "it must outlive the pod"
    rules = cron["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    codes = {
        rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule
    }
    assert codes == {
        "FailJob": [command_line.EXIT_MISTAKE, command_line.EXIT_REJECTED],
        "Ignore": [command_line.EXIT_INTERRUPTED],
    }


def test_workers_find_each_other() -> None:
    documents = render("values-gpu", False)
    spec, retrain = container(documents, "CronJob", "wgan-retrain")
    job = named(documents, "CronJob", "wgan-retrain")["spec"]["jobTemplate"]["spec"]
    # Each ends as index 0 does, which decides; a crash of all is one of each.
    assert job["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (2, 0)
    assert "backoffLimit" not in job
    variables = {v["name"]: v.get("value") for v in retrain["env"]}
    assert int(variables["PET_NNODES"]) == job["completions"]
    host, _, domain = variables["PET_MASTER_ADDR"].partition(".")
    assert host == "$(JOB)-0"
    assert domain == spec["subdomain"]
    assert int(variables["PET_MASTER_PORT"]) == retrain["ports"][0]["containerPort"]
    assert retrain["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_retraining_alone_has_the_key_that_signs_and_the_service_what_checks_it() -> None:
    documents = render(
        "values-gpu", False, "--set", "signing.trustedKeys=trusted,signing.key=signing"
    )
    found = {}
    for workload, spec, each in manifests.containers(documents):
        secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
        paths = {m["mountPath"]: secrets.get(m["name"]) for m in each["volumeMounts"]}
        variables = {v["name"]: v.get("value") for v in each.get("env", [])}
        found[workload["kind"], workload["metadata"]["name"].rsplit("-sweep", 1)[0]] = (
            paths.get(variables.get("WGAN_TRUSTED_KEYS")),
            paths.get((variables.get("WGAN_SIGNING_KEY") or "").removesuffix("/key.pem")),
            sorted(secrets.values()),
        )
    assert found.pop(("Deployment", "wgan")) == ("trusted", None, ["trusted"])
    assert found.pop(("CronJob", "wgan-retrain")) == (None, "signing", ["signing"])
    assert found
    assert set(map(str, found.values())) == {"(None, None, [])"}


def test_the_service_computes_on_the_gpu_that_it_has() -> None:
    documents = render("values-gpu", False)
    spec, service = container(documents, "Deployment", "wgan")
    variables = {v["name"]: v.get("value") for v in service["env"]}
    assert variables["WGAN_DEVICE"] == "cuda"
    assert service["image"].endswith(":service-cuda")
    assert service["resources"]["limits"]["nvidia.com/gpu"] == 1
    _, on_cpu = container(render("values", False), "Deployment", "wgan")
    assert "nvidia.com/gpu" not in on_cpu["resources"]["limits"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [t["key"] for t in spec["tolerations"]] == ["nvidia.com/gpu"]


def test_the_whole_sweep_trains() -> None:
    """Each index's shell command, run; the command line that it makes, parsed."""
    documents = render("values-gpu", False)
    (job,) = of_kind(documents, "Job")
    _, sweep = container(documents, "Job", job["metadata"]["name"])
    kinds = [kind.model_fields["kind"].default for kind in get_args(get_args(AnyConstraint)[0])]
    found = []
    for index in range(job["spec"]["completions"]):
        options = parsed(words_of(sweep, JOB_COMPLETION_INDEX=str(index)))
        assert options.constraint in kinds
        assert options.out.parent.parent == Path("/runs/sweep")
        assert options.out.name == options.constraint
        assert options.resume
        overrides = assignments(options.settings)
        build_config(options.preset, None, options.constraint, overrides)
        found.append(options.constraint)
    assert len(set(found)) == len(found) == 4


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ("images.train.tag=new", True),
        ("sweep.set={training.seed=1,training.steps=9000}", True),
        ("sweep.set={training.seed=2}", False),
        ("sweep.preset=images", False),
    ],
)
def test_a_sweep_goes_on_with_more_steps_but_not_with_other_settings(
    change: str, goes_on: bool
) -> None:
    """`wgan train --resume` refuses a checkpoint of other settings, but takes more steps."""
    base, found = ["--set=sweep.set={training.seed=1}"], []
    for settings in (base, [*base, f"--set={change}"]):
        documents = render("values-gpu", False, *settings)
        (job,) = of_kind(documents, "Job")
        _, sweep = container(documents, "Job", job["metadata"]["name"])
        found.append(parsed(words_of(sweep, JOB_COMPLETION_INDEX="0")).out)
    assert (found[0] == found[1]) == goes_on


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ("images.train.tag=new", False),
        ("tune.budget=9h", False),
        ("tune.data=other", True),
        ("tune.set={critic.depth=2}", True),
    ],
)
def test_a_search_goes_on_with_another_image_but_not_with_other_data(
    change: str, is_another: bool
) -> None:
    base, found = ["--set=tune.enabled=true,tune.storage.secret=tuning,tune.data=photos"], []
    for settings in (base, [*base, f"--set={change}"]):
        documents = render("values", False, *settings)
        (job,) = of_kind(documents, "Job")
        name = job["metadata"]["name"]
        _, tune = container(documents, "Job", name)
        found.append((name, parsed(words_of(tune, JOB_COMPLETION_INDEX="0")).study))
    (former, former_study), (name, study) = found
    assert name != former, "what cannot change in a Job makes a new one"
    assert (study != former_study) == is_another


def test_the_pods_of_a_search_share_a_study_and_the_first_trains_the_winner() -> None:
    """Each index's command line, parsed; tests/test_tuning_storage.py runs them."""
    values = {"enabled": True, "storage": {"secret": "tuning"}, "preset": "images", "trials": 30}
    values |= {"constraints": ["spectral_norm", "none"], "search": ["critic.depth=2,3"]}
    values |= {"data": "s3://bucket/photos/", "set": ["name=photos", "data.size=32"]}
    documents = render("values", False, f"--set-json=tune={json.dumps(values)}")
    (job,) = of_kind(documents, "Job")
    spec, tune = container(documents, "Job", job["metadata"]["name"])
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {r["action"]: r["onExitCodes"]["values"] for r in rules if "onExitCodes" in r}
    assert codes == {
        "FailJob": [command_line.EXIT_MISTAKE],
        "Ignore": [command_line.EXIT_INTERRUPTED],
    }
    variables = {v["name"]: v.get("value") for v in tune["env"]}
    mounts = {m["mountPath"]: m["name"] for m in tune["volumeMounts"]}
    folder, file = os.path.split(variables["WGAN_TUNE_STORAGE_FILE"])
    (volume,) = [v for v in spec["volumes"] if v["name"] == mounts[folder]]
    assert volume["secret"]["secretName"] == "tuning"
    assert volume["secret"]["items"] == [{"key": "url", "path": file}]
    for index in range(job["spec"]["completions"]):
        words = words_of(tune, JOB_COMPLETION_INDEX=str(index))
        options = parsed(words)
        assert options.command == "tune"
        assert options.only_trials == (index > 0)
        assert options.study.startswith("wgan-tune-")
        assert options.out == Path(f"/runs/tune/{options.study}/{index}")
        assert (options.data, options.preset, options.trials) == (values["data"], "images", 30)
        assert options.constraints == "spectral_norm,none"
        assert command_line.duration(options.budget) == 7200
        parse_settings(options.search)
        for kind in options.constraints.split(","):
            build_config("images", options.data, kind, assignments(options.settings))
    assert index == 1


def words_of(container: Document, **environment: str) -> list[str]:
    """The command line that a container's shell makes, but for the program's name."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "wgan")
        said.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
        said.chmod(said.stat().st_mode | stat.S_IXUSR)
        done = subprocess.run(
            [*container["command"], *container["args"]],
            env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.splitlines()


def test_the_pods_of_a_sampling_share_its_files() -> None:
    """The command line of the Job, parsed; each index is one of its shards."""
    options = "sample.enabled=true,sample.out=s3://bucket/x,sample.count=10000000,sample.shards=7"
    where = "sample.where={cut=Ideal,price>5000}"
    documents = render("values", False, "--set", options, "--set", where)
    (job,) = of_kind(documents, "Job")
    _, sample = container(documents, "Job", job["metadata"]["name"])
    found = parsed(sample["args"])
    assert found.model == "digits@champion"
    assert (found.n, found.seed, found.format, found.out) == (10**7, 0, "npz", "s3://bucket/x")
    assert found.where == ["cut=Ideal", "price>5000"]
    assert found.shards == job["spec"]["completions"] == 7
    assert found.format in FORMATS
    assert job["spec"]["completionMode"] == "Indexed"


def test_mlflow_answers_to_its_service_name() -> None:
    documents = render("values", False)
    _, mlflow = container(documents, "Deployment", "wgan-mlflow")
    _, service = container(documents, "Deployment", "wgan")
    (uri,) = [v["value"] for v in service["env"] if v["name"] == "MLFLOW_TRACKING_URI"]
    host, port = re.fullmatch(r"http://([^:/]+):(\d+)", uri).groups()
    (allowed,) = [a for a in mlflow["args"] if a.startswith("--allowed-hosts=")]
    patterns = allowed.partition("=")[2].split(",")  # MLflow matches them as fnmatch does

    def answers(header: str) -> bool:
        return any(fnmatch.fnmatch(header, pattern) for pattern in patterns)

    for header in (f"{host}:{port}", f"{host}.gan:5000", f"{host}.gan.svc.cluster.local", host):
        assert answers(header), header
    assert not answers("evil.example.com:5000")
    assert int(port) == named(documents, "Service", host)["spec"]["ports"][0]["port"]
