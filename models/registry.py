"""The model registry, kept in MLflow: versions, the champion alias, and its history.

`MLFLOW_TRACKING_URI` names a server or database; the default is `mlflow.db` in the working folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import promotions
from models.errors import AbsentError, RegistryError
from models.registry_errors import failure
from models.registry_search import all_pages, model_named, versions_of
from models.secret_files import read_secret_files
from models.tracking_server import limit_tries, require_supported, take_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

LONGEST_NAME = 256
"""Characters of a name or an alias that MLflow's database holds."""
CHAMPION = "champion"
DIGEST_TAG = "artifact_digest"
SIGNATURE_TAG = "signature_sha256"
"""Tag of a signed version: by it a service sees that there is a new signature."""
EXTRACTOR_TAG = "extractor"
"""Tag with the features that figures are computed over, as JSON. A version has its own; a
registered model keeps those of its first champion, so that figures compare over time."""
HTTP_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Seconds and repetitions of a request, unless the environment sets them. MLflow's own defaults,
two minutes and seven repetitions, let a caller wait for a quarter of an hour."""

Check = Callable[[str, str], None]


def _allow(before: str, version: str) -> None:
    """Let any version replace any champion."""


def tracking_uri() -> str:
    """Return the address where MLflow keeps runs and versions."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def client() -> MlflowClient:
    """Connect to the tracking server or database; see `require_supported`.

    Raises:
        RegistryError: a file with a secret for the server cannot be read, or its address is no URL.
    """
    take_credentials()
    read_secret_files()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for key, value in HTTP_LIMITS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table it creates
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    limit_tries(tracking_uri())
    require_supported(tracking_uri())
    return MlflowClient(tracking_uri())


def is_reference(model: str) -> bool:
    """Return True if ``model`` is a registry name such as ``digits@champion``, not a folder."""
    return "@" in model and not os.path.exists(model)  # False too for what no path can be


def split(model: str) -> tuple[str, str]:
    """Return the name and the alias or number of ``name@alias`` or ``name@number``.

    Raises:
        RegistryError: one of them is empty, or longer than MLflow allows.
    """
    name, _, which = model.rpartition("@")
    if max(len(name), len(which)) > LONGEST_NAME:
        raise RegistryError(
            f"{model:.100}...: a name or alias has at most {LONGEST_NAME} characters"
        )
    if not name or not which:
        raise RegistryError(f"{model}: write NAME@ALIAS or NAME@VERSION, such as digits@champion")
    return name, which


def resolve(model: str) -> tuple[str, str]:
    """Return the name and version number to which ``name@alias`` or ``name@number`` refers now.

    Raises:
        RegistryError: it refers to nothing, or the registry does not answer.
    """
    name, which = split(model)
    if which.isdecimal():
        return name, str(_ask(model, lambda c: c.get_model_version(name, which)).version)
    return name, str(_ask(model, lambda c: c.get_model_version_by_alias(name, which)).version)


def is_absent(error: RegistryError) -> bool:
    """Return True if the registry answered that the thing is absent, False if it did not answer."""
    return isinstance(error, AbsentError)


def files_uri(model: str) -> str:
    """Return the URI of the files of a version; see `models.registry_files`.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    name, version = resolve(model)
    return str(_ask(model, lambda c: c.get_model_version_download_uri(name, version)))


def register(name: str, run_id: str, artifact_uri: str, tags: dict[str, str]) -> str:
    """Register a version and return its number.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    if _registered(name) is None:
        _ask(name, lambda c: _create(c, name))
    created = _ask(name, lambda c: c.create_model_version(name, artifact_uri, run_id, tags=tags))
    return str(created.version)


def find(name: str, tag: str, value: str) -> dict[str, str] | None:
    """Find the newest version of a model that has a tag.

    Returns:
        Its tags with its ``version`` and ``run_id``; None if there is no such version.

    Raises:
        RegistryError: the registry does not answer.
    """
    query = f"name='{name}' and tags.`{tag}`='{value}'"
    matches = _ask(name, lambda c: c.search_model_versions(query))
    if not matches:
        return None
    return _described(max(matches, key=lambda v: int(v.version)))


