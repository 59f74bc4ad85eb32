"""Build the Grafana dashboard: `.tools/venv/bin/python deploy/monitoring/dashboard.py`.

Writes deploy/chart/files/dashboard.json; `--check` only tests whether that file is up to date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos

OUT = Path(__file__).parent.parent / "chart/files/dashboard.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
OURS = 'namespace=~"$namespace", release=~"$release"'
JOB = f'job="wgan-foundry", {OURS}'
RETRAIN = f'job="wgan_retrain", {OURS}'
RATE = "$__rate_interval"

# Rows of panels. Each panel: title, description, unit, and queries with their legends.
Queries = list[tuple[str, str]]
ROWS: dict[str, list[tuple[str, str, str, Queries]]] = {
    "Now": [
        (
            "Ready replicas",
            "Replicas in which a verified model has run, by model.",
            "stat:short",
            [(f"sum by (model) (wgan_model_ready{{{JOB}}})", "{{model}}")],
        ),
        (
            "Errors",
            "Share of answers that are 5xx, by model; an alert fires above 1%.",
            "stat:percentunit",
            [
                (
                    f'(sum by (model) (rate(wgan_requests_total{{{JOB}, status=~"5.."}}[5m]))'
                    f" or 0 * sum by (model) (rate(wgan_requests_total{{{JOB}}}[5m])))"
                    f" / sum by (model) (rate(wgan_requests_total{{{JOB}}}[5m]))",
                    "{{model}}",
                )
            ],
        ),
        (
            "Champion's age",
            "Time since it was trained.",
            "stat:s",
            [
                (
                    f'max by (model) (wgan_model_age_seconds{{{JOB}, role="champion"}})',
                    "{{model}}",
                )
            ],
        ),
        (
            "Registry",
            "1 means that it answers every replica.",
            "stat:short",
            [(f"min(wgan_registry_reachable{{{JOB}}})", "")],
        ),
    ],
    "Requests": [
        (
            "Requests",
            "By model, endpoint and status.",
            "reqps",
            [
                (
                    "sum by (model, endpoint, status) "
                    f"(rate(wgan_requests_total{{{JOB}}}[{RATE}]))",
                    "{{model}} {{endpoint}} {{status}}",
                )
            ],
        ),
        (
            "Duration",
            "From the end of a request's body to the end of its answer.",
            "s",
            [
                (
                    f"histogram_quantile({q}, sum by (model, endpoint, le) "
                    f"(rate(wgan_request_duration_seconds_bucket{{{JOB}}}[{RATE}])))",
                    f"{{{{model}}}} {{{{endpoint}}}} {name}",
                )
                for q, name in ((0.5, "median"), (0.99, "99th percentile"))
            ],
        ),
        (
            "Refused",
            "By reason. busy and no_model are caused by the service, share and rate by a caller's "
            "bounds, the others by the client.",
            "reqps",
            [
                (
                    f"sum by (reason) (rate(wgan_rejections_total{{{JOB}}}[{RATE}]))",
                    "{{reason}}",
                )
            ],
        ),
        (
            "Waiting and under way",
            "Requests that wait for a processor, and all requests that are not answered yet.",
            "short",
            [
                (f"sum(wgan_queue_depth{{{JOB}}})", "waiting"),
                (f"sum(wgan_requests_in_flight{{{JOB}}})", "under way"),
            ],
        ),
        (
            "Samples and scores",
            "Items per second.",
            "short",
            [
                (
                    f"sum by (model, role) (rate(wgan_samples_total{{{JOB}}}[{RATE}]))",
                    "samples, {{model}} {{role}}",
                ),
                (
                    f"sum by (model, role) (rate(wgan_scores_total{{{JOB}}}[{RATE}]))",
                    "scores, {{model}} {{role}}",
                ),
            ],
        ),
        (
            "Where the time goes",
            "Mean seconds of work for one request, without waiting.",
            "s",
            [
                (
                    f"sum(rate(wgan_{step}_seconds_sum{{{JOB}}}[{RATE}]))"
                    f" / sum(rate(wgan_{step}_seconds_count{{{JOB}}}[{RATE}]))",
                    step,
                )
                for step in ("generation", "encoding", "scoring")
            ],
        ),
    ],
    "The critic's scores": [
        (
            "Drift",
            "W1 between the scores of recent and of real items, divided by the value that 99% of "
            "real windows stay below; an alert fires above 1.5.",
            "short",
            [
                (
                    "max by (model, role) "
                    f"(wgan_drift_distance{{{JOB}}} / wgan_drift_threshold{{{JOB}}})",
                    "worst replica, {{model}} {{role}}",
                ),
            ],
        ),
        (
            "Where scores stand among real items",
            "Percentile of the scored items among real held-out ones. For items like those it was "
            "trained on, the three lines are at 10, 50 and 90; other values mean drift.",
            "short",
            [
                (
                    f"histogram_quantile({q}, sum by (model, le) "
                    f"(rate(wgan_score_percentile_bucket{{{JOB}}}[{RATE}])))",
                    f"{int(100 * q)}%, {{{{model}}}}",
                )
                for q in (0.1, 0.5, 0.9)
            ],
        ),
        (
            "Scores",
            "Quantiles of the scores, in the critic's own unit. They are not probabilities.",
            "short",
            [
                (
                    f"histogram_quantile({q}, sum by (model, le) "
                    f"(rate(wgan_score_bucket{{{JOB}}}[{RATE}])))",
                    f"{int(100 * q)}%, {{{{model}}}}",
                )
                for q in (0.1, 0.5, 0.9)
            ],
        ),
    ],
    "The model": [
        (
            "Versions served",
            "Replicas by version. If a role keeps two versions, some replica does not follow.",
            "table",
            [
                (
                    "count by (model, role, version, constraint, guarantee, data) "
                    f"(wgan_model_info{{{JOB}}})",
                    "",
                )
            ],
        ),
        (
            "Quality",
            "On held-out data, as judged after training.",
            "short",
            [
                (
                    f"max by (model, role, metric) (wgan_quality{{{JOB}}})",
                    "{{metric}}, {{model}} {{role}}",
                )
            ],
        ),
        (
            "Quality over floor",
            "Each figure divided by that of real data against real data: 1 is as good as data. "
            "Distances are above 1, shares below.",
            "short",
            [
                (
                    f"max by (model, role, metric) (wgan_quality{{{JOB}}}) "
                    f"/ max by (model, role, metric) (wgan_quality_floor{{{JOB}}} != 0)",
                    "{{metric}}, {{model}} {{role}}",
                )
            ],
        ),
        (
            "Lipschitz constant of the critic",
            "Certified upper bound and sampled lower bound. Sampled above certified is an error.",
            "short",
            [
                (
                    f"max by (model, role, bound) (wgan_critic_lipschitz{{{JOB}}})",
                    "{{bound}}, {{model}} {{role}}",
                )
            ],
        ),
        (
            "Gradient norm of the critic",
            "Quantiles measured after training; a gradient penalty aims at 1.",
            "short",
            [
                (
                    f"max by (model, role, place, level) (wgan_critic_gradient_norm{{{JOB}}})",
                    "{{place}} {{level}}, {{model}} {{role}}",
                )
            ],
        ),
        (
            "Findings",
            "What is wrong with the run, by severity.",
            "short",
            [
                (
                    f"max by (model, role, severity) (wgan_findings{{{JOB}}})",
                    "{{severity}}, {{model}} {{role}}",
                )
            ],
        ),
    ],
    "Retraining": [
        (
            "How the last retraining ended",
            "From the Pushgateway.",
            "table",
            [(f"max by (model, outcome) (wgan_retrain_outcome{{{RETRAIN}}}) == 1", "")],
        ),
        (
            "Failures in a row",
            "Rejections and failures in a row; alerts fire at 3 and 2.",
            "short",
            [
                (
                    f"max by (model) (wgan_retrain_rejected_in_a_row{{{RETRAIN}}})",
                    "rejected, {{model}}",
                ),
                (
                    f"max by (model) (wgan_retrain_failed_in_a_row{{{RETRAIN}}})",
                    "failed, {{model}}",
                ),
            ],
        ),
        (
            "Interruptions in a row",
            "Those that came no further; an alert fires at 12, and each twelfth is a failure.",
            "short",
            [(f"max by (model) (wgan_retrain_interrupted_in_a_row{{{RETRAIN}}})", "{{model}}")],
        ),
        (
            "Room for runs",
            "An alert fires when less is free than a run needs.",
            "bytes",
            [
                (f"min by (model) (wgan_retrain_disk_free_bytes{{{RETRAIN}}})", "free, {{model}}"),
                (
                    f"max by (model) (wgan_retrain_disk_needed_bytes{{{RETRAIN}}})",
                    "needed, {{model}}",
                ),
            ],
        ),
        (
            "Since the last end",
            "Time since a retraining ended; an alert fires after 4 days.",
            "s",
            [
                (
                    "time() - max by (model) "
                    f"(wgan_retrain_finished_timestamp_seconds{{{RETRAIN}}})",
                    "{{model}}",
                )
            ],
        ),
        (
            "Gates",
            "1 means passed.",
            "short",
            [
                (
                    f"max by (model, gate) (wgan_retrain_gate_passed{{{RETRAIN}}})",
                    "{{gate}}, {{model}}",
                )
            ],
        ),
    ],
}


def build() -> str:
    """Return the dashboard as JSON."""
    board = (
        dashboard.Dashboard("wgan-foundry")
        .uid("wgan-foundry")
        .tags(["wgan-foundry"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for label in ("namespace", "release"):
        board = board.with_variable(
            dashboard.QueryVariable(label)
            .datasource(SOURCE)
            .query(f"label_values(wgan_model_ready, {label})")
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
    y = 0
    for row, panels in ROWS.items():
        board = board.with_row(dashboard.Row(row).grid_pos(GridPos(h=1, w=24, x=0, y=y)))
        y += 1
        small = all(kind.startswith("stat:") for _, _, kind, _ in panels)
        width, height = (6, 4) if small else (12, 8)
        for i, (title, description, kind, queries) in enumerate(panels):
            column, line = i % (24 // width), i // (24 // width)
            position = GridPos(h=height, w=width, x=column * width, y=y + line * height)
            board = board.with_panel(_panel(title, description, kind, queries).grid_pos(position))
        y += -(-len(panels) // (24 // width)) * height
    content = json.loads(JSONEncoder().encode(board.build()))
    for number, panel in enumerate(content["panels"]):
        panel["id"] = number + 1  # links to a panel contain its number
        if panel.get("options", ...) is None:  # Grafana refuses null
            del panel["options"]
    return json.dumps(content, sort_keys=True, indent=2) + "\n"


def _panel(
    title: str, description: str, kind: str, queries: Queries
) -> stat.Panel | table.Panel | timeseries.Panel:
    panel: stat.Panel | table.Panel | timeseries.Panel
    if kind == "table":
        panel = table.Panel()
    elif kind.startswith("stat:"):
        panel = stat.Panel().unit(kind.removeprefix("stat:"))
    else:
        panel = timeseries.Panel().unit(kind).fill_opacity(0)
    panel = panel.title(title).description(description).datasource(SOURCE)
    for ref, (expression, legend) in zip("ABCD", queries, strict=False):
        query = prometheus.Dataquery().expr(expression).ref_id(ref).datasource(SOURCE)
        if kind == "table":
            query = query.instant().format("table")
        panel = panel.with_target(query.legend_format(legend))
    return panel


if __name__ == "__main__":
    built = build()
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if OUT.is_file() and OUT.read_text() == built else f"{OUT} is out of date")
    OUT.write_text(built)
