"""The model registry, which is MLflow's: versions, the champion alias, and its history.

`MLFLOW_TRACKING_URI` names a server or database; without it, `mlflow.db` in the working folder.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
HISTORY = "promotion."
"""Prefix of the registered model's tags that hold each change of the champion. A number and random
digits follow: two promotions at once may take one number, but neither overwrites the other."""
DIGEST_TAG = "artifact_digest"
EXTRACTOR_TAG = "extractor"
"""Of a version: the features that its figures are over, as JSON. Of a registered model: those of
its first champion, for good, so that its figures compare over time."""


HTTP_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Seconds of a request, and how it is repeated, unless the environment says otherwise. MLflow's
own, two minutes and seven repetitions, would have a caller wait for a quarter of an hour."""


def tracking_uri() -> str:
    """Where MLflow keeps runs and versions."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def client() -> MlflowClient:
    """Connect to the tracking server or database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for key, value in HTTP_LIMITS.items():
        os.environ.setdefault(key, value)
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


def digest(name: str, version: str) -> str | None:
    """The digest of the artifact that was registered; None if the version does not tell.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    tags = _ask(f"{name}@{version}", lambda c: c.get_model_version(name, version)).tags
    return str(tags[DIGEST_TAG]) if DIGEST_TAG in tags else None


def is_absent(error: RegistryError) -> bool:
    """Whether the registry did answer: that it has no such thing. Else it did not answer."""
    code = getattr(error.__cause__, "error_code", None)
    return code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


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
    """Add a version and return its number.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    if _registered(name) is None:
        from mlflow.exceptions import MlflowException

        try:
            client().create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another was quicker
                raise RegistryError(_said(name, error)) from error
    made = _ask(name, lambda c: c.create_model_version(name, artifact_uri, run_id, tags=tags))
    return str(made.version)


def find(name: str, tag: str, value: str) -> dict[str, str] | None:
    """The newest version of a model with a tag: ``version``, ``run_id`` and its tags; or None.

    Raises:
        RegistryError: the registry does not answer.
    """
    query = f"name='{name}' and tags.`{tag}`='{value}'"
    found = _ask(name, lambda c: c.search_model_versions(query))
    if not found:
        return None
    return _told(max(found, key=lambda v: int(v.version)))


def version(name: str, number: str) -> dict[str, str]:
    """What the registry has of a version: ``version``, ``run_id`` and its tags.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    return _told(_ask(name, lambda c: c.get_model_version(name, number)))


def tag(name: str, number: str, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    for key, value in tags.items():
        _ask(name, lambda c, k=key, v=value: c.set_model_version_tag(name, number, k, v))


def _told(found: ModelVersion) -> dict[str, str]:
    return {**found.tags, "version": str(found.version), "run_id": str(found.run_id)}


def versions() -> list[dict[str, Any]]:
    """Every version in the registry, newest first within a name."""
    rows = []
    for model in _ask("models", lambda c: list(c.search_registered_models())):
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        query = f"name='{model.name}'"
        found = _ask(model.name, lambda c, query=query: list(c.search_model_versions(query)))
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
    registered = _registered(name)
    tags = {} if registered is None else registered.tags
    return json.loads(tags[EXTRACTOR_TAG]) if EXTRACTOR_TAG in tags else None


def champion(name: str) -> str | None:
    """The version that is champion now; None if there is none, or no such model.

    Raises:
        RegistryError: the registry does not answer.
    """
    registered = _registered(name)
    version = None if registered is None else registered.aliases.get(CHAMPION)
    return None if version is None else str(version)


def _set_champion(name: str, version: str, action: str, why: str) -> str | None:
    resolve(f"{name}@{version}")
    registered = _ask(name, lambda c: c.get_registered_model(name))
    before = registered.aliases.get(CHAMPION)
    extractor = _ask(name, lambda c: c.get_model_version(name, version)).tags.get(EXTRACTOR_TAG)
    entry = {
        "action": action,
        "who": getpass.getuser(),
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "why": why,
        "from": None if before is None else str(before),
        "to": version,
    }
    numbers = [int(key.split(".")[1]) for key in registered.tags if key.startswith(HISTORY)]
    key = f"{HISTORY}{max(numbers, default=0) + 1:06d}.{secrets.token_hex(4)}"
    _ask(name, lambda c: c.set_registered_model_alias(name, CHAMPION, version))
    _ask(name, lambda c: c.set_registered_model_tag(name, key, json.dumps(entry)))
    if extractor and EXTRACTOR_TAG not in registered.tags:
        frozen = json.dumps({**json.loads(extractor), "version": version})
        _ask(name, lambda c: c.set_registered_model_tag(name, EXTRACTOR_TAG, frozen))
    return entry["from"]


def history(name: str) -> list[dict[str, str | None]]:
    """Every change of the champion, oldest first: action, who, when, why, from, to."""
    tags = _ask(name, lambda c: c.get_registered_model(name)).tags
    changes = [
        (int(key.split(".")[1]), json.loads(value))
        for key, value in tags.items()
        if key.startswith(HISTORY)
    ]
    return [change for _, change in sorted(changes, key=lambda c: (c[0], c[1]["when"]))]


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


def _registered(name: str) -> RegisteredModel | None:
    """A registered model, or None if there is none of that name."""
    from mlflow.exceptions import MlflowException

    def question(api: MlflowClient) -> RegisteredModel | None:
        try:
            return api.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    return _ask(name, question)


def _ask(what: str, question: Any) -> Any:
    """Put a question to the registry; whatever goes wrong on the way is a `RegistryError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return question(client())
    # requests' own errors are OSErrors; a database that is away is SQLAlchemy's.
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise RegistryError(_said(what, error)) from error


def _said(what: str, error: Exception) -> str:
    return f"{what}: {getattr(error, 'message', error)} (registry: {tracking_uri()})"
