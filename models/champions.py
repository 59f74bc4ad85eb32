"""Which version is the champion, changed only to one that makes and takes the same items.

A champion is what services and scripts ask for by name. One of other columns, or of images of
another size, breaks all of them at once, so it takes the place of another only with a reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from models import registry, registry_files
from models.artifact import DETECTOR, RUN, SUMS
from models.errors import AbsentError, ArtifactError, UserError
from models.progress import say as say_to_people
from models.record import Run
from models.schema_changes import schema_changes

FORCED_TAG = "forced_over"
"""Tag of a version that took the place of a champion of another schema: over which, and why."""


class SchemaChangeError(UserError):
    """A version makes other items than the champion whose place it would take."""


def promote(
    name: str,
    version: str,
    why: str,
    force: str | None = None,
    say: Callable[[str], None] = say_to_people,
) -> str | None:
    """Make a version the champion; see `models.registry.promote`.

    Args:
        name: of the registered model.
        version: number of the new champion.
        why: for the history.
        force: reason to replace a champion of another schema, which becomes the tag `FORCED_TAG`.
        say: takes a line for people, if the champion's record is gone and cannot be compared.

    Returns:
        The previous champion's version, or None.

    Raises:
        SchemaChangeError: the version makes other items than the champion, and no reason is given.
        RegistryError: no such version, or the registry does not answer.
    """
    return registry.promote(name, version, why, _guard(name, force, say))


def rollback(
    name: str,
    why: str,
    force: str | None = None,
    say: Callable[[str], None] = say_to_people,
) -> tuple[str | None, str]:
    """Make the previous champion the champion again; see `models.registry.rollback`.

    Args:
        name: of the registered model.
        why: for the history.
        force: as of `promote`.
        say: as of `promote`.

    Returns:
        The version rolled back from, None where there was no champion; and the version rolled back
        to.

    Raises:
        SchemaChangeError: as `promote`.
        AbsentError: no earlier champion is known.
        RegistryError: the registry does not answer.
    """
    return registry.rollback(name, why, _guard(name, force, say))


def _guard(name: str, force: str | None, say: Callable[[str], None]) -> Callable[[str, str], None]:
    """Make the check that the registry does before a champion is replaced."""

    def check(before: str, version: str) -> None:
        try:
            run, has_detector = _record(f"{name}@{version}")
            champion, had_detector = _record(f"{name}@{before}")
        except (AbsentError, ArtifactError) as error:
            say(f"{name}@{version} is not compared with {name}@{before}: {error}")
            return
        if changes := schema_changes(run, champion):
            said = f"{name}@{version} makes other items than the champion, {name}@{before}: "
            said += "; ".join(changes)
            if not force:
                raise SchemaChangeError(
                    f"{said}; register it under a name of its own (--set name=...), or replace the "
                    "champion all the same with --force REASON"
                )
            registry.tag(name, version, {FORCED_TAG: f"{name}@{before}: {force}"})
            say(f"{said}; forced: {force}")
        if had_detector and not has_detector:
            say(
                f"{name}@{version} has no detector, and {name}@{before} has one: services answer "
                f"/v1/anomalies with 404 from now on; `wgan train-detector {name}@{version} --out "
                "DIR --register` makes a version that has one"
            )

    return check


def _record(reference: str) -> tuple[Run, bool]:
    """Fetch the record of a version, and learn if it has a detector.

    Raises:
        AbsentError: it is gone.
        ArtifactError: it is not one that this version of ours reads.
        RegistryError: the registry or its storage does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        fetched = registry_files.download(reference, Path(folder), {RUN, SUMS})
        try:
            has_detector = DETECTOR in (fetched / SUMS).read_text()
            return Run.model_validate_json((fetched / RUN).read_bytes()), has_detector
        except FileNotFoundError as error:
            raise AbsentError(f"{reference}: its {Path(error.filename).name} is gone") from None
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ArtifactError(f"{reference}: its {RUN} cannot be read ({where})") from None