def version(name: str, number: str) -> dict[str, str]:
    """Return a version's tags, with its ``version`` and ``run_id``.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    return _described(_ask(name, lambda c: c.get_model_version(name, number)))


def tag(name: str, number: str, tags: dict[str, str]) -> None:
    """Set tags on a version.

    Raises:
        RegistryError: no such version, or the registry does not answer.
    """
    for key, value in tags.items():
        _ask(name, lambda c, k=key, v=value: c.set_model_version_tag(name, number, k, v))


def names() -> list[str]:
    """List the names of the registered models.

    Raises:
        RegistryError: the registry does not answer.
    """
    return [m.name for m in _ask("models", lambda c: all_pages(c.search_registered_models))]


def versions(name: str | None = None) -> list[dict[str, Any]]:
    """List the versions of a name, or every version in the registry, newest first within a name.

    Raises:
        RegistryError: the registry does not answer.
    """
    if name is None:
        models = _ask("models", lambda c: all_pages(c.search_registered_models))
    else:
        registered = _registered(name)
        models = [] if registered is None else [registered]
    rows = []
    for model in models:
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        matches = _ask(model.name, lambda c, name=model.name: versions_of(c, name))
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
            for v in sorted(matches, key=lambda v: -int(v.version))
        ]
    return rows


def promote(name: str, version: str, why: str, check: Check = _allow) -> str | None:
    """Make a version the champion and record the change in the history.

    Repeating it is safe: what an earlier call was cut off from is made good. `models.champions`
    checks that the new champion makes the same items.

    Args:
        name: of the registered model.
        version: number of the new champion.
        why: for the history.
        check: takes the champion's version and the new one, before anything is changed, and raises
            if the one may not replace the other.

    Returns:
        The previous champion's version, or None.

    Raises:
        RegistryError: no such version.
    """
    return _set_champion(name, version, "promote", why, check)


def frozen_extractor(name: str) -> dict[str, str] | None:
    """Return the extractor of a model's first champion.

    Returns:
        Its ``name`` and ``sha256``, and that champion's ``version``; None if no champion was judged
        over features yet.

    Raises:
        RegistryError: the registry does not answer.
    """
    registered = _registered(name)
    tags = {} if registered is None else registered.tags
    return json.loads(tags[EXTRACTOR_TAG]) if EXTRACTOR_TAG in tags else None


def champion(name: str) -> str | None:
    """Return the champion's version; None if there is no champion or no such model.

    Raises:
        RegistryError: the registry does not answer.
    """
    registered = _registered(name)
    version = None if registered is None else registered.aliases.get(CHAMPION)
    return None if version is None else str(version)


def _set_champion(name: str, version: str, action: str, why: str, check: Check) -> str | None:
    resolve(f"{name}@{version}")
    tags, before = _mended(name)
    if version == before:
        return before
    if before is not None:
        check(before, version)
    change = {
        "action": action,
        "who": promotions.user(),
        "when": promotions.now(),
        "why": why,
        "from": before,
        "to": version,
    }
    key = promotions.tag_of(change, tags)
    pending = json.dumps({**change, promotions.PENDING: True})
    _ask(name, lambda c: c.set_registered_model_tag(name, key, pending))
    _ask(name, lambda c: c.set_registered_model_alias(name, CHAMPION, version))
    _freeze_extractor(name, tags, version)
    _ask(name, lambda c: c.set_registered_model_tag(name, key, json.dumps(change)))
    return before


def _mended(name: str) -> tuple[dict[str, str], str | None]:
    """Bring a model's history up to its alias; returns its tags and its champion's version."""
    tags, current = _tags_and_champion(name)
    if current is not None:
        _freeze_extractor(name, tags, current)
    _, mend = promotions.settle(tags, current)
    for key, value in mend.items():
        if value is None:
            _ask(name, lambda c, k=key: c.delete_registered_model_tag(name, k))
            del tags[key]
        else:
            _ask(name, lambda c, k=key, v=value: c.set_registered_model_tag(name, k, v))
            tags[key] = value
    return tags, current


def _freeze_extractor(name: str, tags: dict[str, str], version: str) -> None:
    """Keep the extractor of a champion for those that follow, unless one is kept already."""
    if EXTRACTOR_TAG in tags:
        return
    extractor = _ask(name, lambda c: c.get_model_version(name, version)).tags.get(EXTRACTOR_TAG)
    if extractor:
        tags[EXTRACTOR_TAG] = json.dumps({**json.loads(extractor), "version": version})
        _ask(name, lambda c: c.set_registered_model_tag(name, EXTRACTOR_TAG, tags[EXTRACTOR_TAG]))


def _tags_and_champion(name: str) -> tuple[dict[str, str], str | None]:
    registered = _ask(name, lambda c: c.get_registered_model(name))
    current = registered.aliases.get(CHAMPION)
    return dict(registered.tags), None if current is None else str(current)


def history(name: str) -> list[dict[str, str | None]]:
    """List the changes of the champion, oldest first: action, who, when, why, from, to.

    The alias decides what happened. One that was moved by other means is a change by nobody, with
    the action ``moved``; it is found when the history is asked for, and kept at the next promotion.

    Raises:
        RegistryError: no such model, or the registry does not answer.
    """
    return promotions.settle(*_tags_and_champion(name))[0]


def rollback(name: str, why: str, check: Check = _allow) -> tuple[str | None, str]:
    """Make the previous champion the champion again.

    A second rollback goes one step further back, not forward again. Versions that have been deleted
    meanwhile are passed over. Where there is no champion, the last one is taken.

    Args:
        name: of the registered model.
        why: for the history.
        check: as of `promote`.

    Returns:
        The version rolled back from, None where there was no champion; and the version rolled back
        to.

    Raises:
        AbsentError: no earlier champion is known.
        RegistryError: the registry does not answer.
    """
    tags, current = _mended(name)
    for version in reversed(promotions.champions(promotions.settle(tags, current)[0])):
        if version == current:
            continue
        try:
            _set_champion(name, version, "rollback", why, check)
        except AbsentError:
            continue
        return current, version
    raise AbsentError(f"{name}: there is no earlier champion to roll back to")


def _described(version: ModelVersion) -> dict[str, str]:
    return {**version.tags, "version": str(version.version), "run_id": str(version.run_id)}


def _registered(name: str) -> RegisteredModel | None:
    """Return a registered model, or None if there is none of that name."""
    return _ask(name, lambda c: model_named(c, name))


def _create(api: MlflowClient, name: str) -> None:
    """Create a registered model, unless another process has created it meanwhile."""
    from mlflow.exceptions import MlflowException

    try:
        api.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _ask(what: str, question: Any) -> Any:
    """Put a question to the registry, and raise a `RegistryError` if that fails in any way."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return question(client())
    # The errors of requests are OSErrors; SQLAlchemy raises its own for a database, and imports
    # what speaks to it.
    except (MlflowException, OSError, SQLAlchemyError, ImportError) as error:
        raise failure(_message(what, error), error) from None  # it may show secrets


def _message(what: str, error: Exception) -> str:
    return f"{what}: {getattr(error, 'message', error)} (registry: {tracking_uri()})"
