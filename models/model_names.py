"""A model's name, as every command and function takes it: a folder, a run, or a registry name."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from models import registry
from models.errors import AbsentError, ArtifactError, RegistryError, UserError, suggestion
from models.run_folder import artifact_of

MAX_LISTED = 5
"""Versions, at most, that a message lists: the newest."""


def locate(model: str) -> Path | str:
    """Find what a name means. What lies on the disk comes first; the registry is not asked.

    Args:
        model: the folder of an artifact or of a run; ``NAME@VERSION`` or ``NAME@ALIAS``; or
            ``NAME``, which means its champion.

    Returns:
        The artifact's folder, or the registry name with its version or alias.

    Raises:
        ArtifactError: it is a path, and nothing is there; names the nearest folder.
    """
    if os.path.exists(model):
        return artifact_of(Path(model))
    if "@" in model:
        return model
    if re.fullmatch(r"[^/\\:]+", model) and model not in (".", ".."):
        return f"{model}@{registry.CHAMPION}"
    raise ArtifactError(f"{model:.300}: no such folder{_nearest(Path(model))}")


def resolve(model: str) -> tuple[str, str]:
    """Find the name and version of a registry name; see `models.registry.resolve`.

    Raises:
        AbsentError: there is none; names what there is.
        RegistryError: the registry does not answer.
    """
    name, which = registry.split(model)
    _require_registry(model)
    try:
        return registry.resolve(model)
    except AbsentError as error:
        raise AbsentError(_instead(model, name, which) or str(error)) from error


def settle(model: str) -> tuple[str, str]:
    """Find what a name means now, whatever is promoted afterwards.

    Returns:
        The artifact's folder and an empty text, or ``NAME@VERSION`` and the version.

    Raises:
        UserError: as `locate` and `resolve`.
    """
    found = locate(model)
    if isinstance(found, Path):
        return str(found), ""
    name, version = resolve(found)
    return f"{name}@{version}", version


def require_version(model: str) -> tuple[str, str]:
    """Find the name and version of a registry name that says which version, to promote it.

    Raises:
        UserError: it is a folder, or says no version.
        RegistryError: as `resolve`.
    """
    if "@" in model:
        return resolve(model)
    if os.path.exists(model):
        raise UserError(
            f"{model} is a folder, and a version of the registry is promoted, such as digits@3; "
            "`wgan train` registers one, with --resume that of a finished run"
        )
    require_name(model)
    newest = registry.versions(model)[0]["version"]
    raise UserError(f"{model}: say which version, such as {model}@{newest}, the newest")


def require_name(name: str) -> None:
    """Require that a name, without a version, is in the registry.

    Raises:
        UserError: it says a version too.
        AbsentError: it is not there; names the nearest.
        RegistryError: the registry does not answer.
    """
    if "@" in name:
        raise UserError(f"{name}: name the model alone: {name.partition('@')[0]}")
    _require_registry(name)
    if not registry.versions(name):
        raise AbsentError(_instead(name, name, ""))


def _require_registry(model: str) -> None:
    """Require that a database here is there, since asking would make an empty one."""
    file = registry.tracking_uri().removeprefix("sqlite:///")
    if file != registry.tracking_uri() and not os.path.exists(file):
        raise AbsentError(
            f"{model}: no such folder, and no registry in {file}; set MLFLOW_TRACKING_URI, or make "
            "a model with wgan train"
        )


def _instead(model: str, name: str, which: str) -> str:
    """Say what there is in place of what is not there; nothing if the registry does not tell."""
    try:
        versions = registry.versions(name)
        names = [] if versions else registry.names()
    except RegistryError:
        return ""
    if not versions:
        hint = suggestion(name, names) if names else "; it is empty: `wgan train` registers models"
        return f"{model}: no such folder, and the registry has no model '{name}'{hint}"
    newest = versions[0]["version"]
    if which == registry.CHAMPION:
        return (
            f"{name} has no champion: name a version, such as {name}@{newest}, or make one the "
            f"champion: wgan promote {name}@{newest}"
        )
    known = [row["version"] for row in versions[:MAX_LISTED]]
    known += sorted({alias for row in versions for alias in row["aliases"]})
    is_there = any(row["version"] == which for row in versions)
    return "" if is_there else f"{model}: no such version or alias{suggestion(which, known)}"


def _nearest(path: Path) -> str:
    """End a message about a path that is not there, with the nearest that is."""
    parent = next((p for p in path.parents if p.is_dir()), None)
    if parent is None:
        return ""
    missing, *rest = path.relative_to(parent).parts
    names = [below.name for below in parent.iterdir() if below.is_dir()]
    for name in difflib.get_close_matches(missing, names, n=1):
        whole = parent.joinpath(name, *rest)
        return f"; did you mean '{whole if whole.exists() else parent / name}'?"
    hint = "" if rest else f"; a registry name has an @, such as {missing}@champion"
    return f": {parent} has no {missing}{hint}"
