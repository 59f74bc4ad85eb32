"""Writing a run to MLflow: settings, metrics, tags and files, and a registered version."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from models import registry
from models.artifact import CARD, GRID
from models.config import flatten
from models.errors import AbsentError, RegistryError
from models.model import Model
from models.record import Run
from models.registry_errors import ABSENT, failure
from models.registry_files import require_files
from training.progress import phase
from training.reporting.pages import findings_page

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "wgan-foundry"
LONGEST_PARAMETER = 6000
"""Characters of a parameter that MLflow keeps."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, Markdown."""


def track_and_register(
    model: Model,
    artifact_folder: Path,
    comparison: str | None = None,
    report: Path | None = None,
    diagnosis: Path | None = None,
    again: str = "repeat the command to register it, wgan train with --resume",
) -> str:
    """Write a finished run and its artifact to MLflow, and register it as a new version.

    Repeating it is safe: a version that has the same artifact is not made again, unless its files
    are gone. Nothing else is
    queued: what MLflow did not take stays in the run's folder until this is called again.

    Args:
        model: the loaded artifact.
        artifact_folder: where it lies.
        comparison: name of the comparison that the run is part of; the run is then tracked, and no
            version is registered.
        report: the page of a table's columns, to be shown beside the artifact. Of a private run
            that keeps its figures to itself it is not stored: it shows real rows' marginals.
        diagnosis: the doctor's page in the run's folder; without it, or of a private run, whose own
            page shows what the artifact leaves out, the page is drawn anew.
        again: says, if MLflow fails, what to do when it is there again.

    Returns:
        ``name@version``; of a comparison, MLflow's run id.

    Raises:
        RegistryError: MLflow does not answer; the artifact is unharmed.
    """
    from mlflow.exceptions import MlflowException

    run, name = model.run, model.run.config.name
    try:
        with phase("registering"):
            api = registry.client()
            known = None if comparison else registry.find(name, registry.DIGEST_TAG, model.digest)
            if known:  # an earlier call was killed just before its end
                reference = f"{name}@{known['version']}"
                with contextlib.suppress(AbsentError):
                    require_files(reference)
                    _end(api, known["run_id"])
                    return reference
            started = api.create_run(experiment(), run_name=f"{name}-{run.constraint.kind}")
            run_id = started.info.run_id
            tags = _tags(model, comparison)
            # Cut to what every database behind MLflow takes; the whole card is an artifact.
            card = (artifact_folder / CARD).read_text()[:5000]
            _log_record(api, run_id, run, started.info.start_time, {**tags, NOTE: card})
            if diagnosis is None or run.privacy:
                page = findings_page(f"Diagnosis of {name}", run.findings)
            else:
                page = diagnosis.read_text()
            _log_files(api, run_id, artifact_folder, page)
            if report is not None and (run.privacy is None or run.marginals):
                store(api, run_id, report)
            reference = str(run_id)
            if not comparison:
                uri = f"{started.info.artifact_uri}/artifact"
                version = registry.register(name, run_id, uri, tags)
                api.update_model_version(name, version, card)
                reference = f"{name}@{version}"
            api.set_terminated(run_id)
            return reference
    except (MlflowException, RegistryError, OSError) as error:
        raise failure(
            f"MLflow at {registry.tracking_uri()} failed ({getattr(error, 'message', error)}); the "
            f"artifact is safe in {artifact_folder}: {again}",
            error,
        ) from None


def _end(api: MlflowClient, run_id: str) -> None:
    """End a run, unless somebody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        api.set_terminated(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise


def _tags(model: Model, comparison: str | None) -> dict[str, str]:
    """Tags of the run and of the version."""
    run = model.run
    tags = {
        "constraint": run.constraint.kind,
        "data": run.data.name,
        "data_sha256": run.data.sha256,
        registry.DIGEST_TAG: model.digest,
    }
    if run.privacy:
        tags["privacy"] = run.privacy.in_words
    if parent := run.provenance.get("parent"):
        tags["parent"] = parent["model"]
        tags["parent_digest"] = parent["digest"]
    if ends := run.provenance.get("extended"):
        tags["extended"] = f"from {', '.join(map(str, ends))} steps"
    if comparison:
        tags["comparison"] = comparison
    tags |= {
        f"finding.{finding.name}": f"{finding.severity}: {finding.evidence}"
        for finding in run.findings
        if finding.present
    }
    if run.results.extractor:
        tags[registry.EXTRACTOR_TAG] = run.results.extractor.model_dump_json()
    return tags


def _log_record(api: MlflowClient, run_id: str, run: Run, now: int, tags: dict[str, str]) -> None:
    """Write history, figures and findings as metrics, and the settings as parameters.

    ``now`` is the time of all metrics, in milliseconds since 1970.
    """
    from mlflow.entities import Metric, Param, RunTag

    last_step = run.config.training.steps
    metrics = [
        Metric(key, value, now, int(row["step"]))
        for row in run.history
        for key, value in row.items()
        if key != "step"
    ]
    if selected := run.provenance.get("selected"):
        name = f"validation_{selected['figure']}"
        metrics += [Metric(name, value, now, step) for step, value in selected["measured"]]
    for key, figure in run.results.figures.items():
        metrics.append(Metric(key, figure.value, now, last_step))
        if figure.floor is not None:
            metrics.append(Metric(f"{key}.floor", figure.floor, now, last_step))
    metrics += [Metric(f"finding.{f.name}", f.value, now, last_step) for f in run.findings]
    for first in range(0, len(metrics), 1000):  # as many as MLflow takes at once
        api.log_batch(run_id, metrics[first : first + 1000])
    config = run.config.model_dump(mode="json")
    # MLflow refuses keys with signs that names of columns may have.
    columns = config["data"].pop("columns", None)
    parameters = flatten(config)
    if columns:
        parameters["data.columns"] = json.dumps(columns)[:LONGEST_PARAMETER]
    api.log_batch(
        run_id,
        params=[Param(key, str(value)) for key, value in parameters.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def _log_files(api: MlflowClient, run_id: str, artifact_folder: Path, diagnosis: str) -> None:
    """Copy the artifact and the doctor's page; picture and card again, where MLflow shows them."""
    store(api, run_id, artifact_folder, "artifact")
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "diagnosis.html"
        page.write_text(diagnosis)
        store(api, run_id, page)
    for file in (GRID, CARD):
        store(api, run_id, artifact_folder / file)


def record(name: str, version: str, file: str, text: str, tags: dict[str, str]) -> None:
    """Put a text file beside the artifact in a version's run, and tags on the version.

    If somebody has deleted the run, the tags tell alone.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    run_id = registry.version(name, version)["run_id"]
    with TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_text(text)
        with contextlib.suppress(AbsentError):
            store(registry.client(), run_id, path)
    registry.tag(name, version, tags)


def store(api: MlflowClient, run_id: str, what: Path, under: str | None = None) -> None:
    """Copy a file or a folder's files to a run.

    Raises:
        RegistryError: the storage behind MLflow refuses or does not answer.
    """
    try:
        if what.is_dir():
            api.log_artifacts(run_id, str(what), under)
        else:
            api.log_artifact(run_id, str(what), under)
    except Exception as error:  # each kind of storage has errors of its own
        raise failure(f"cannot store {what.name}: {error}", error) from None


def experiment() -> str:
    """The experiment's id; with a SQLite file, artifacts go beside it, not below the shell's."""
    api = registry.client()
    existing = api.get_experiment_by_name(EXPERIMENT)
    if existing:
        return str(existing.experiment_id)
    uri = registry.tracking_uri()
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return str(api.create_experiment(EXPERIMENT, location))
