"""Names of the models that a process serves, and where each comes from."""

from __future__ import annotations

import os
import re
from pathlib import Path

from models import registry
from models.run_folder import artifact_of

NAME = r"[^/=@]+"
NAMED = rf"({NAME})=(.+)"
"""One model as NAME=MODEL."""


def absolute(model: str) -> str:
    """Make a folder's path absolute, a run's that of its artifact; leave a registry name alone."""
    if not model or registry.is_reference(model):
        return model
    return str(artifact_of(Path(model)).absolute())


def has_name(model: str) -> bool:
    """Tell if one model is given as NAME=MODEL, and not as a folder with such a name."""
    return re.fullmatch(NAMED, model) is not None and not os.path.isdir(model)


def named(text: str) -> str:
    """Check models separated by commas, and write each as NAME=SOURCE, folders absolute."""
    found: dict[str, str] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        given = re.fullmatch(NAMED, entry)
        source = absolute(given[2] if given else entry)
        name = given[1] if given else name_of(source)
        if not name:
            raise ValueError(f"{entry:.100} has no name; write NAME=MODEL, or such as a@champion")
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name:.100} has one of / = @ in its name; write NAME=MODEL")
        if name in found:
            raise ValueError(f"two models have the name {name:.100}; write NAME=MODEL for one")
        found[name] = source
    return ",".join(f"{name}={source}" for name, source in found.items())


def name_of(model: str) -> str:
    """Name a model that has none of its own: by its registry name, or its folder."""
    return model.rpartition("@")[0] if registry.is_reference(model) else Path(model).name


def by_name(models: str) -> dict[str, str]:
    """Sources by name, of what `named` wrote."""
    return dict(entry.split("=", 1) for entry in models.split(",") if entry)
