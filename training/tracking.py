"""What MLflow is told of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import registry
from models.artifact import CARD, GRID, Model
from models.errors import RegistryError

EXPERIMENT = "wgan-foundry"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, Markdown."""


def track_and_register(model: Model, artifact_folder: Path) -> str:
    """Write a finished run and its artifact to MLflow, and register it as a new version.

    Args:
        model: the loaded artifact.
        artifact_folder: where it lies.

    Returns:
        ``name@version``.

    Raises:
        RegistryError: MLflow does not answer; the artifact is unharmed.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    run, name = model.run, model.run.config.name
    # As much as every database behind MLflow takes; the whole card is an artifact.
    card = (artifact_folder / CARD).read_text()[:5000]
    try:
        api = registry.client()
        started = api.create_run(_experiment(), run_name=f"{name}-{run.constraint.kind}")
        run_id, now = started.info.run_id, started.info.start_time
        parameters = _flat(run.config.model_dump(mode="json"))
        metrics = [
            Metric(key, value, now, int(row["step"]))
            for row in run.history
            for key, value in row.items()
            if key != "step"
        ]
        for key, figure in run.results.figures.items():
            metrics.append(Metric(key, figure.value, now, run.config.training.steps))
            if figure.floor is not None:
                metrics.append(Metric(f"{key}.floor", figure.floor, now, run.config.training.steps))
        tags = {
            "constraint": run.constraint.kind,
            "data": run.data.name,
            "data_sha256": run.data.sha256,
            registry.DIGEST_TAG: model.digest,
        }
        if run.results.extractor:
            tags[registry.EXTRACTOR_TAG] = run.results.extractor.model_dump_json()
        for first in range(0, len(metrics), 1000):  # as many as MLflow takes at once
            api.log_batch(run_id, metrics[first : first + 1000])
        api.log_batch(
            run_id,
            params=[Param(key, str(value)) for key, value in parameters.items()],
            tags=[RunTag(key, value) for key, value in {**tags, NOTE: card}.items()],
        )
        api.log_artifacts(run_id, str(artifact_folder), "artifact")
        for file in (GRID, CARD):  # where MLflow's pages show them at once
            api.log_artifact(run_id, str(artifact_folder / file))
        version = registry.register(name, run_id, f"{started.info.artifact_uri}/artifact", tags)
        api.update_model_version(name, version, card)
        api.set_terminated(run_id)
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {registry.tracking_uri()} failed ({error.message}); the artifact is safe "
            f"in {artifact_folder}: repeat the command with --resume to register it"
        ) from error
    return f"{name}@{version}"


def _experiment() -> str:
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


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
