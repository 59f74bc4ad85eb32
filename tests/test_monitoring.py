"""Alert rules and dashboard: checked, unit tested, and against a real Prometheus and service."""

import contextlib
import http.server
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy import tools
from models.config import DataConfig
from tests.chart import CHART, OPERATORS, helm, needs_helm, render
from tests.manifests import of_kind
from tests.servers import WGAN, free_port, running, wait_for
from training.data.dataset import load_data
from training.retraining.config import RetrainConfig
from training.retraining.outcomes import Outcome, publish

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "deploy/monitoring"
OPERATIONS = ROOT / "docs/operations.md"
CONTENT = yaml.safe_load((MONITORING / "rules.yaml").read_text())
RULES = [rule for group in CONTENT["groups"] for rule in group["rules"]]
ALL_TESTS = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())
UNIT_TESTS = ALL_TESTS["tests"]
PANELS = [
    panel
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    if panel["type"] != "row"
]
QUERIES = [(panel["title"], t["expr"]) for panel in PANELS for t in panel["targets"]]
PROMTOOL = tools.find("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: run `make tools`")
needs_venv = pytest.mark.skipif(not tools.PYTHON.exists(), reason="no SDK: run `make tools`")


def run(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_and_alertmanager_accept_their_files() -> None:
    run(PROMTOOL, "check", "config", "prometheus.yaml")
    found = run(PROMTOOL, "check", "rules", "rules.yaml")
    assert f"{len(RULES)} rules found" in found
    amtool = tools.find("amtool")
    run(amtool, "check-config", "alertmanager.yaml")
    for severity, receiver in (("critical", "at-once"), ("warning", "by-day")):
        route = ["config", "routes", "test", "--config.file=alertmanager.yaml"]
        assert run(amtool, *route, f"severity={severity}").strip() == receiver


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    run(PROMTOOL, "test", "rules", "rules_test.yaml")


@needs_promtool
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_that_never_fires_would_be_noticed(rule: dict[str, Any], tmp_path: Path) -> None:
    """Each alert has a unit test in which it fires: with the alert gone, its tests fail."""
    groups = [
        {**group, "rules": [r for r in group["rules"] if r["alert"] != rule["alert"]]}
        for group in CONTENT["groups"]
    ]
    # JSON is YAML too, and quickly written.
    (tmp_path / "rules.yaml").write_text(json.dumps({**CONTENT, "groups": groups}))
    tests = [
        test
        for test in ALL_TESTS["tests"]
        if rule["alert"] in {case["alertname"] for case in test["alert_rule_test"]}
    ]
    (tmp_path / "rules_test.yaml").write_text(json.dumps({**ALL_TESTS, "tests": tests}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "rules_test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert rule["alert"] in done.stdout + done.stderr


def test_each_alert_is_also_shown_not_to_fire() -> None:
    """A unit test has more series than fire, or a time before which none does."""
    for rule in RULES:
        name = rule["alert"]
        silent = False
        for test in UNIT_TESTS:
            cases = [c for c in test["alert_rule_test"] if c["alertname"] == name]
            fired = max((len(c["exp_alerts"]) for c in cases), default=0)
            metric = re.findall(r"\b(?:wgan_\w+|up)\b", rule["expr"])
            series = [s for s in test["input_series"] if s["series"].split("{")[0] in metric]
            silent |= bool(cases) and (
                any(not c["exp_alerts"] for c in cases) or len(series) > fired
            )
        assert silent, name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    file, anchor = rule["annotations"]["runbook_url"].split("#")
    text = (ROOT / file).read_text()
    section = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{file} has no section on {rule['alert']}"
    assert anchor == rule["alert"].lower()
    assert len(section[1].split()) > 20, "says what to do"


def test_no_runbook_is_left_over() -> None:
    sections = re.findall(r"^### (Wgan\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in RULES)


@needs_venv
def test_the_dashboard_is_what_its_code_builds() -> None:
    run(tools.PYTHON, "dashboard.py", "--check")


@needs_venv
def test_every_query_parses() -> None:
    code = "import json, sys, promql_parser\nfor q in json.load(sys.stdin): promql_parser.parse(q)"
    expressions = [concrete(query) for _, query in QUERIES] + [rule["expr"] for rule in RULES]
    subprocess.run(
        [str(tools.PYTHON), "-c", code], input=json.dumps(expressions), text=True, check=True
    )


def concrete(query: str) -> str:
    """A dashboard's query as Grafana sends it, with every namespace and release chosen."""
    every = query.replace("$namespace", ".*").replace("$release", ".*")
    return every.replace("$__rate_interval", "1m")


# ---- two releases in one namespace ---------------------------------------------------------------


def release_rules(release: str) -> dict[str, Any]:
    """The rules that the chart installs with a release."""
    kinds = [f"--api-versions={kind}" for kind in OPERATORS]
    done = helm("template", release, CHART, "--namespace", "gan", *kinds)
    assert done.returncode == 0, done.stderr
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    (monitor,) = [d for d in documents if d["kind"] == "ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert {"targetLabel": "release", "replacement": release} in endpoint["relabelings"]
    (config,) = [d["data"]["retrain.json"] for d in documents
                 if d["metadata"]["name"] == f"{release}-retrain" and "data" in d]  # fmt: skip
    assert json.loads(config)["push_labels"] == {"namespace": "gan", "release": release}
    (rules,) = [d["spec"] for d in documents if d["kind"] == "PrometheusRule"]
    assert len([r for g in rules["groups"] for r in g["rules"]]) == len(RULES)
    return dict(rules)


@needs_helm
def test_retraining_is_overdue_after_the_days_that_are_set_and_never_where_there_is_none() -> None:
    def overdue(settings: str) -> tuple[int, list[dict[str, Any]]]:
        documents = render("values", True, "--set", settings)
        (spec,) = [d["spec"] for d in of_kind(documents, "PrometheusRule")]
        rules = [rule for group in spec["groups"] for rule in group["rules"]]
        return len(rules), [r for r in rules if r["alert"] == "WganRetrainingOverdue"]

    count, (rule,) = overdue("monitoring.rules.overdueDays=9")
    assert count == len(RULES)
    assert rule["expr"].endswith("> 9 * 86400")
    assert "for 9 days" in rule["annotations"]["description"]
    for settings in ("retrain.enabled=false", "retrain.suspend=true"):
        assert overdue(settings) == (len(RULES) - 1, [])


@needs_helm
@needs_promtool
def test_the_rules_of_a_release_see_no_other(tmp_path: Path) -> None:
    """Staging fails at everything, beside production in its namespace: one is told, once."""
    at = 'namespace="gan", release="{}"'
    failing = {
        'wgan_model_ready{job="wgan-foundry", AT}': "0",
        'up{job="wgan-foundry", AT}': "0",
        'wgan_retrain_failed_in_a_row{job="wgan_retrain", AT}': "2",
        'wgan_retrain_outcome{job="wgan_retrain", AT, outcome="mistake"}': "1",
    }
    well = ["1", "1", "0", "0"]
    series = [
        {"series": key.replace("AT", at.format(release)), "values": f"{value}x20"}
        for release, values in (("staging", failing.values()), ("production", well))
        for key, value in zip(failing, values, strict=True)
    ]
    alerts = ["WganNoReadyReplica", "WganDown", "WganRetrainingFailing", "WganRetrainingMistaken"]
    for release, count in (("staging", 1), ("production", 0)):
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(release_rules(release)))
        questions = [
            {
                "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                "eval_time": "10m",
            }
            | {"exp_samples": [{"labels": "{}", "value": count}] if count else []}
            for name in alerts
        ]
        test = {"interval": "1m", "input_series": series, "promql_expr_test": questions}
        content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(content))
        run(PROMTOOL, "test", "rules", tmp_path / "test.yaml")


@needs_promtool
def test_a_push_replaces_only_that_of_its_own_release(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [tools.find("prometheus-pushgateway") or "", f"--web.listen-address=127.0.0.1:{port}"]
    with program(command, f"{address}/-/ready", tmp_path / "log"):
        for release, model, kind in (
            ("production", "digits", "promoted"),
            ("staging", "digits", "rejected"),
            ("staging", "letters", "failed"),  # the model was renamed
        ):
            labels = {"namespace": "gan", "release": release}
            settings = RetrainConfig(
                preset="digits", folder=tmp_path, pushgateway=address, push_labels=labels
            )
            publish(settings, model, Outcome(kind, "why"), time.time(), print)
        metrics = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
        found = {
            (s.labels["release"], s.labels["model"], s.labels["outcome"])
            for family in metrics
            for s in family.samples
            if s.name == "wgan_retrain_outcome" and s.value == 1
        }
    assert found == {("production", "digits", "promoted"), ("staging", "letters", "failed")}


# ---- real Prometheus, Alertmanager, Pushgateway, registry and service ----------------------------


def relabelings() -> list[dict[str, Any]]:
    """What the chart's ServiceMonitor does with a target's labels, but name its release.

    Only the rules that the chart installs expect a release.
    """
    (monitor,) = of_kind(render("values", True), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    return [one for one in endpoint["relabelings"] if one.get("targetLabel") != "release"]


@contextlib.contextmanager
def webhook(port: int) -> Iterator[list[dict[str, Any]]]:
    """Takes what Alertmanager sends."""
    received: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.extend(json.loads(body)["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def program(command: list[object], address: str, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, cwd=log.parent)
    try:
        wait_for(address, process, log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def eventually(question: Callable[[], Any], what: Callable[[], str], seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.5)
    raise AssertionError(f"never: {what()}")


@needs_promtool
@needs_helm
@pytest.mark.slow
@pytest.mark.timeout(1800)  # several processes, on a machine that may be busy
def test_every_query_returns_data_and_an_alert_arrives(tmp_path: Path) -> None:
    """Retrain, serve, scrape; ask what the dashboard asks; end the service, and be told."""
    names = ("service", "prometheus", "alertmanager", "pushgateway", "webhook")
    ports = {name: free_port() for name in names}
    local = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "WGAN_DRIFT_WINDOW": "50",
    }
    config = {
        "preset": "8gaussians",
        "set": {"training.steps": 500, "name": "ring"},  # enough for every gate
        "folder": str(tmp_path / "runs"),
        "pushgateway": f"http://{local['pushgateway']}",
        "push_labels": {"release": "wgan"},
    }
    (tmp_path / "retrain.json").write_text(json.dumps(config))
    prometheus = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    prometheus["global"] = {"scrape_interval": "5s", "evaluation_interval": "1s"}
    served, pushed = prometheus["scrape_configs"]
    # As the operator scrapes: it gives the target a label `endpoint`, then does as the chart says.
    served["static_configs"] = [{"targets": [local["service"]], "labels": {"endpoint": "http"}}]
    served["relabel_configs"] = relabelings()
    pushed["static_configs"] = [{"targets": [local["pushgateway"]]}]
    prometheus["alerting"]["alertmanagers"][0]["static_configs"] = [
        {"targets": [local["alertmanager"]]}
    ]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(prometheus))
    # The same rules, but that nobody waits long for them.
    rules = (MONITORING / "rules.yaml").read_text()
    (tmp_path / "rules.yaml").write_text(re.sub(r"for: \d+[mh]", "for: 10s", rules))
    manager = (MONITORING / "alertmanager.yaml").read_text()
    manager = re.sub(r"(group_wait|group_interval): \d+[sm]", r"\1: 1s", manager)
    manager = re.sub(r"http://\w+\.example\.com", f"http://{local['webhook']}", manager)
    (tmp_path / "alertmanager.yaml").write_text(manager)

    client = httpx.Client(timeout=60)

    def ask(query: str) -> list[Any]:
        address = f"http://{local['prometheus']}/api/v1/query"
        answer = client.get(address, params={"query": query}).json()
        assert answer["status"] == "success", answer
        return [r for r in answer["data"]["result"] if r["value"][1] != "NaN"]

    with contextlib.ExitStack() as stack:
        stack.enter_context(client)
        told = stack.enter_context(webhook(ports["webhook"]))
        flags = [f"--web.listen-address={local['pushgateway']}"]
        stack.enter_context(
            program(
                [tools.find("prometheus-pushgateway") or "", *flags],
                f"http://{local['pushgateway']}/-/ready",
                tmp_path / "pushgateway.log",
            )
        )
        subprocess.run(
            [WGAN, "retrain", "--config", "retrain.json"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            check=True,
        )
        serve = [WGAN, "serve", "--port", ports["service"], "--model", "ring@champion"]
        log, url = tmp_path / "service.log", f"http://{local['service']}"
        # It is ready before anybody watches: an alert from its start would be the wrong one.
        with running(serve, ports["service"], log, **environment) as service:
            wait_for(f"{url}/readyz", service, log)
            stack.enter_context(
                program(
                    [
                        tools.find("prometheus-alertmanager") or "",
                        "--config.file=alertmanager.yaml",
                        f"--storage.path={tmp_path / 'alerts'}",
                        f"--web.listen-address={local['alertmanager']}",
                        "--cluster.listen-address=",
                    ],
                    f"http://{local['alertmanager']}/-/ready",
                    tmp_path / "alertmanager.log",
                )
            )
            stack.enter_context(
                program(
                    [
                        tools.find("prometheus") or "",
                        "--config.file=prometheus.yaml",
                        f"--storage.tsdb.path={tmp_path / 'series'}",
                        f"--web.listen-address={local['prometheus']}",
                    ],
                    f"http://{local['prometheus']}/-/ready",
                    tmp_path / "prometheus.log",
                )
            )
            eight = {"count": 8, "format": "json"}
            real = load_data(DataConfig(source="8gaussians")).items
            random = np.random.default_rng(0)

            def requests() -> None:
                for _ in range(5):
                    assert client.post(f"{url}/v1/samples", json=eight).is_success
                    items = random.choice(real, 10).tolist()  # without drift
                    assert client.post(f"{url}/v1/scores", json={"samples": items}).is_success
                assert client.post(f"{url}/v1/samples", json={"count": -1}).status_code == 400

            empty = dict.fromkeys(concrete(query) for _, query in QUERIES)

            def all_answer() -> bool:
                requests()
                for query in list(empty):
                    if ask(query):
                        del empty[query]
                return not empty

            eventually(all_answer, lambda: f"data for {list(empty)}")
            endpoints = {r["metric"]["endpoint"] for r in ask("wgan_requests_total")}
            assert {"/v1/samples", "/v1/scores"} <= endpoints
            # Not a rule speaks of a metric that nobody has.
            known = client.get(f"http://{local['prometheus']}/api/v1/label/__name__/values").json()
            for rule in RULES:
                named = set(re.findall(r'(?<!")\bwgan_\w+\b', rule["expr"]))  # but the job's name
                absent = named - set(known["data"]) - {"wgan_model_refused_info"}
                assert not absent, f"{rule['alert']}: {absent}"
            # With everything well there is no alert; a slow machine may have seen one at first, and
            # answers slowly.
            eventually(
                lambda: not ask('ALERTS{alertname!="WganSlow"}'),
                lambda: f"silence with everything well: {ask('ALERTS')}",
            )
            told.clear()
        page = "WganNoReadyReplica"

        def arrived() -> list[dict[str, Any]]:
            firing = [a for a in told if a["status"] == "firing"]
            return [a for a in firing if a["labels"]["alertname"] == page]

        (first, *_) = eventually(
            arrived, lambda: f"{page} at the webhook, which got {told}; firing: {ask('ALERTS')}"
        )
        assert first["annotations"]["runbook_url"] == "docs/operations.md#wgannoreadyreplica"

        # With nothing ready, that the one pod is down is no news: Alertmanager is silent on it.
        def inhibited() -> list[Any]:
            address = f"http://{local['alertmanager']}/api/v2/alerts"
            alerts = client.get(address, params={"filter": 'alertname="WganDown"'}).json()
            return [a for a in alerts if a["status"]["inhibitedBy"]]

        eventually(inhibited, lambda: "WganDown reached Alertmanager and was held back there")
        assert "WganDown" not in {a["labels"]["alertname"] for a in told if a["status"] == "firing"}
