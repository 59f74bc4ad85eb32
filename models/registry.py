"""The model registry, which is MLflow's: versions, the champion alias, and its history.

`MLFLOW_TRACKING_URI` names a server or database; without it, `mlflow.db` in the working folder.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
HISTORY = "promotion."
"""Prefix of the registered model's tags that hold each change of the champion, numbered."""
DIGEST_TAG = "artifact_digest"
EXTRACTOR_TAG = "extractor"
"""Of a version: the features that its figures are over, as JSON. Of a registered model: those of
its first champion, for good, so that its figures compare over time."""


def tracking_uri() -> str:
    """Where MLflow keeps runs and versions."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def client() -> MlflowClient:
    """Connect to the tracking server or database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def is_reference(model: str) -> bool:
    """Whether MODEL is a registry name such as ``digits@champion``, not a folder."""
    return "@" in model and not Path(model).exists()


def resolve(model: str) -> tuple[str, str]:
    """Name and version number that ``name@alias`` or ``name@number`` stands for now.

    Raises:
        RegistryError: there is none, or the registry does not answer.
    """
    name, _, which = model.rpartition("@")
    if not name or not which:
        raise RegistryError(f"{model}: write NAME@ALIAS or NAME@VERSION, such as digits@champion")
    if which.isdecimal():
        return name, str(_ask(model, lambda c: c.get_model_version(name, which)).version)
    return name, str(_ask(model, lambda c: c.get_model_version_by_alias(name, which)).version)


def download(model: str, folder: Path) -> Path:
    """Copy a version's artifact into ``folder`` and return where it lies.

    Raises:
        RegistryError: no such version, or its files cannot be fetched.
    """
    from mlflow.artifacts import download_artifacts

    name, version = resolve(model)
    uri = _ask(model, lambda c: c.get_model_version_download_uri(name, version))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(
            download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri())
        )
    except Exception as error:  # whatever the storage behind the registry raises
        raise RegistryError(f"{model}: cannot fetch {uri}: {error}") from error


def register(name: str, run_id: str, artifact_uri: str, tags: dict[str, str]) -> str:
    """Add a version and return its number."""
    from mlflow.exceptions import MlflowException

    api = client()
    try:
        api.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(api.create_model_version(name, artifact_uri, run_id, tags=tags).version)


def versions() -> list[dict[str, Any]]:
    """Every version in the registry, newest first within a name."""
    api = client()
    rows = []
    for model in api.search_registered_models():
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        found = api.search_model_versions(f"name='{model.name}'")
        rows += [
            {
                "name": model.name,
                "version": str(v.version),
                "aliases": sorted(aliases.get(str(v.version), [])),
                "created": datetime.fromtimestamp(v.creation_timestamp / 1000, UTC).isoformat(
                    timespec="seconds"
                ),
                "tags": dict(v.tags),
            }
            for v in sorted(found, key=lambda v: -int(v.version))
        ]
    return rows


def promote(name: str, version: str, why: str) -> str | None:
    """Make a version the champion and write the change into the history.

    Returns:
        The version that was champion before, or None.

    Raises:
        RegistryError: no such version.
    """
    return _set_champion(name, version, "promote", why)


def frozen_extractor(name: str) -> dict[str, str] | None:
    """The extractor of a model's first champion: its name, sha256 and that champion's version.

    Returns:
        None if there was no champion yet that was judged over features.

    Raises:
        RegistryError: the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        tags = client().get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise RegistryError(f"{name}: {error.message} (registry: {tracking_uri()})") from error
    return json.loads(tags[EXTRACTOR_TAG]) if EXTRACTOR_TAG in tags else None


def _set_champion(name: str, version: str, action: str, why: str) -> str | None:
    resolve(f"{name}@{version}")
    registered = _ask(name, lambda c: c.get_registered_model(name))
    before = registered.aliases.get(CHAMPION)
    extractor = _ask(name, lambda c: c.get_model_version(name, version)).tags.get(EXTRACTOR_TAG)
    entry = {
        "action": action,
        "who": getpass.getuser(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "why": why,
        "from": None if before is None else str(before),
        "to": version,
    }
    number = len(history(name)) + 1
    api = client()
    api.set_registered_model_alias(name, CHAMPION, version)
    api.set_registered_model_tag(name, f"{HISTORY}{number:06d}", json.dumps(entry))
    if extractor and EXTRACTOR_TAG not in registered.tags:
        frozen = {**json.loads(extractor), "version": version}
        api.set_registered_model_tag(name, EXTRACTOR_TAG, json.dumps(frozen))
    return entry["from"]


def history(name: str) -> list[dict[str, str | None]]:
    """Every change of the champion, oldest first: action, who, when, why, from, to."""
    tags = _ask(name, lambda c: c.get_registered_model(name)).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(HISTORY)]


def rollback(name: str, why: str) -> tuple[str, str]:
    """Make the version that was champion before the present one the champion again.

    A second rollback goes one further back, not forward again.

    Returns:
        The versions rolled back from and to.

    Raises:
        RegistryError: no earlier champion is known.
    """
    stack: list[str] = []
    for change in history(name):
        if change["action"] == "rollback":
            stack.pop()
        else:
            stack.append(str(change["to"]))
    if len(stack) < 2:
        raise RegistryError(f"{name}: there is no earlier champion to roll back to")
    _set_champion(name, stack[-2], "rollback", why)
    return stack[-1], stack[-2]


def _ask(what: str, question: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return question(client())
    except MlflowException as error:
        raise RegistryError(f"{what}: {error.message} (registry: {tracking_uri()})") from error
